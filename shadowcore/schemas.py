"""The tables of a study: every column with its type and meaning.

Writers use `build`, readers use `read`, and the data dictionary in `results/README.md` is generated from this module.
"""

from shadowcore.table_schema import BOOLEAN, INTEGER, NUMBER, TEXT, Columns, Table


def _of(columns: Columns, names: str) -> Columns:
    """Some of these columns, by their names."""
    return {name: columns[name] for name in names.split()}


# the columns of every table with rows about a sparse model
CONDITION = {
    "model": (TEXT, "name of the model in the configuration"),
    "data": (TEXT, "text that was measured, with `(second half)` for the text after a prompt; or a benchmark's name"),
    "calibration": (TEXT, "text that scores, thresholds or predictors were made from; null for methods without them"),
    "method": (TEXT, "dense, or one of the methods in config/README.md"),
    "criterion": (TEXT, "importance criterion; null for a method without one"),
    "predictor": (TEXT, "name of the predictor in the configuration; null without a trained predictor"),
    "policy": (TEXT, "per_layer, global or floored; null for dense, relu, sparseinfer"),
    "protocol": (TEXT, "positions of a mask: token, prompt, or lookahead (not causal); null for dense"),
    "units": (TEXT, "units removed: heads, neurons or both; null for dense"),
    "sparsity_pct": (INTEGER, "nominal: percent of units removed in every layer but layer 0; 0 for relu, sparseinfer"),
    "seed": (INTEGER, "seed of everything random in the row: of training, where something was trained"),
}
MEASURED = {
    "sparsity_measured": (NUMBER, "removed units of the pruned kinds over all their units, layer 0 included, 0 to 1"),
    "sparsity_heads": (NUMBER, "removed heads over all heads, 0 to 1"),
    "sparsity_neurons": (NUMBER, "removed neurons over all neurons, 0 to 1"),
    "sparsity_weights": (NUMBER, "weights of removed units over all weights of the model, 0 to 1"),
    "read_bytes": (NUMBER, "bytes of weights that a decode step reads at batch 1, the selector's included; the mean"),
    "read_share": (NUMBER, "read_bytes over what a step of the dense model reads"),
}

SEEDS = {
    "seeds": (INTEGER, "number of seeds that the condition was trained with, one row each; 1 without training"),
    "seed_deviation": (NUMBER, "standard deviation of the estimate over these seeds; null for one seed"),
}
FEWSHOT = (INTEGER, "examples in a prompt; null for tasks without prompts")
TASK = {"task": (TEXT, "task name"), "fewshot": FEWSHOT}
LAYER = {"kind": (TEXT, "heads or neurons"), "layer": (INTEGER, "layer, from 0")}

OUTCOMES = Table(
    "outcomes", 4, "one document (or text window) under one condition",
    CONDITION | MEASURED | {
        "task": (TEXT, "task name: a task of lm-eval, or `perplexity` and `second_half` for text windows"),
        "fewshot": FEWSHOT,
        "document": (TEXT, "hash of the document, by which rows of different conditions are paired"),
        "article": (TEXT, "article of a question of true_continuation, which may have several; else null"),
        "metric": (TEXT, "acc, acc_norm, or summed negative log-likelihood in nats: nll, word_nll, byte_nll"),
        "value": (NUMBER, "value of the metric for this document"),
        "weight": (INTEGER, "divisor of a perplexity: scored tokens (nll), words or bytes; 1 for accuracies"),
    },
)  # fmt: skip

