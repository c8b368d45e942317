"""Estimate the cost of single jobs: multiply-adds, and bytes on disk, in memory and on a GPU.

They are counted from the configuration and the models' dimensions. The sizes of benchmarks are those of their prompts,
at 4 letters per token.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.jobs import Jobs
from shadowcore.measure.conditions import Condition, PredictorId
from shadowcore.measure.methods import METHODS
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.predictors import TUNED_ONLY, feature_width, groups_of
from shadowcore.method.relufy import CACHE_BYTES, LOGITS_AT_ONCE, Relufied
from shadowcore.method.tracing import WINDOW_BITS
from shadowcore.models.families import KINDS, Dimensions, Kind, dimensions_of
from shadowcore.models.folders import read_config
from shadowcore.models.published import PUBLISHED, Size
from shadowcore.models.sources import RandomModel
from shadowcore.stages.base import read_card
from shadowcore.stages.conditions import parts
from shadowcore.texts.cutting import CHOICES

Cost = dict[str, Any]  # fields of `work.Work`
# evaluated splits (lm-eval 0.4.13): documents, letters of all choices with their prompts, letters of the distinct
# prompts, letters of the choices
LETTERS = {
    "piqa": (1838, 563_535, 98_533, 364_735), "copa": (100, 14_524, 4_197, 6_130),
    "openbookqa": (500, 145_471, 27_451, 35_567), "winogrande": (1267, 267_787, 167_254, 62_884),
    "rte": (277, 192_227, 94_590, 3_047), "hellaswag": (10_042, 14_569_529, 2_266_398, 5_477_737),
    "arc_easy": (2376, 1_474_422, 312_299, 224_058), "wikitext": (62, 1_238_432, 0, 1_238_432),
    "lambada_openai": (5153, 1_669_012, 1_628_723, 34_377), "boolq": (3270, 4_251_082, 2_114_096, 22_890),
}  # fmt: skip
LETTERS_A_TOKEN = 4
TOKENS_A_WORD = 4 / 3
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def size_of(jobs: Jobs, model: str) -> Size | None:
    """A model's size from its card, its source, or the published sizes; None if unknown."""
    card = jobs.root / "models" / model / "card.json"
    if card.is_file():
        record = read_card(card)
        return Size(record["model_type"], Dimensions(**record["dimensions"]))
    kind, fields = next(iter(jobs.study.models[model].source.items()))
    if kind == Relufied.KIND:
        return size_of(jobs, fields["teacher"])
    if kind == "random":
        source = RandomModel(**fields)
        if source.heads < 1:  # a mistake that `preflight` reports with the source
            return None
        heads = (source.heads, source.kv_heads or source.heads, source.width // source.heads)
        sizes = (source.layers, source.width, *heads, source.neurons, source.vocabulary, source.positions)
        return Size(source.family, Dimensions(*sizes))
    if kind == "folder" and ((folder := Path(fields["path"]).expanduser()) / "config.json").is_file():
        config = read_config(folder)
        return Size(config.model_type, dimensions_of(config))
    # a repository of the hub, or a packaged model
    return PUBLISHED.get(fields.get("repo", fields.get("name", "")).split("/")[-1].lower().removesuffix("-hf"))


def trace_bytes(spec: Mapping[str, Any], sizes: Dimensions) -> int:
    """Bytes of the tensors in one shard's trace; see `shadowcore.method.tracing`. spec: of the stage `trace`."""
    windows = len(range(spec["shard"], spec["windows"], spec["shards"]))
    count = {"tokens": windows * spec["tokens_per_window"], "windows": windows}
    sites = {
        (one["examples"], group.site)
        for one in spec["designs"] for group in groups_of(one["method"], sizes.layers, one["segments"])
    }  # fmt: skip
    features = sum(2 * count[examples] * feature_width(sizes, site) for examples, site in sites)
    units = [sizes.units(kind) for kind in KINDS]
    moments = 2 * 8 * len(spec["criteria"]) * sizes.layers * sum(units)
    scored = (
        ("tokens", spec["token_criteria"], spec["token_bits"]), ("windows", spec["window_criteria"], WINDOW_BITS)
    )  # fmt: skip
    codes = sum(
        count[examples] * sizes.layers * len(criteria) * (math.ceil(of_kind * bits / 8) + 4)  # 4 for the maximum
        for examples, criteria, bits in scored for of_kind in units
    )  # fmt: skip
    return moments + codes + features + 4 * windows


class Measured(NamedTuple):
    """Documents that a condition is measured on, and tokens that pass through the model.

    prompts: tokens of dense prompts, which several conditions share; continued: tokens after them, per condition;
    whole: tokens of a condition without dense prompts, in which every choice repeats its prompt.
    """

    documents: float
    prompts: float
    continued: float
    whole: float


def _dense_prompt(condition: Condition) -> bool:
    """Whether a condition shares its prompts with all other such conditions."""
    return not METHODS[condition.method].reads_prompt and PROTOCOLS[condition.protocol or "token"].dense_prompt


class Costs:
    """Methods with a rule's name return the cost of one of its jobs, from its wildcards."""

    def __init__(self, jobs: Jobs):
        self.jobs, self.study = jobs, jobs.study
        self.sizes = {model: size_of(jobs, model) for model in jobs.study.models}
        self.measured = {data: self._measured_on(data) for data in jobs.study.evaluation.texts}

    def of(self, rule: str, *values: str) -> Cost:
        """The cost of a job; a rule without a method has none worth counting, nor has a model of unknown size."""
        method = getattr(self, rule, None)
        return method(*values) if method else {}

    def _of_model(self, model: str, tokens: float, flops: int, batch: int, **more: float) -> Cost:
        """A job that passes `tokens` through a model, with `flops` per weight and token, `batch` tokens at once."""
        size = self.sizes[model]
        if size is None:
            return {}
        d, backward = size.dimensions, flops > 2
        kept = d.layers * (8 * d.width + 3 * d.neurons) * 2 if backward else 8 * d.width  # bytes per token
        return more | {
            "flops": flops * size.multiplied * tokens, "activations": batch * (kept + 8 * d.vocabulary),
            "weights": size.parameters * BYTES[self.study.models[model].dtype],
        }  # fmt: skip

    def fetch_model(self, model: str) -> Cost:
        """Published weights have 16 bits, packaged ones are expanded to 32."""
        size, bytes_each = self.sizes[model], 4 if "package" in self.study.models[model].source else 2
        return self._of_model(model, 0, 0, 0, written=size.parameters * bytes_each if size else 0)

    def relufy(self, model: str) -> Cost:
        """Distillation: the teacher writes text, then the teacher runs forward and the student forward and backward.

        Bytes per parameter: 18, for weight, gradient and two moments in float32 and the teacher's weight in 16 bits.
        """
        recipe, size = self.study.models[model].relufied, self.sizes[model]
        if size is None:
            return {}
        d, batch = size.dimensions, recipe.batch * self.study.traces.window_tokens
        kept = 4 * batch * d.layers * (8 * d.width + 3 * d.neurons)
        logits = 24 * min(batch * d.vocabulary, LOGITS_AT_ONCE)  # in float32, of both models, with gradients
        cache = min(CACHE_BYTES, 4 * recipe.written_tokens * d.layers * d.kv_heads * d.head_width)
        return {
            "flops": size.multiplied * (8 * recipe.steps * batch + 2 * recipe.written_tokens),
            "written": BYTES[self.study.models[model].dtype] * size.parameters,
            "weights": 18 * size.parameters, "activations": max(kept + logits, cache),
        }  # fmt: skip

    def trace(self, *values: str) -> Cost:
        return self._traced(values[0], self.jobs.trace(*values))

    def trace_on_policy(self, *values: str) -> Cost:
        return self._traced(values[0], self.jobs.trace_on_policy(*values)["trace"])

    def _traced(self, model: str, spec: Mapping[str, Any]) -> Cost:
        """spec: of the stage `trace`."""
        windows, size = len(range(spec["shard"], spec["windows"], spec["shards"])), self.sizes[model]
        second_order = any(CRITERIA[name].order == 2 for name in spec["criteria"])
        written = trace_bytes(spec, size.dimensions) if size else 0
        return self._of_model(
            model, windows * spec["window_tokens"], 8 if second_order else 4,
            self.study.traces.batch * spec["window_tokens"],
            written=written, read=2 * written,  # all batches, and then what they are joined to
        )  # fmt: skip

    def calibrate_thresholds(self, model: str, calibration: str) -> Cost:
        plan = self.study.traces
        return self._of_model(model, plan.windows * plan.window_tokens, 2, plan.batch * plan.window_tokens)

    def train_predictor(self, *place: str) -> Cost:
        one, plan = self.jobs.trained[place], self.study.traces
        size, weights, recipe = self.sizes[one.model], self._weights(one), self.study.recipe_of(one.predictor)
        tokens, read = recipe.examples_in(plan.windows, plan.tokens_per_window), 0
        if size is not None:
            units = sum(size.dimensions.units(kind) for kind in KINDS)
            read = tokens * size.dimensions.layers * units * plan.bits / 8
        epochs = recipe.training_recipe().epochs
        flops = 6 * tokens * sum(weights[kind] * epochs[kind] for kind in KINDS)
        return {"flops": flops, "written": self._predictor_bytes(one), "read": read}

    def tune_predictor(self, *place: str) -> Cost:
        one, plan, tuning = self.jobs.trained[place], self.study.traces, self.study.tuning
        tokens = tuning.epochs * plan.windows * plan.window_tokens
        written = self._predictor_bytes(one)
        return self._of_model(one.model, tokens, 4, tuning.batch * plan.window_tokens, written=written)

    def _predictor_bytes(self, one: PredictorId) -> float:
        return sum(self._weights(one).values()) * self.study.recipe_of(one.predictor).bits / 8

    def _weights(self, one: PredictorId) -> dict[Kind, int]:
        """Number of weights of a predictor by kind of unit; 0 if the model's size is unknown."""
        recipe, size = self.study.recipe_of(one.predictor).training_recipe(), self.sizes[one.model]
        weights = dict.fromkeys(KINDS, 0)
        known = size and one.method not in TUNED_ONLY  # they have no matrices
        for group in groups_of(one.method, size.dimensions.layers, recipe.segments) if known else ():
            units = {"heads": size.dimensions.heads, "neurons": size.dimensions.neurons // recipe.block}
            for kind in KINDS:
                weights[kind] += recipe.rank[kind] * (size.dimensions.width + len(group.layers) * units[kind])
        return weights

    def evaluate(self, *key: str, passes: int = 2, scored: int = 0) -> Cost:
        """Conditions that are measured together share dense prompts; the tokens after them run under each condition.

        passes: flops per weight and token of a pass; scored: flops with which all conditions' units are scored once.
        """
        plan, conditions, measured = self.study.evaluation, self.jobs.evaluations[key], self.measured[key[1]]
        predictors = {
            name: {one.predictor_id: 2 * sum(self._weights(one.predictor_id).values())} if one.predictor_id else {}
            for name, one in conditions.items()
        }
        together, flops = list(parts(predictors)), 0
        for part in together:
            dense = [one for one in map(conditions.get, part) if _dense_prompt(one)]
            whole = [one for one in map(conditions.get, part) if not _dense_prompt(one)]
            flops += 2 * measured.prompts if dense else 0
            for group, tokens in ((dense, measured.continued), (whole, measured.whole)):
                flops += tokens * (sum(METHODS[one.method].flops for one in group) + (scored if group else 0))
        held = max(sum({key: n for name in part for key, n in predictors[name].items()}.values()) for part in together)
        return self._of_model(
            key[0], flops / passes, passes, plan.window_batch * plan.window_tokens,
            written=len(conditions) * (9e3 + 30 * measured.documents), read=2 * held,
        )  # fmt: skip

    def evaluate_oracle(self, model: str, data: str) -> Cost:
        return self.evaluate(model, data, "oracle", passes=6, scored=4)  # forward and backward

    def _measured_on(self, data: str) -> Measured:
        """Documents of a text's windows, questions and benchmarks, and tokens that pass through the model."""
        plan = self.study.evaluation
        windows = plan.windows * plan.window_tokens
        parts = [Measured(plan.windows, 0, windows, windows)]
        if "true_continuation" in plan.tasks:
            questions = self.study.texts[data].true_continuation
            prompts, choices = questions.context_words, CHOICES * questions.continuation_words  # per document
            words = (prompts, choices, CHOICES * prompts + choices)
            tokens = (TOKENS_A_WORD * questions.documents * count for count in words)
            parts.append(Measured(questions.documents, *tokens))
        if "second_half" in plan.tasks:
            parts.append(Measured(plan.windows, windows / 2, windows / 2, windows))
        for name in plan.tasks if data == plan.texts[0] else ():
            if name not in BENCHMARKS:
                continue
            everything, *letters = LETTERS[name]
            count = plan.limit.get(name, everything)
            whole, prompts, choices = (count / everything * part / LETTERS_A_TOKEN for part in letters)
            rolling = BENCHMARKS[name].rolling
            for shots in [0] if rolling else [shots for shots in plan.fewshot if not shots or BENCHMARKS[name].train]:
                # an example in the prompt is about as long as the question
                longer = 0 if rolling else shots * whole * prompts / (whole - choices)
                parts.append(Measured(count, prompts + longer, choices, (shots + 1) * whole))
        return Measured(*map(sum, zip(*parts, strict=True)))

    def latency(self, model: str) -> Cost:
        """Every mode at every sparsity, prompt and new tokens."""
        plan = self.study.latency
        modes = 2 + (2 + len(plan.methods)) * len(plan.sparsities_pct)
        tokens = modes * (plan.repeats + plan.warmup) * (plan.prompt_tokens + plan.new_tokens)
        return self._of_model(model, tokens, 2, plan.prompt_tokens)

    def latency_random(self, model: str, lengths: str) -> Cost:
        """Every design and baseline at its sparsities."""
        spec, size = self.jobs.timed_dimensions[model, lengths], PUBLISHED[model]
        sparsities = len(spec["sparsities_pct"])
        designs = sum(len(design["sparsities_pct"]) or sparsities for design in spec["designs"])
        modes = 1 + 2 * sparsities + designs + len(spec["baselines"])
        tokens = modes * spec["batch"] * (2 * spec["prompt_tokens"] + spec["short_tokens"] + spec["new_tokens"])
        tokens *= spec["repeats"] + spec["warmup"]
        return {"flops": 2 * size.multiplied * tokens, "weights": size.parameters * BYTES[spec["dtype"]], "alone": True}
