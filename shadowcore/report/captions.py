"""Captions of the figures: what to look for in each. The page and Snakemake's report show them."""

CAPTIONS = {
    "quality_per_byte": """
Token perplexity against the bytes of weights that a step reads, predictor or other selector included, as a share of
the dense model's; fewer bytes are to the right. A line is a method's best conditions over all units, criteria,
predictors and policies. Filled points are the best of all methods at their bytes; the grey band joins them. At an open
point, another method is as good with as few bytes. An arrow is a line that goes on above the panel. Points left of
100 % read more than they save. ``oracle`` is left out, because no decoder knows the true scores.
""",
    "perplexity": """
Token perplexity against the share of units really removed, on a logarithmic scale, one panel for each text. The black
line is the dense model; bars and band are 95 % intervals over documents. Compare a predictor with ``static`` (the
gain from reading the context) and with ``oracle`` (what better prediction could still gain). Of several predictors of
a method the best is drawn; its label has the recipe and the rank. Other units, criteria and policies are in the table.
""",
    "accuracy": """
Task accuracy against the share of units really removed, with 95 % intervals; of more than three tasks the mean. The
dotted line is the accuracy of guessing. A method is useful where its interval stays above that of ``static``.
""",
    "gain_over_static": """
Nats per token that a method saves over static masks of the same criterion, on the same documents, with paired 95 %
intervals. Zero is the constant choice of units. The distance between a predictor and ``oracle`` is the gap that
better prediction could close.
""",
    "differences": """
Accuracy minus that of the dense model on the same documents, with paired 95 % intervals, at the middle sparsity. An
interval that does not reach zero is a difference that these documents can show.
""",
    "designs": """
Each row is one predictor; rows are grouped by the number of predictors in the model, the best first. Left: perplexity
with 95 % intervals. Right: the share of the important units that the predictor keeps. Compare groups to see what more
predictors gain, and rows of a group to see what their training changes. Vertical lines are the dense model, true scores
and static masks.
""",
    "sizes": """
Perplexity against the bytes of its predictor that each token reads. Labels give the hidden width, and bits and blocks
where they are not 16 and 1. Points to the lower left are better: small and accurate.
""",
    "learning_curves": """
Perplexity against the number of tokens that a predictor was trained on, with 95 % intervals. A line joins predictors
that are otherwise alike. A line that still falls at its right end says that more text would help.
""",
    "criteria": """
Criteria compared without a predictor: static masks remove the same units for every token, by mean score over the
calibration text. Rows are ordered by perplexity, the best first. The black line is the dense model; bars are 95 %
intervals.
""",
    "factorial": """
Every method with every criterion, so that the choice of a criterion and of a method can be separated. Perplexity is
divided by the dense model's (1 is lossless). Dark cells are better. The last panels show the rank correlation of
predicted and true scores on held-out tokens: a criterion that is easy to predict need not be the best one to use.
Blank cells were not measured; ``oracle`` predicts nothing.
""",
    "policies": """
The same methods with a fixed share of every layer (filled) and with the same share of the whole model (hollow), which
lets layers differ. Bars are 95 % intervals. Only methods that were measured under several policies are drawn.
""",
    "tasks": """
Accuracy on each task of ShadowLLM's design (one predictor of plainact) and of DejaVu's (a predictor of magnitude, the
criterion ``l2_norm``, for each layer), with 95 % intervals; the black mark is the dense model. The two differ in
criterion and in design at once, as published; the figure ``factorial`` separates the two. Both have the same training
recipe if the study has one for both; the legend has its name.
""",
    "fewshot": """
Accuracy averaged over tasks against the number of examples in the prompt, with 95 % intervals. If a line falls
further below the dense one with more examples, the removed units were needed to learn from the prompt.
""",
    "predictor_quality": """
Recall: the share of the truly important units that a predictor keeps, on held-out tokens. The gap above ``static`` is
what a predictor has learned from the context; the dotted line is keeping units at random. Standard errors are in the
table ``quality``.
""",
    "importance_map": """
Mean importance of every unit over the calibration windows, on a logarithmic colour scale; neurons are sorted within
their layer. A steep fall from left to right means that few neurons matter; rows of different brightness mean that
layers differ, which the policy ``global`` uses. The few units beyond an end of the scale have the colour of that end.
""",
    "variability": """
How much the importance of one unit changes between inputs: the deviation of its score over its mean. Near zero, a
fixed choice of units is enough; the larger the value, the more a predictor can gain.
""",
    "latency": """
Time per generated token against sparsity, median over repeats, with the 10th to 90th percentile. The black line is
the fastest dense decoder on the same device: only points below it are a gain. The distance between a predictor and
``static`` is the cost of predicting and selecting.
""",
    "pareto": """
Token perplexity against time per token; numbers give the percentage of units removed. The star is the dense model.
Points to the left of it are faster; lower points lose less quality.
""",
    "claims": """
Published claims and our measurements, one panel for each quantity. Black bars are the published effects; a mark is our
effect on one text, with its 95 % interval. Right of the line is as claimed. The color is the verdict over all texts.
Pairs that are not comparable are left out if the claim has others. If a claim was compared in more than three
conditions, those three are drawn whose effects are largest compared with their intervals; the table ``claims`` has all,
with the reason of each verdict.
""",
}
CAPTIONS = {name: text.strip() for name, text in CAPTIONS.items()}