ESTIMATE = TASK | {
    "metric": (TEXT, "acc, acc_norm (fractions), token_perplexity, word_perplexity or byte_perplexity"),
    "value": (NUMBER, "estimate over all documents"),
    "stderr": (NUMBER, "standard error of the estimate over documents"),
    "low": (NUMBER, "lower end of the 95 % interval"),
    "high": (NUMBER, "upper end of the 95 % interval"),
    "n": (INTEGER, "number of documents"),
} | SEEDS  # fmt: skip
ACCURACY = Table("accuracy", 4, "one task metric under one condition", CONDITION | MEASURED | ESTIMATE)
PERPLEXITY = Table(
    "perplexity", 4, "perplexity of one text under one condition, over tokens, words or bytes",
    CONDITION | MEASURED | ESTIMATE | {"counted": (INTEGER, "what the metric divides by: scored tokens, words, bytes")},
)  # fmt: skip
COMPARISONS = Table(
    "comparisons", 6, "one condition against dense, or another method or criterion in its place, on the same documents",
    CONDITION | MEASURED | {
        "reference": (TEXT, "method of the reference; its other columns equal the row's if it has them"),
        "reference_criterion": (TEXT, "criterion of the reference; null if it has none"),
        "reference_predictor": (TEXT, "predictor of the reference, trained in the same way; null if it has none"),
    } | TASK | {
        "metric": (TEXT, "acc, acc_norm, or log_perplexity (nats per token), log_word_perplexity, log_byte_perplexity"),
        "difference": (NUMBER, "metric of the condition minus metric of the reference"),
        "stderr": (NUMBER, "standard error of the paired difference"),
        "low": (NUMBER, "lower end of its 95 % paired interval"),
        "high": (NUMBER, "upper end of its 95 % paired interval"),
        "p_value": (NUMBER, "exact McNemar test for accuracies, paired t-test over documents for log perplexities"),
        "p_holm": (NUMBER, "p_value corrected (Holm 1979) over the rows of one model, seed, metric and reference"),
        "n": (INTEGER, "number of paired documents"),
    } | SEEDS,
)  # fmt: skip

BUDGETS_PCT = (90, 80, 70, 60)
RUNNER_UP = ("method", "criterion", "predictor", "policy", "units", "sparsity_pct")
BEST_AT_BYTES = Table(
    "best_at_bytes", 2, "the best condition that reads at most a share of the dense model's bytes, on one text or task",
    _of(CONDITION, "model data") | TASK | {
        "metric": (TEXT, "log_perplexity (nats per token; low is good), acc, acc_norm (high is good)"),
        "budget_pct": (INTEGER, "read_share is at most this, percent; without dense, random, oracle, lookahead"),
    } | {name: CONDITION[name] for name in CONDITION if name not in ("model", "data", "seed")} | {
        "read_share": MEASURED["read_share"],
        "value": (NUMBER, "its log perplexity or accuracy, mean over seeds"),
        "ratio": (NUMBER, "its perplexity over the dense model's; null for accuracies"),
        "difference": (NUMBER, "its value minus the dense model's, as in `comparisons`"),
        "low": (NUMBER, "lower end of the difference's 95 % paired interval; the lowest of all seeds"),
        "high": (NUMBER, "upper end; the highest of all seeds"),
    }
    | {f"next_{name}": (CONDITION[name][0], f"{name} of the best condition of another method") for name in RUNNER_UP}
    | {
        "next_read_share": (NUMBER, "its read_share"),
        "next_difference": (NUMBER, "value of the best minus that of the next, on the same documents"),
        "next_low": (NUMBER, "lower end of its 95 % paired interval"),
        "next_high": (NUMBER, "upper end of its 95 % paired interval"),
        "next_pairs": (INTEGER, "pairs of both with the same calibration text and seed: every draw and seed"),
        "next_pairs_won": (INTEGER, "pairs in which the best is at least as good as the next"),
        "p_value": (NUMBER, "of next_difference, as in `comparisons`"),
        "p_holm": (NUMBER, "p_value corrected (Holm 1979) among the rows of one model and metric"),
        "verdict": (TEXT, "significant (p_holm < 0.05), undecided, only method, or none (that reads as little)"),
    },
)  # fmt: skip

