"""Estimate the jobs of a study with their time, disk and memory before it starts.

Jobs, multiply-adds, and bytes of traces, predictors and weights are counted from the configuration and the models'
dimensions. Multiply-adds per second are assumed, unless an earlier run or `shadowcore.rates` has a measurement. The
sizes of benchmarks are those of their prompts, at 4 letters per token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shadowcore import manifests
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config import Study
from shadowcore.errors import ConfigError
from shadowcore.jobs import Evaluation, Jobs
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
from shadowcore.work import LOADED, START, Work

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
DELETED = ("fetch_model", "relufy", "trace", "trace_on_policy")  # `one_model_at_a_time` deletes their large files


def work(jobs: Jobs, strict: bool = False) -> list[Work]:
    """All jobs of a study. Jobs of a model of unknown size have no cost, or raise ConfigError if `strict`."""
    costs, study, conditions = Costs(jobs), jobs.study, jobs.conditions.values()
    if unknown := sorted(model for model, size in costs.sizes.items() if strict and size is None):
        raise ConfigError(
            f"models.{unknown[0]}: its size is not known before it is fetched; fetch it first (`snakemake "
            f"{jobs.root}/models/{unknown[0]}/card.json`), or add its size to shadowcore/models/published.py"
        )
    works = [Work("prepare_text", name) for name in study.texts]
    prepared = [Work("prepare_benchmark", name) for name in study.evaluation.tasks if name in BENCHMARKS]
    works += [*prepared, Work("gather_benchmarks", "gather_benchmarks")] if prepared else []
    works += [Work("check_disjoint", "+".join(pair)) for pair in jobs.disjoint_pairs(conditions)]
    calibrated = {(one.model, one.calibration) for one in conditions if METHODS[one.method].reads == "thresholds"}
    for model in study.models:
        works.append(costs.relufied(model) if study.models[model].relufied else costs.fetched(model))
        for calibration in study.calibration:
            works += costs.traced("trace", model, f"{model}/{calibration}", partial(jobs.trace, model))
            works.append(Work("average", f"{model}/{calibration}"))
            if (model, calibration) in calibrated:
                works.append(costs.thresholds(model, calibration))
        if study.latency:
            works.append(costs.timed(model))
        works.append(Work("draw", model))
    for place, predictor in jobs.trained.items():
        works.append(costs.training("/".join(place), predictor))
    for predictor in sorted(filter(None, set(map(jobs.traced_under, jobs.trained.values())))):
        name = f"{predictor.model}/{predictor.calibration}/{predictor.slug(study.seed)}"
        works += costs.traced("trace_on_policy", predictor.model, name, partial(jobs.trace_on_policy, predictor))
    works += [costs.evaluated(key) for key in jobs.evaluations]
    works += [costs.timed_dimensions(*key) for key in jobs.timed_dimensions]
    return works + [Work(rule, rule) for rule in ("aggregate", "check_tables", "judge_claims", "write_page")]


def disk(study: Study, works: Sequence[Work]) -> float:
    """The most bytes that a study has on its disk at once: all outputs, unless it runs one model at a time."""
    if not study.one_model_at_a_time:
        return sum(job.written for job in works)
    by_model = [[job for job in works if job.name.split("/")[0] == model] for model in study.models]
    kept = [sum(job.written for job in part if job.rule not in DELETED) for part in by_model]
    return max(sum(kept[:i]) + sum(job.written for job in part) for i, part in enumerate(by_model))


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
    """Estimate the cost of single jobs of a study."""

    def __init__(self, jobs: Jobs):
        self.jobs, self.study = jobs, jobs.study
        self.sizes = {model: size_of(jobs, model) for model in jobs.study.models}
        self.measured = {data: self._measured_on(data) for data in jobs.study.evaluation.texts}

    def of_model(self, rule: str, name: str, model: str, tokens: float, flops: int, batch: int, **more) -> Work:
        """A job that passes `tokens` through a model, with `flops` per weight and token, `batch` tokens at once."""
        size = self.sizes[model]
        if size is None:
            return Work(rule, name)
        d, backward = size.dimensions, flops > 2
        kept = d.layers * (8 * d.width + 3 * d.neurons) * 2 if backward else 8 * d.width  # bytes per token
        width = BYTES[self.study.models[model].dtype]
        return Work(
            rule, name, flops=flops * size.multiplied * tokens, weights=size.parameters * width,
            activations=batch * (kept + 8 * d.vocabulary), **more,
        )  # fmt: skip

    def fetched(self, model: str) -> Work:
        """Fetching a model: published weights have 16 bits, packaged ones are expanded to 32."""
        size, kind = self.sizes[model], next(iter(self.study.models[model].source))
        written = 0 if size is None else size.parameters * (4 if kind == "package" else 2)
        return self.of_model("fetch_model", model, model, 0, 0, 0, written=written)

    def relufied(self, model: str) -> Work:
        """Distillation: the teacher writes text, then the teacher runs forward and the student forward and backward.

        Bytes per parameter: 18, for weight, gradient and two moments in float32 and the teacher's weight in 16 bits.
        """
        recipe, size = self.study.models[model].relufied, self.sizes[model]
        if size is None:
            return Work("relufy", model)
        d, batch = size.dimensions, recipe.batch * self.study.traces.window_tokens
        kept = 4 * batch * d.layers * (8 * d.width + 3 * d.neurons)
        logits = 24 * min(batch * d.vocabulary, LOGITS_AT_ONCE)  # in float32, of both models, with gradients
        cache = min(CACHE_BYTES, 4 * recipe.written_tokens * d.layers * d.kv_heads * d.head_width)
        return Work(
            "relufy", model, flops=size.multiplied * (8 * recipe.steps * batch + 2 * recipe.written_tokens),
            written=4 * size.parameters, weights=18 * size.parameters, activations=max(kept + logits, cache),
        )  # fmt: skip

    def traced(self, rule: str, model: str, place: str, params: Callable[[str, str], dict[str, str]]) -> list[Work]:
        """The traces of a text: training shards and held-out windows. params: of a split and a shard."""
        works = []
        for split, shard in [*(("train", n) for n in range(self.study.traces.shards)), ("heldout", 0)]:
            spec = json.loads(params(split, str(shard))["spec"])
            spec = spec.get("trace", spec)
            windows = len(range(spec["shard"], spec["windows"], spec["shards"]))
            second_order = any(CRITERIA[name].order == 2 for name in spec["criteria"])
            written = trace_bytes(spec, self.sizes[model].dimensions) if self.sizes[model] else 0
            works.append(
                self.of_model(
                    rule, f"{place}/{split}-{shard}", model, windows * spec["window_tokens"], 8 if second_order else 4,
                    self.study.traces.batch * spec["window_tokens"], written=written,
                )
            )  # fmt: skip
        return works

    def thresholds(self, model: str, calibration: str) -> Work:
        """Thresholds from the activations of all calibration windows."""
        plan = self.study.traces
        tokens = plan.windows * plan.window_tokens
        batch = plan.batch * plan.window_tokens
        return self.of_model("calibrate_thresholds", f"{model}/{calibration}", model, tokens, 2, batch)

    def training(self, name: str, one: PredictorId) -> Work:
        """Training of a predictor on traces, or its tuning."""
        plan, size, recipe = self.study.traces, self.sizes[one.model], self.study.recipe_of(one.predictor)
        weights = self._weights(one)
        written = sum(weights.values()) * recipe.bits / 8
        if self.jobs.is_tuned(one):
            tokens = self.study.tuning.epochs * plan.windows * plan.window_tokens
            batch = self.study.tuning.batch * plan.window_tokens
            return self.of_model("tune_predictor", name, one.model, tokens, 4, batch, written=written)
        tokens, read = recipe.examples_in(plan.windows, plan.tokens_per_window), 0
        if size is not None:
            units = sum(size.dimensions.units(kind) for kind in KINDS)
            read = tokens * size.dimensions.layers * units * plan.bits / 8
        epochs = recipe.training_recipe().epochs
        flops = 6 * tokens * sum(weights[kind] * epochs[kind] for kind in KINDS)
        return Work("train_predictor", name, flops, written=written, read=read)

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

    def evaluated(self, key: Evaluation) -> Work:
        """An evaluation job: all conditions of a model, text and sparsity.

        Conditions that are measured together share dense prompts; the tokens after them run under each condition.
        """
        plan, conditions, measured = self.study.evaluation, self.jobs.evaluations[key], self.measured[key[1]]
        oracle = key[2] == manifests.ORACLE
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
                flops += tokens * sum(METHODS[one.method].flops for one in group)
                flops += 4 * tokens if oracle and group else 0  # scored once for all, forward and backward
        held = max(sum({key: n for name in part for key, n in predictors[name].items()}.values()) for part in together)
        passes = 6 if oracle else 2
        return self.of_model(
            "evaluate_oracle" if oracle else "evaluate", "/".join(key), key[0], flops / passes, passes,
            plan.window_batch * plan.window_tokens, written=len(conditions) * (9e3 + 30 * measured.documents),
            read=2 * held,
        )  # fmt: skip

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

    def timed(self, model: str) -> Work:
        """Timing of the decoder: every mode at every sparsity, prompt and new tokens."""
        plan = self.study.latency
        modes = 2 + (2 + len(plan.methods)) * len(plan.sparsities_pct)
        tokens = modes * (plan.repeats + plan.warmup) * (plan.prompt_tokens + plan.new_tokens)
        return self.of_model("latency", model, model, tokens, 2, plan.prompt_tokens)

    def timed_dimensions(self, model: str, lengths: str) -> Work:
        """Timing of the decoder with random weights: every design and baseline at its sparsities."""
        spec, size = self.jobs.timed_dimensions[model, lengths], PUBLISHED[model]
        sparsities = len(spec["sparsities_pct"])
        designs = sum(len(design["sparsities_pct"]) or sparsities for design in spec["designs"])
        modes = 1 + 2 * sparsities + designs + len(spec["baselines"])
        tokens = modes * spec["batch"] * (2 * spec["prompt_tokens"] + spec["short_tokens"] + spec["new_tokens"])
        tokens *= spec["repeats"] + spec["warmup"]
        weights = size.parameters * BYTES[spec["dtype"]]
        name = f"{model}/{lengths}"
        return Work("latency_random", name, 2 * size.multiplied * tokens, weights=weights, alone=True)


def measured_rates(jobs: Jobs) -> dict[str, float]:
    """Multiply-adds per second by rule, from the `benchmark:` files of a study that has run, also in part.

    Only jobs count that computed for longer than they started, because the times of shorter jobs are mostly noise.
    """
    done: dict[str, list[tuple[float, float]]] = {}
    for job in work(jobs):
        measured = job.measured_seconds(jobs.root)
        if job.flops and measured is not None:
            before = START + job.weights / LOADED
            if (seconds := measured - before) > before:
                done.setdefault(job.rule, []).append((job.flops, seconds))
    return {rule: sum(flops for flops, _ in pairs) / sum(s for _, s in pairs) for rule, pairs in done.items()}
