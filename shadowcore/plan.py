"""What a study will take, before anything starts: jobs, hours, disk and memory of every stage.

Counted: the jobs, from the configuration; the multiplications of each, from the models' dimensions and the tokens
that pass through them; the bytes of its traces, predictors and weights. Assumed, where neither an earlier run nor
`shadowcore.rates` says better: how many multiplications a job makes in a second. A benchmark's size is that of its
stock prompts, at 4 letters a token.
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
from shadowcore.method.predictors import groups_of
from shadowcore.method.relufy import CACHE_BYTES, LOGITS_AT_ONCE, Relufied
from shadowcore.models.families import KINDS, Dimensions, Kind, dimensions_of
from shadowcore.models.folders import read_config
from shadowcore.models.published import PUBLISHED, Size
from shadowcore.models.sources import RandomModel
from shadowcore.stages.base import read_card
from shadowcore.stages.conditions import parts
from shadowcore.texts.cutting import CHOICES
from shadowcore.work import LOADED, START, Work

# of the evaluated splits (lm-eval 0.4.13) the documents, and letters of every choice with its prompt, of the different
# prompts alone, and of the choices alone
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
DELETED = ("fetch_model", "relufy", "trace", "trace_on_policy")  # whose large files `one_model_at_a_time` does not keep


def work(jobs: Jobs, strict: bool = False) -> list[Work]:
    """Every job of a study; those of a model of unknown size have no cost, or, if `strict`, raise ConfigError."""
    costs, study, conditions = Costs(jobs), jobs.study, jobs.conditions.values()
    if unknown := sorted(model for model, size in costs.sizes.items() if strict and size is None):
        raise ConfigError(
            f"models.{unknown[0]}: its size is not known before it is fetched; fetch it first (`snakemake "
            f"{jobs.root}/models/{unknown[0]}/card.json`), or add its size to shadowcore/models/published.py"
        )
    found = [Work("prepare_text", name) for name in study.texts]
    prepared = [Work("prepare_benchmark", name) for name in study.evaluation.tasks if name in BENCHMARKS]
    found += [*prepared, Work("gather_benchmarks", "gather_benchmarks")] if prepared else []
    found += [Work("check_disjoint", "+".join(pair)) for pair in jobs.disjoint_pairs(conditions)]
    calibrated = {(one.model, one.calibration) for one in conditions if METHODS[one.method].reads == "thresholds"}
    for model in study.models:
        found.append(costs.relufied(model) if study.models[model].relufied else costs.fetched(model))
        for calibration in study.calibration:
            found += costs.traced("trace", model, f"{model}/{calibration}", partial(jobs.trace, model))
            found.append(Work("average", f"{model}/{calibration}"))
            if (model, calibration) in calibrated:
                found.append(costs.thresholds(model, calibration))
        if study.latency:
            found.append(costs.timed(model))
        found.append(Work("draw", model))
    for place, predictor in jobs.trained.items():
        found.append(costs.training("/".join(place), predictor))
    for predictor in sorted({one for one in map(jobs.traced_under, jobs.trained.values()) if one}):
        name = f"{predictor.model}/{predictor.calibration}/{predictor.slug(study.seed)}"
        found += costs.traced("trace_on_policy", predictor.model, name, partial(jobs.trace_on_policy, predictor))
    found += [costs.evaluated(key) for key in jobs.evaluations]
    found += [costs.timed_dimensions(*key) for key in jobs.timed_dimensions]
    return found + [Work(rule, rule) for rule in ("aggregate", "check_tables", "judge_claims", "write_page")]


def disk(study: Study, works: Sequence[Work]) -> float:
    """Bytes that a study has on its disk when it has most of them: all that it writes, or what it does not delete."""
    if not study.one_model_at_a_time:
        return sum(one.written for one in works)
    of = {model: [one for one in works if one.name.split("/")[0] == model] for model in study.models}
    kept = [sum(one.written for one in part if one.rule not in DELETED) for part in of.values()]
    return max(sum(kept[:i]) + sum(one.written for one in part) for i, part in enumerate(of.values()))


def size_of(jobs: Jobs, model: str) -> Size | None:
    """A model's size: from its card if it was fetched, from what its source says, or as published; None if unknown."""
    card = jobs.root / "models" / model / "card.json"
    if card.is_file():
        record = read_card(card)
        return Size(record["model_type"], Dimensions(**record["dimensions"]))
    kind, fields = next(iter(jobs.study.models[model].source.items()))
    if kind == Relufied.KIND:
        return size_of(jobs, fields["teacher"])
    if kind == "random":
        one = RandomModel(**fields)
        if one.heads < 1:  # which the source itself refuses
            return None
        heads = (one.heads, one.kv_heads or one.heads, one.width // one.heads)
        return Size(one.family, Dimensions(one.layers, one.width, *heads, one.neurons, one.vocabulary, one.positions))
    if kind == "folder" and ((folder := Path(fields["path"]).expanduser()) / "config.json").is_file():
        config = read_config(folder)
        return Size(config.model_type, dimensions_of(config))
    # a repository, or a package's model
    return PUBLISHED.get(fields.get("repo", fields.get("name", "")).split("/")[-1].lower().removesuffix("-hf"))


def trace_bytes(spec: Mapping[str, Any], sizes: Dimensions) -> int:
    """Bytes of the tensors in one shard's trace: see `shadowcore.method.tracing`. spec: of the stage `trace`."""
    windows = len(range(spec["shard"], spec["windows"], spec["shards"]))
    tokens = windows * spec["tokens_per_window"]
    sites = {group.site for one in spec["designs"] for group in groups_of(one["method"], sizes.layers, one["segments"])}
    widths = {"residual": sizes.width, "heads": sizes.heads * sizes.head_width}
    features = 2 * tokens * sum(widths[site.what] for site in sites)
    units = [sizes.units(kind) for kind in KINDS]
    moments = 2 * 8 * len(spec["criteria"]) * sizes.layers * sum(units)
    codes = sum(math.ceil(count * spec["token_bits"] / 8) + 4 for count in units)  # and a maximum each
    return moments + tokens * sizes.layers * codes * len(spec["token_criteria"]) + features + 4 * windows


class Measured(NamedTuple):
    """What is measured of a condition: documents, and tokens that pass through the model.

    prompts: of dense prompts that several conditions share; continued: of what follows them under one condition;
    whole: of one whose prompts are not dense, or in which every choice has its own.
    """

    documents: float
    prompts: float
    continued: float
    whole: float


def _dense_prompt(condition: Condition) -> bool:
    """Whether a condition's prompts run once, for all such conditions."""
    return not METHODS[condition.method].reads_prompt and PROTOCOLS[condition.protocol or "token"].dense_prompt


class Costs:
    """What single jobs of a study take."""

    def __init__(self, jobs: Jobs):
        self.jobs, self.study = jobs, jobs.study
        self.sizes = {model: size_of(jobs, model) for model in jobs.study.models}
        self.measured = {data: self._measured_on(data) for data in jobs.study.evaluation.texts}

    def of_model(self, rule: str, name: str, model: str, tokens: float, flops: int, batch: int, **more) -> Work:
        """A job that passes `tokens` through a model, `flops` for every weight and token, `batch` tokens at once."""
        size = self.sizes[model]
        if size is None:
            return Work(rule, name)
        one, backward = size.dimensions, flops > 2
        kept = one.layers * (8 * one.width + 3 * one.neurons) * 2 if backward else 8 * one.width  # a token
        width = BYTES[self.study.models[model].dtype]
        return Work(
            rule, name, flops=flops * size.multiplied * tokens, weights=size.parameters * width,
            activations=batch * (kept + 8 * one.vocabulary), **more,
        )  # fmt: skip

    def fetched(self, model: str) -> Work:
        """Published weights have 16 bits, packaged ones are expanded to 32."""
        size, kind = self.sizes[model], next(iter(self.study.models[model].source))
        written = 0 if size is None else size.parameters * (4 if kind == "package" else 2)
        return self.of_model("fetch_model", model, model, 0, 0, 0, written=written)

    def relufied(self, model: str) -> Work:
        """Distillation: the teacher writes text, then it runs forward and the student forward and backward.

        A parameter takes 18 bytes: weight, gradient and two moments in float32, and the teacher's weight in 16 bits.
        """
        recipe, size = self.study.models[model].relufied, self.sizes[model]
        if size is None:
            return Work("relufy", model)
        one, batch = size.dimensions, recipe.batch * self.study.traces.window_tokens
        kept = 4 * batch * one.layers * (8 * one.width + 3 * one.neurons)
        logits = 24 * min(batch * one.vocabulary, LOGITS_AT_ONCE)  # in float32, of both models, with gradients
        cache = min(CACHE_BYTES, 4 * recipe.written_tokens * one.layers * one.kv_heads * one.head_width)
        return Work(
            "relufy", model, flops=size.multiplied * (8 * recipe.steps * batch + 2 * recipe.written_tokens),
            written=4 * size.parameters, weights=18 * size.parameters, activations=max(kept + logits, cache),
        )  # fmt: skip

    def traced(self, rule: str, model: str, place: str, params: Callable[[str, str], dict[str, str]]) -> list[Work]:
        """The traces of a text: its training shards, and the held-out windows; params: of a split and shard."""
        found = []
        for split, shard in [*(("train", n) for n in range(self.study.traces.shards)), ("heldout", 0)]:
            spec = json.loads(params(split, str(shard))["spec"])
            spec = spec.get("trace", spec)
            windows = len(range(spec["shard"], spec["windows"], spec["shards"]))
            twice = any(CRITERIA[name].order == 2 for name in spec["criteria"])
            written = trace_bytes(spec, self.sizes[model].dimensions) if self.sizes[model] else 0
            found.append(
                self.of_model(
                    rule, f"{place}/{split}-{shard}", model, windows * spec["window_tokens"], 8 if twice else 4,
                    self.study.traces.batch * spec["window_tokens"], written=written,
                )
            )  # fmt: skip
        return found

    def thresholds(self, model: str, calibration: str) -> Work:
        """The magnitudes of all calibration windows."""
        plan = self.study.traces
        tokens = plan.windows * plan.window_tokens
        batch = plan.batch * plan.window_tokens
        return self.of_model("calibrate_thresholds", f"{model}/{calibration}", model, tokens, 2, batch)

    def training(self, name: str, one: PredictorId) -> Work:
        """A predictor's training on traces, or its tuning."""
        plan, size, recipe = self.study.traces, self.sizes[one.model], self.study.recipe_of(one.predictor)
        weights = self._weights(one)
        written = sum(weights.values()) * recipe.bits / 8
        if self.jobs.is_tuned(one):
            tokens = self.study.tuning.epochs * plan.windows * plan.window_tokens
            batch = self.study.tuning.batch * plan.window_tokens
            return self.of_model("tune_predictor", name, one.model, tokens, 4, batch, written=written)
        tokens, read = plan.windows * plan.tokens_per_window, 0
        if size is not None:
            units = sum(size.dimensions.units(kind) for kind in KINDS)
            read = tokens * size.dimensions.layers * units * plan.bits / 8
        epochs = recipe.training_recipe().epochs
        flops = 6 * tokens * sum(weights[kind] * epochs[kind] for kind in KINDS)
        return Work("train_predictor", name, flops, written=written, read=read)

    def _weights(self, one: PredictorId) -> dict[Kind, int]:
        """Weights of a predictor by kind of unit; none where the model's size is unknown."""
        recipe, size = self.study.recipe_of(one.predictor).training_recipe(), self.sizes[one.model]
        weights = dict.fromkeys(KINDS, 0)
        for group in groups_of(one.method, size.dimensions.layers, recipe.segments) if size else ():
            units = {"heads": size.dimensions.heads, "neurons": size.dimensions.neurons // recipe.block}
            for kind in KINDS:
                weights[kind] += recipe.rank[kind] * (size.dimensions.width + len(group.layers) * units[kind])
        return weights

    def evaluated(self, key: Evaluation) -> Work:
        """The evaluation of all conditions of a model, text and sparsity.

        Dense prompts run once for the conditions that are measured side by side, and what follows them under each.
        """
        plan, conditions, measured = self.study.evaluation, self.jobs.evaluations[key], self.measured[key[1]]
        oracle = key[2] == manifests.ORACLE
        predictors = {
            setup: {one.predictor_id: 2 * sum(self._weights(one.predictor_id).values())} if one.predictor_id else {}
            for setup, one in conditions.items()
        }
        found, flops = list(parts(predictors)), 0
        for part in found:
            dense = [one for one in map(conditions.get, part) if _dense_prompt(one)]
            whole = [one for one in map(conditions.get, part) if not _dense_prompt(one)]
            flops += 2 * measured.prompts if dense else 0
            for several, tokens in ((dense, measured.continued), (whole, measured.whole)):
                flops += tokens * sum(METHODS[one.method].flops for one in several)
                flops += 4 * tokens if oracle and several else 0  # scored once for all, forward and backward
        held = max(sum({path: n for setup in part for path, n in predictors[setup].items()}.values()) for part in found)
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
        found = [Measured(plan.windows, 0, windows, windows)]
        if "true_continuation" in plan.tasks:
            asked = self.study.texts[data].true_continuation
            prompts, choices = asked.context_words, CHOICES * asked.continuation_words  # of a document
            words = (prompts, choices, CHOICES * prompts + choices)
            tokens = (TOKENS_A_WORD * asked.documents * count for count in words)
            found.append(Measured(asked.documents, *tokens))
        if "second_half" in plan.tasks:
            found.append(Measured(plan.windows, windows / 2, windows / 2, windows))
        for name in plan.tasks if data == plan.texts[0] else ():
            if name not in BENCHMARKS:
                continue
            everything, *letters = LETTERS[name]
            count = plan.limit.get(name, everything)
            whole, prompts, choices = (count / everything * part / LETTERS_A_TOKEN for part in letters)
            rolling = BENCHMARKS[name].rolling
            for shots in [0] if rolling else [shots for shots in plan.fewshot if not shots or BENCHMARKS[name].train]:
                # an example in the prompt is about as long as what is asked
                longer = 0 if rolling else shots * whole * prompts / (whole - choices)
                found.append(Measured(count, prompts + longer, choices, (shots + 1) * whole))
        return Measured(*map(sum, zip(*found, strict=True)))

    def timed(self, model: str) -> Work:
        """Decoding: every mode at every sparsity, prompt and new tokens."""
        plan = self.study.latency
        modes = 2 + (2 + len(plan.methods)) * len(plan.sparsities_pct)
        tokens = modes * (plan.repeats + plan.warmup) * (plan.prompt_tokens + plan.new_tokens)
        return self.of_model("latency", model, model, tokens, 2, plan.prompt_tokens)

    def timed_dimensions(self, model: str, lengths: str) -> Work:
        """Decoding with random weights: every design and baseline at its sparsities."""
        spec, size = self.jobs.timed_dimensions[model, lengths], PUBLISHED[model]
        sparsities = len(spec["sparsities_pct"])
        designs = sum(len(one["sparsities_pct"]) or sparsities for one in spec["designs"])
        modes = 1 + 2 * sparsities + designs + len(spec["baselines"])
        tokens = modes * spec["batch"] * (2 * spec["prompt_tokens"] + spec["short_tokens"] + spec["new_tokens"])
        tokens *= spec["repeats"] + spec["warmup"]
        weights = size.parameters * BYTES[spec["dtype"]]
        name = f"{model}/{lengths}"
        return Work("latency_random", name, 2 * size.multiplied * tokens, weights=weights, alone=True)


def measured_rates(jobs: Jobs) -> dict[str, float]:
    """Multiplications a second by rule in a study that has run, wholly or in part: from its `benchmark:` files.

    A job counts whose multiplications took longer than its start: what is left of a shorter one is mostly chance.
    """
    done: dict[str, list[tuple[float, float]]] = {}
    for one in work(jobs):
        measured = one.measured_seconds(jobs.root)
        if one.flops and measured is not None:
            before = START + one.weights / LOADED
            if (seconds := measured - before) > before:
                done.setdefault(one.rule, []).append((one.flops, seconds))
    return {rule: sum(flops for flops, _ in found) / sum(s for _, s in found) for rule, found in done.items()}