QUALITY = Table(
    "quality", 2, "how well one predictor ranks the units of one layer, on held-out calibration tokens",
    _of(CONDITION, "model calibration") | {
        "method": (TEXT, "static (the constant predictor), or a predictor's design, such as shadow"),
        "criterion": CONDITION["criterion"],
        "predictor": (
            TEXT,
            "name of the predictor; for static: the predictor that masked the traces, or null; with "
            "spearman_of_examples: the predictor of windows whose mean targets it predicts",
        ),
        "seed": CONDITION["seed"],
        "kind": LAYER["kind"],
        "layer": (INTEGER, "layer, from 0; null for spearman_of_examples"),
        "sparsity_pct": (INTEGER, "sparsity of the kept units; null for spearman"),
        "policy": (TEXT, "policy that chooses the kept units; null for spearman"),
        "metric": (
            TEXT,
            "spearman; recall, precision: of the kept units against those with the highest true scores; "
            "spearman_of_examples: as published, of one window over the units of all layers but layer 0, with the "
            "scores as the predictor learned them (predictors of windows only)",
        ),
        "value": (NUMBER, "mean over tokens or windows, 0 to 1 (spearman: -1 to 1)"),
        "stderr": (NUMBER, "standard error over tokens or windows"),
        "n": (INTEGER, "number of tokens or windows"),
    },
)  # fmt: skip

PREDICTORS = Table(
    "predictors", 3, "the part of one trained predictor for one kind of unit",
    _of(CONDITION | {"method": QUALITY.columns["method"]}, "model calibration method criterion predictor seed") | {
        "base": (TEXT, "first predictor of its chain, which was trained on the dense model; often itself"),
        "rounds": (INTEGER, "number of retrainings, each on traces under the masks of the previous predictor"),
        "tuned": (BOOLEAN, "whether it was finally tuned on the sparse model"),
        "kind": (TEXT, "heads or neurons"),
        "rank": (INTEGER, "hidden width r of each MLP; 0 for static_tuned"),
        "groups": (INTEGER, "number of MLPs: 1 for shadow, one per predicted layer for layerwise"),
        "bits": (INTEGER, "bits per weight"),
        "block": (INTEGER, "number of neighbouring units that share a score"),
        "parameters": (INTEGER, "number of weights and biases"),
        "step_bytes": (INTEGER, "bytes of the predictor that a decoder reads per token"),
        "tokens": (INTEGER, "number of training tokens, or windows"),
        "epochs": (INTEGER, "number of passes over the training tokens"),
        "best_epoch": (NUMBER, "epoch that is kept, with the lowest held-out loss or the last (mean over groups)"),
        "loss_constant": (NUMBER, "held-out loss before training, of the constant predictor; if tuned, before tuning"),
        "loss": (NUMBER, "held-out squared error of scaled scores, or cross-entropy; if tuned, divergence from dense"),
    },
)  # fmt: skip

THRESHOLDS = Table(
    "thresholds", 2, "one magnitude that a share of one layer's neurons does not exceed, over the calibration tokens",
    _of(CONDITION, "model calibration") | {
        "method": (TEXT, "what is compared with it: |act(gate) * up| (threshold) or |act(gate)| (cats)"),
        "layer": LAYER["layer"],
        "sparsity_pct": (INTEGER, "share of the magnitudes at or below the threshold, percent"),
        "threshold": (NUMBER, "the magnitude"),
        "n": (INTEGER, "magnitudes: tokens times neurons"),
    },
)  # fmt: skip

CRITERIA = Table(
    "criteria", 1, "importance of one unit under one criterion over the calibration windows",
    _of(CONDITION, "model calibration criterion") | LAYER | {
        "unit": (INTEGER, "unit, from 0"),
        "mean": (NUMBER, "mean of the windows' scores"),
        "deviation": (NUMBER, "standard deviation over windows"),
        "n": (INTEGER, "number of windows"),
    },
)  # fmt: skip

LATENCY = Table(
    "latency", 3, "time per token of one decoding mode (median over repeats)",
    {
        "model": CONDITION["model"],
        "device": (TEXT, "processor or GPU"),
        "backend": (TEXT, "torch (CPU reference) or triton"),
        "weights": (TEXT, "pretrained or random"),
        "dtype": (TEXT, "number format of the weights"),
        "threads": (INTEGER, "number of CPU threads; null on a GPU"),
        "driver": (TEXT, "version of the GPU's driver; null on a CPU"),
        "mode": (TEXT, "which units are decoded: the table of modes in results/README.md"),
        "units": CONDITION["units"],
        "sparsity_pct": CONDITION["sparsity_pct"],
        "kv": (TEXT, "kept: keys and values of all heads are computed and cached"),
        "batch": (INTEGER, "number of sequences decoded together"),
        "prompt_tokens": (INTEGER, "number of tokens in the prompt"),
        "new_tokens": (INTEGER, "number of generated tokens"),
        "predictor_rank": (INTEGER, "hidden width of the predictor for neurons, or else heads; null without one"),
        "predictor_rank_heads": (INTEGER, "hidden width of the predictor for heads, if there are two"),
        "predictor_bits": (INTEGER, "bits per weight of the predictor"),
        "predictor_groups": (INTEGER, "number of MLPs of the predictor, each with a selection: 1 for shadow"),
        "predictor_mb": (NUMBER, "bytes of the predictor read per token, 10^6 bytes; null without one"),
        "ms_per_token": (NUMBER, "median over repeats of the mean time of a decode step, milliseconds"),
        "ms_p10": (NUMBER, "10th percentile over repeats"),
        "ms_p90": (NUMBER, "90th percentile over repeats"),
        "ttft_ms": (NUMBER, "median time of the prompt's pass, milliseconds"),
        "predictor_ms": (NUMBER, "median time of predictor and selection per step, timed separately; null without one"),
        "selection_ms": (NUMBER, "time of the selections per step, timed separately; null if not measured"),
        "attention_ms": (NUMBER, "time of attention and its projections in all layers, timed separately"),
        "ffn_ms": (NUMBER, "time of the FFNs of all layers, timed separately"),
        "norms_ms": (NUMBER, "time of all norms and additions to the residual, timed separately"),
        "vocabulary_ms": (NUMBER, "time of the output projection and the choice of a token, timed separately"),
        "kept_heads": (INTEGER, "number of heads computed per step, over all layers"),
        "kept_neurons": (INTEGER, "number of neurons computed per step, over all layers"),
        "active": (NUMBER, "fraction of the last layer's neurons above zero; null if the mode does not use it"),
        "nodes": (INTEGER, "nodes of a step's CUDA graph; null without a graph"),
        "gb_per_token": (NUMBER, "weights read per step, counted, 10^9 bytes"),
        "gb_per_s": (NUMBER, "gb_per_token divided by the median time"),
        "ceiling_gb_s": (NUMBER, "highest measured rate of reading or copying on the device, 10^9 bytes per second"),
        "roofline_ms": (NUMBER, "gb_per_token plus cached keys and values, divided by ceiling_gb_s"),
        "model_gb": (NUMBER, "weights of the whole model, 10^9 bytes"),
        "cache_gb": (NUMBER, "allocated keys and values, 10^9 bytes"),
        "peak_gb": (NUMBER, "peak memory with this decoder alone, 10^9 bytes: weights, cache, predictor, temporaries"),
        "gate_error": (NUMBER, "relative error of the logits against float32, checked before timing"),
        "repeats": (INTEGER, "number of repeats"),
    },
)  # fmt: skip
PREDICTOR_SHAPE = "predictor_rank predictor_rank_heads predictor_bits predictor_groups"
LATENCY_REPEATS = Table(
    "latency_repeats", 3, "one timed repeat of one decoding mode",
    _of(LATENCY.columns, f"model device mode units sparsity_pct {PREDICTOR_SHAPE} batch prompt_tokens new_tokens") | {
        "repeat": (INTEGER, "repeat, from 0; modes take turns inside a repeat"),
        "ttft_ms": (NUMBER, "time of the prompt's pass, milliseconds"),
        "ms_per_token": (NUMBER, "mean time of a decode step, milliseconds"),
        "sm_mhz": (NUMBER, "clock of the GPU just after the repeat, MHz; null on a CPU"),
        "memory_mhz": (NUMBER, "clock of the GPU's memory, MHz"),
        "power_w": (NUMBER, "power of the GPU, watts"),
        "temperature_c": (NUMBER, "temperature of the GPU, degrees Celsius"),
        "throttled": (INTEGER, "reasons why the driver slowed the GPU down, as NVML's bits; 0: none"),
    },
)  # fmt: skip

REFUSED = Table(
    "refused", 1, "one decoding mode that failed its check and was therefore not timed",
    _of(LATENCY.columns, "model device backend weights dtype threads")
    | {"variant": (TEXT, "name of the mode in the job's log, with its sparsity")}
    | _of(LATENCY.columns, "units sparsity_pct batch prompt_tokens new_tokens")
    | {"reason": (TEXT, "the sentence about what differed, or that memory ran out")},
)  # fmt: skip

_EFFECT = "above 0 if as claimed; a logarithm of a ratio, or a difference of rank correlations plus the claim's margin"
CLAIMS = Table(
    "claims", 3, "one published claim and one pair of our measurements on one text, or none",
    {
        "claim": (TEXT, "name of the claim in shadowcore/report/claims.py"),
        "statement": (TEXT, "what is claimed, in one sentence"),
        "verdict": (TEXT, "of all texts, such as reproduced, transfers, undecided; docs/claims.md has all"),
        "reason": (TEXT, "why: what differs from the published setting, what cannot be compared, how texts disagree"),
        "vote": (TEXT, "what this text alone says: as claimed, opposite or undecided; null where nothing was measured"),
    }
    | {name: column for name, column in CONDITION.items() if name not in ("method", "seed")}
    | _of(LATENCY.columns, "device dtype prompt_tokens new_tokens predictor_rank predictor_bits") | {
        "metric": (TEXT, "what both values are"),
        "side_winner": (TEXT, "the side that the claim calls better: its method, and what else the claim names"),
        "side_loser": (TEXT, "the other side"),
        "value_winner": (NUMBER, "our value of the winner"),
        "value_loser": (NUMBER, "our value of the loser"),
        "effect": (NUMBER, f"our effect; {_EFFECT}"),
        "low": (NUMBER, "lower end of its 95 % interval"),
        "high": (NUMBER, "upper end of its 95 % interval"),
        "paired": (BOOLEAN, "whether the interval is of paired differences; if not, it is never too narrow"),
        "published_model": (TEXT, "model of the published values; null where none is named"),
        "published_units": (TEXT, "units that were removed there"),
        "published_sparsity_pct": (NUMBER, "their sparsity, percent"),
        "published_value_winner": (NUMBER, "published value of the winner"),
        "published_value_loser": (NUMBER, "published value of the loser"),
        "published_effect": (NUMBER, "published effect, made as ours"),
        "source": (TEXT, "where it was published"),
    },
)  # fmt: skip

_ESTIMATES = (ACCURACY, PERPLEXITY, COMPARISONS, BEST_AT_BYTES)
_TABLES = (*_ESTIMATES, QUALITY, PREDICTORS, CRITERIA, LATENCY, LATENCY_REPEATS, REFUSED)
MEASURED_TABLES = {table.name: table for table in _TABLES}
TIMED_TABLES = {table.name for table in (LATENCY, LATENCY_REPEATS, REFUSED)}  # differ from run to run
FINAL_TABLES = MEASURED_TABLES | {CLAIMS.name: CLAIMS}
TABLES = FINAL_TABLES | {OUTCOMES.name: OUTCOMES}  # all in a study's folder `tables`
