"""The study: its configuration file, strictly checked, and the jobs and paths it expands into.

This is the top floor of the library: it knows every vocabulary below it. Stages do not know it; they get
their own specification, so that editing one part of a configuration reruns only what reads that part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.errors import ConfigError, near_miss, one_of
from shadowcore.measure.activation_masks import BASELINES
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.policies import POLICIES, WHOLE_MODEL_POLICIES
from shadowcore.method.predictors import PREDICTORS
from shadowcore.method.training import TARGETS, Recipe
from shadowcore.models.families import KINDS_OF
from shadowcore.models.published import PUBLISHED
from shadowcore.models.sources import DTYPES, MODEL_SOURCES
from shadowcore.provenance import fingerprint
from shadowcore.report.figures import FIGURES
from shadowcore.schemas import FINAL_TABLES, MEASURED_TABLES
from shadowcore.stages.base import parse_spec, to_json
from shadowcore.stages.conditions import NEEDS_PROMPTS, OWN_TASKS, Condition
from shadowcore.stages.latency_random import RIVALS
from shadowcore.text import TEXT_SOURCES

TASKS = (*OWN_TASKS, *BENCHMARKS)
CONSTANT_METHODS = ("random", "static")
METHODS = ("dense", *CONSTANT_METHODS, *BASELINES, *PREDICTORS, "oracle")
SPLITS = ("train", "heldout")


def preset_of(predictor: str) -> str:
    """The preset of a predictor, whichever its round."""
    return ROUND.sub("", predictor, count=1)


def among(choices) -> Any:
    """A string type that must be one of `choices`; the error names the near miss."""

    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"unknown '{value}'; {near_miss(str(value), choices)}")
        return value

    return Annotated[str, BeforeValidator(check)]


# a preset trained on traces under its own masks for the N-th time, and tuned under them: preset@N, preset@tuned, both
ROUND = re.compile(r"(?:@(?P<round>[1-9]\d*))?(?P<tuned>@tuned)?$")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*$")]
Percent = Annotated[int, Field(ge=0, lt=100, description="integer percent, 0 to 99")]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


# `--config offline=true` arrives as text
Offline = Annotated[bool | str, BeforeValidator(lambda value: True if value == "true" else value)]


class Strict(BaseModel):
    """No unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def source_of(kinds: dict[str, type]) -> Any:
    """A mapping with one key, the kind of source, over that source's own fields."""

    def check(value: Any) -> dict:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(f"one source is needed, under one of: {', '.join(sorted(kinds))}")
        kind, fields = next(iter(value.items()))
        one_of(kind, kinds, "source")
        fields = fields if isinstance(fields, dict) else {"name": fields}
        parse_spec(kinds[kind], fields, f"source.{kind}")
        return {kind: fields}

    return Annotated[dict, BeforeValidator(check)]


def needs_network(source: dict[str, dict]) -> bool:
    """Whether a model or a text is downloaded."""
    kind, fields = next(iter(source.items()))
    return kind in ("hub", "package") or (kind == "benchmark" and not fields.get("offline_dir"))


class Model(Strict):
    source: source_of(MODEL_SOURCES)
    dtype: among(DTYPES) = "float32"


class Questions(Strict):
    documents: Positive
    context_words: Positive
    continuation_words: Positive


class Text(Strict):
    source: source_of(TEXT_SOURCES)
    heldout_fraction: Fraction
    evaluation_fraction: Fraction
    true_continuation: Questions


class Masked(Strict):
    """Masks that act while a predictor learns: units, and the range of sparsities, percent."""

    units: among(KINDS_OF)
    lowest_pct: Percent
    highest_pct: Percent

    @model_validator(mode="after")
    def in_order(self) -> Masked:
        """The range must not be empty."""
        if self.lowest_pct > self.highest_pct:
            raise ValueError(f"lowest_pct {self.lowest_pct} is above highest_pct {self.highest_pct}")
        return self


class Traces(Strict):
    """How much text is scored, and how finely: see `shadowcore.method.tracing`."""

    window_tokens: Positive
    windows: Positive
    tokens_per_window: Positive
    shards: Positive
    bits: Literal[4, 8]
    heldout_windows: Positive
    heldout_tokens_per_window: Positive
    criteria: list[among(CRITERIA)]
    batch: Positive
    on_policy: Masked | None = None


class Tuned(Masked):
    """How predictors `preset@tuned` are tuned: see `shadowcore.method.tuning`."""

    epochs: Positive
    batch: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    temperature: Annotated[float, Field(gt=0)]


class Preset(Strict):
    """A predictor recipe: see `shadowcore.method.training`."""

    rank_heads: Positive
    rank_neurons: Positive
    segments: Positive = 1
    target: among(TARGETS)
    epochs: Positive
    batch: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]

    def recipe(self) -> Recipe:
        """As the training stage reads it."""
        fields = self.model_dump()
        rank = {kind: fields.pop(f"rank_{kind}") for kind in ("heads", "neurons")}
        return Recipe(rank=rank, **fields)


class Grid(Strict):
    """Conditions: every combination of these, for `models`, all unless given; `dense` is always there."""

    models: list[str] = []
    methods: list[among([m for m in METHODS if m != "dense"])]
    criteria: list[among(CRITERIA)] = []
    predictors: list[str] = []
    policies: list[among(POLICIES)] = ["per_layer"]
    protocols: list[among(PROTOCOLS)] = ["token"]
    units: list[among(KINDS_OF)] = ["neurons"]
    sparsities_pct: list[Percent]

    @model_validator(mode="after")
    def suits_baselines(self) -> Grid:
        """Methods without a predictor know their protocol, and remove neurons."""
        for method in sorted(set(self.methods) & set(BASELINES)):
            one = BASELINES[method]
            asked = {"protocols": self.protocols, "policies": self.policies, "units": self.units}
            fitting = {"protocols": {one.protocol}, "policies": one.policies, "units": {"neurons"}}
            if method == "relu":
                asked["sparsities_pct"], fitting["sparsities_pct"] = self.sparsities_pct, {0}
            for key, values in asked.items():
                if unfit := [value for value in values if value not in fitting[key]]:
                    raise ValueError(f"{key} {unfit} do not go with {method}; {sorted(fitting[key])} would fit")
        return self


class Evaluation(Strict):
    """What every condition is measured on. Benchmarks are measured once, in the jobs of the first text.

    offline_dir: folder of <task>/<split>.parquet, the hub where there is none; limit: documents of a benchmark,
    a seeded subset; fewshot: numbers of examples in its prompts; rolling_tokens: longest window of wikitext.
    """

    texts: list[str]
    tasks: list[among(TASKS)]
    offline_dir: str | None = None
    limit: dict[among(BENCHMARKS), Positive] = {}
    fewshot: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    rolling_tokens: Annotated[int, Field(ge=2)] = 2048
    windows: Positive
    window_tokens: Positive
    window_batch: Positive
    request_batch: Positive


class Latency(Strict):
    criterion: among(CRITERIA)
    predictor: str
    methods: list[among(PREDICTORS)]
    units: among(KINDS_OF)
    sparsities_pct: list[Percent]
    prompt_tokens: Annotated[int, Field(ge=2)]
    new_tokens: Positive
    repeats: Positive
    warmup: Annotated[int, Field(ge=0)]


class Design(Strict):
    """A predictor with random weights: see `shadowcore.stages.latency_random`."""

    method: among(PREDICTORS)
    rank_heads: Positive
    rank_neurons: Positive
    segments: Positive = 1
    bits: Literal[16, 8] = 16
    sparsities_pct: list[Percent] = []


class LatencyRandom(Strict):
    """Models known by their dimensions, with random weights: see `shadowcore.stages.latency_random`."""

    models: list[among(PUBLISHED)]
    dtype: among(DTYPES)
    units: among(KINDS_OF)
    sparsities_pct: list[Percent]
    designs: list[Design]
    baselines: list[among(RIVALS)]
    active: Fraction
    prompt_tokens: Positive
    short_tokens: Positive
    new_tokens: Positive
    repeats: Positive
    warmup: Annotated[int, Field(ge=0)]


class Study(Strict):
    """A whole configuration file.

    offline: nothing touches a network; true where every source is local, or the folder `shadowcore fetch` made.
    """

    study: Name
    seed: Annotated[int, Field(ge=0)]
    offline: Offline = False
    models: dict[Name, Model]
    texts: dict[Name, Text]
    calibration: list[str]
    traces: Traces
    predictors: dict[Name, Preset]
    tuning: Tuned | None = None
    conditions: list[Grid]
    evaluation: Evaluation
    latency: Latency | None = None
    latency_random: LatencyRandom | None = None

    @model_validator(mode="after")
    def names_exist(self) -> Study:
        """Names that refer to another part of the file must be there."""
        for where, names, known in (
            ("calibration", self.calibration, self.texts),
            ("evaluation.texts", self.evaluation.texts, self.texts),
            ("latency.predictor", [self.latency.predictor] if self.latency else [], self.predictors),
            *((f"conditions[{i}].predictors", g.predictors, self.predictors) for i, g in enumerate(self.conditions)),
            *((f"conditions[{i}].models", g.models, self.models) for i, g in enumerate(self.conditions)),
        ):  # fmt: skip
            for name in names:
                if preset_of(name) not in known:
                    raise ValueError(f"{where}: unknown '{name}'; {near_miss(name, known)}")
                if ROUND.search(name)["round"] and not self.traces.on_policy:
                    raise ValueError(f"{where}: '{name}' is trained on sparse traces; `traces.on_policy` is missing")
                if ROUND.search(name)["tuned"] and not self.tuning:
                    raise ValueError(f"{where}: '{name}' is tuned; `tuning` is missing")
        for i, grid in enumerate(self.conditions):
            trained = set(grid.methods) & set(PREDICTORS)
            if trained and not grid.predictors:
                raise ValueError(f"conditions[{i}]: {sorted(trained)} need `predictors`, names of presets")
            if set(grid.methods) - {"random", *BASELINES} and not grid.criteria:
                raise ValueError(f"conditions[{i}]: {sorted(grid.methods)} need `criteria`")
            parted = any(self.predictors[preset_of(name)].segments > 1 for name in grid.predictors)
            several = [m for m in grid.methods if m.startswith("layerwise") or (m == "segments" and parted)]
            if several and set(grid.policies) & WHOLE_MODEL_POLICIES:
                raise ValueError(
                    f"conditions[{i}]: {several[0]} decides layer by layer, policy "
                    f"{sorted(set(grid.policies) & WHOLE_MODEL_POLICIES)} needs every layer's scores first"
                )
            rolling = {name for name, one in BENCHMARKS.items() if one.rolling}
            if NEEDS_PROMPTS in grid.protocols and set(self.evaluation.tasks) <= rolling:
                raise ValueError(
                    f"conditions[{i}]: protocol prompt needs a task whose documents have prompts; "
                    "evaluation.tasks could have second_half"
                )
        unfit = [name for name in self.token_criteria if not CRITERIA[name].has_token_form]
        if unfit:
            raise ValueError(f"conditions: criteria {unfit} have no token form, which predictors and oracle need")
        missing = sorted(self.used_criteria - set(self.traces.criteria))
        if missing:
            raise ValueError(f"traces.criteria: {missing} are used by conditions or latency but not traced")
        for name in self.traces.criteria:
            found, needed = self.traces.window_tokens, CRITERIA[name].least_tokens + 1
            if found < needed:
                raise ValueError(f"traces.window_tokens: {found} found; {name} needs {needed} or more")
        if self.traces.tokens_per_window >= self.traces.window_tokens:
            raise ValueError(
                "traces.tokens_per_window: fewer than window_tokens are needed, the last token scores none"
            )
        return self

    @model_validator(mode="after")
    def reachable(self) -> Study:
        """Offline, every source must be local, or have been fetched."""
        from_hub = [name for name in self.evaluation.tasks if name in BENCHMARKS and not self.evaluation.offline_dir]
        remote = [
            *(f"models.{name}" for name, one in self.models.items() if needs_network(one.source)),
            *(f"texts.{name}" for name, one in self.texts.items() if needs_network(one.source)),
            *(f"evaluation.tasks: {name}" for name in from_hub),
        ]
        if self.offline is True and remote:
            raise ValueError(
                f"offline: {remote[0]} comes over the network; the folder that `shadowcore fetch` makes would fit in "
                "place of `true`"
            )
        return self

    def fetched(self, folder: str) -> Study:
        """This study with every source in the folder that `shadowcore fetch` made of it."""

        def local(place: str) -> dict[str, Any]:
            return {"source": {"folder": {"path": f"{folder}/{place}"}}}

        models = {
            name: one if "random" in one.source else one.model_copy(update=local(f"models/{name}"))
            for name, one in self.models.items()
        }
        texts = {name: one.model_copy(update=local(f"texts/{name}")) for name, one in self.texts.items()}
        evaluation = self.evaluation.model_copy(update={"offline_dir": f"{folder}/benchmarks"})
        return self.model_copy(update={"models": models, "texts": texts, "evaluation": evaluation})

    @property
    def used_criteria(self) -> set[str]:
        """Criteria of all conditions and of the latency."""
        used = {name for grid in self.conditions for name in grid.criteria}
        return used | ({self.latency.criterion} if self.latency else set())

    @property
    def token_criteria(self) -> tuple[str, ...]:
        """Criteria that a trained predictor or the oracle scores tokens by."""
        grids = [grid for grid in self.conditions if set(grid.methods) & {*PREDICTORS, "oracle"}]
        used = {name for grid in grids for name in grid.criteria}
        return tuple(sorted(used | ({self.latency.criterion} if self.latency else set())))


def parse_study(data: Any, where: str) -> Study:
    """The study in a configuration mapping; ConfigError names the first key that does not fit."""
    try:
        study = Study.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise ConfigError(f"{where}: {key}: {_sentence(first, data)}") from None
    return study.fetched(study.offline) if isinstance(study.offline, str) else study


def load_study(path: Path) -> Study:
    """The study in a YAML file."""
    try:
        return parse_study(yaml.safe_load(Path(path).read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None


def _sentence(error: dict, data: Any) -> str:
    if error["type"] != "extra_forbidden":
        found = error.get("input")
        shown = "" if isinstance(found, (dict, list)) else f" (found {found!r})"
        return error["msg"].removeprefix("Value error, ") + shown
    return f"unknown key; {near_miss(str(error['loc'][-1]), _fields_at(error['loc'][:-1]))}"


def _fields_at(location: tuple) -> list[str]:
    """Keys that a place in the configuration may have."""
    here: Any = Study
    for part in location:
        field = getattr(here, "model_fields", {}).get(part)
        if field is not None:
            here = field.annotation
        inner = [a for a in getattr(here, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        here = inner[0] if inner else here
    return list(getattr(here, "model_fields", {}))


@dataclass(frozen=True)
class Setup:
    """A condition of a model and a text, but for its sparsity: a row of the study's grid."""

    condition: Condition

    @property
    def name(self) -> str:
        """How paths call it."""
        one = self.condition
        parts = (
            one.method,
            one.calibration,
            None if one.method == "random" else one.criterion,
            one.predictor,
            one.policy,
            one.units,
            None if one.protocol == "token" else one.protocol,
        )
        return "+".join(part for part in parts if part)


class Jobs:
    """What a study runs: conditions by path name, specifications of every stage, and result paths."""

    def __init__(self, study: Study, results: Path = Path("results")):
        self.study, self.root = study, results / study.study
        self.conditions: dict[tuple[str, str, str, int], Condition] = {}
        for model, data in product(study.models, study.evaluation.texts):
            dense = Condition(model=model, data=data, method="dense", seed=study.seed)
            for one in (dense, *self._sparse(dense)):
                self.conditions[model, data, Setup(one).name, one.sparsity_pct] = one

    def _sparse(self, dense: Condition):
        for grid in self.study.conditions:
            if grid.models and dense.model not in grid.models:
                continue
            for method, policy, protocol, units, pct in product(
                grid.methods, grid.policies, grid.protocols, grid.units, grid.sparsities_pct
            ):
                one = replace(dense, method=method, policy=policy, protocol=protocol, units=units, sparsity_pct=pct)
                if method == "random":
                    yield replace(one, criterion="random")
                    continue
                if method == "relu":
                    one = replace(one, policy=None)  # what is zero is removed, however much it is
                criteria = [None] if method in BASELINES else grid.criteria
                predictors = grid.predictors if method in PREDICTORS else [None]
                # these go by the evaluated example itself: they have no calibration text
                calibrations = [None] if method in ("oracle", "griffin", "relu") else self.study.calibration
                for criterion, predictor, calibration in product(criteria, predictors, calibrations):
                    yield replace(one, criterion=criterion, predictor=predictor, calibration=calibration)

    def params(self, stage: str, spec: Any) -> dict[str, str]:
        """A rule's parameters: the specification as JSON, and what its code does."""
        return {"spec": to_json(spec), "code": fingerprint(f"shadowcore.stages.{stage.replace('-', '_')}")}

    def fetch_model(self, model: str) -> dict[str, str]:
        from shadowcore.stages.fetch_model import Spec

        kind, source = next(iter(self.study.models[model].source.items()))
        return self.params("fetch-model", Spec(kind, source))

    def prepare_text(self, name: str) -> dict[str, str]:
        from shadowcore.stages.prepare_text import Spec, Task

        one = self.study.texts[name]
        kind, source = next(iter(one.source.items()))
        task = Task(**one.true_continuation.model_dump())
        return self.params(
            "prepare-text", Spec(kind, source, one.heldout_fraction, one.evaluation_fraction, task, self.study.seed)
        )

    def prepare_benchmark(self, name: str) -> dict[str, str]:
        from shadowcore.stages.prepare_benchmark import Spec

        one = self.study.evaluation
        shots = max(one.fewshot) if BENCHMARKS[name].train and not BENCHMARKS[name].rolling else 0
        return self.params(
            "prepare-benchmark", Spec(name, one.offline_dir, one.limit.get(name), shots, self.study.seed)
        )

    def check_disjoint(self, calibration: str, data: str) -> dict[str, str]:
        from shadowcore.stages.check_disjoint import Spec

        return self.params("check-disjoint", Spec(calibration, data))

    def benchmarks(self, data: str) -> list[str]:
        """Files of the benchmarks that a text's jobs measure too: the first text's do."""
        evaluation = self.study.evaluation
        if data != evaluation.texts[0]:
            return []
        return [f"{self.root}/tasks/{name}.parquet" for name in evaluation.tasks if name in BENCHMARKS]

    def disjoint(self, key: tuple[str, str, str, int]) -> list[str]:
        """The record that a condition's calibration and evaluation documents are disjoint."""
        one = self.conditions[key]
        return [f"{self.root}/checks/disjoint/{one.calibration}+{one.data}.json"] if one.calibration else []

    def trace(self, model: str, split: str, shard: str) -> dict[str, str]:
        used = {(one.method, one.predictor) for one in self.conditions.values() if one.predictor}
        if self.study.latency:
            used |= {(method, self.study.latency.predictor) for method in self.study.latency.methods}
        plan = self.study.traces
        return self.params("trace", self._trace(model, split, shard, plan.criteria, self.study.token_criteria, used))

    def trace_on_policy(
        self, model: str, split: str, shard: str, method: str, criterion: str, predictor: str
    ) -> dict[str, str]:
        from shadowcore.stages.trace_on_policy import Spec

        masks = self.study.traces.on_policy
        traced = self._trace(model, split, shard, [], [criterion], {(method, predictor)})
        return self.params("trace-on-policy", Spec(traced, masks.units, masks.lowest_pct, masks.highest_pct))

    def _trace(
        self, model: str, split: str, shard: str, criteria: Iterable[str], token_criteria: Iterable[str], used: set
    ):
        """Specification of one shard of a split, for predictors `used`: pairs of design and preset."""
        from shadowcore.stages.trace import Design, Spec

        plan, train = self.study.traces, split == "train"
        designs = {Design(method, self.study.predictors[preset_of(predictor)].segments) for method, predictor in used}
        return Spec(
            split=split, shard=int(shard), shards=plan.shards if train else 1,
            windows=plan.windows if train else plan.heldout_windows, window_tokens=plan.window_tokens,
            tokens_per_window=plan.tokens_per_window if train else plan.heldout_tokens_per_window,
            designs=tuple(sorted(designs, key=str)), criteria=tuple(criteria), token_criteria=tuple(token_criteria),
            token_bits=plan.bits if train else 8, batch=plan.batch,
            dtype=self.study.models[model].dtype, seed=self.study.seed,
        )  # fmt: skip

    def traces(self, model: str, calibration: str, predictor: str, round_of: str, split: str) -> list[str]:
        """Traces of a split that a predictor of a round learns from: the dense model's, or those under its last round.

        predictor: the part of its path name before the preset.
        """
        folder = f"{self.root}/traces/{model}/{calibration}"
        if number := ROUND.search(round_of)["round"]:
            before = int(number) - 1
            folder += f"/{predictor}+{preset_of(round_of)}" + (f"@{before}" if before else "")
        shards = self.study.traces.shards if split == "train" else 1
        return [f"{folder}/{split}-{shard}.safetensors" for shard in range(shards)]

    def average(self, model: str, calibration: str) -> dict[str, str]:
        from shadowcore.stages.average import Spec

        return self.params("average", Spec(model, calibration, tuple(self.study.traces.criteria)))

    def calibrate_thresholds(self, model: str, calibration: str) -> dict[str, str]:
        from shadowcore.stages.calibrate_thresholds import Spec

        plan = self.study.traces
        reached = {one.sparsity_pct for one in self.conditions.values() if one.method == "threshold"}
        spec = Spec(
            model=model, calibration=calibration, windows=plan.windows, window_tokens=plan.window_tokens,
            batch=plan.batch, sparsities_pct=tuple(sorted(reached)), dtype=self.study.models[model].dtype,
            seed=self.study.seed,
        )  # fmt: skip
        return self.params("calibrate-thresholds", spec)

    def train_predictor(self, model: str, calibration: str, method: str, criterion: str, predictor: str):
        from shadowcore.stages.train_predictor import Spec

        return self.params("train-predictor", Spec(**self._trained(model, calibration, method, criterion, predictor)))

    def tune_predictor(self, model: str, calibration: str, method: str, criterion: str, predictor: str):
        """predictor: the one to tune, without `@tuned`."""
        from shadowcore.stages.tune_predictor import Spec, Tuning

        tuning, plan = self.study.tuning.model_dump(), self.study.traces
        spec = Spec(
            **self._trained(model, calibration, method, criterion, f"{predictor}@tuned"),
            units=tuning.pop("units"), tuning=Tuning(**tuning), windows=plan.windows,
            heldout_windows=plan.heldout_windows, window_tokens=plan.window_tokens,
            dtype=self.study.models[model].dtype,
        )  # fmt: skip
        return self.params("tune-predictor", spec)

    def _trained(self, model: str, calibration: str, method: str, criterion: str, predictor: str) -> dict[str, Any]:
        """What training and tuning are told alike."""
        reported = sorted({pct for grid in self.study.conditions for pct in grid.sparsities_pct})
        return {
            "model": model, "calibration": calibration, "method": method, "criterion": criterion,
            "predictor": predictor, "recipe": self.study.predictors[preset_of(predictor)].recipe(),
            "sparsities_pct": tuple(reported), "token_bits": self.study.traces.bits, "heldout_bits": 8,
            "seed": self.study.seed,
        }  # fmt: skip

    def evaluate(self, stage: str, key: tuple[str, str, str, int]) -> dict[str, str]:
        from shadowcore.stages.conditions import Spec

        sizes, condition = self.study.evaluation, self.conditions[key]
        spec = Spec(
            condition=condition, windows=sizes.windows, window_tokens=sizes.window_tokens,
            window_batch=sizes.window_batch, request_batch=sizes.request_batch,
            dtype=self.study.models[condition.model].dtype,
            tasks=tuple(name for name in sizes.tasks if name not in BENCHMARKS or condition.data == sizes.texts[0]),
            fewshot=tuple(sizes.fewshot), rolling_tokens=sizes.rolling_tokens,
        )  # fmt: skip
        return self.params(stage, spec)

    def latency(self, model: str) -> dict[str, str]:
        from shadowcore.stages.latency import Spec

        plan = self.study.latency
        kind = next(iter(self.study.models[model].source))
        spec = Spec(
            model=model, weights="random" if kind == "random" else "pretrained", dtype=self.study.models[model].dtype,
            criterion=plan.criterion, units=plan.units, sparsities_pct=tuple(plan.sparsities_pct),
            predictors=tuple(plan.methods), prompt_tokens=plan.prompt_tokens, new_tokens=plan.new_tokens,
            repeats=plan.repeats, warmup=plan.warmup, seed=self.study.seed,
        )  # fmt: skip
        return self.params("latency", spec)

    def latency_random(self, model: str) -> dict[str, str]:
        from shadowcore.stages.latency_random import Spec

        plan = self.study.latency_random.model_dump(exclude={"models"}) | {"model": model, "seed": self.study.seed}
        return self.params("latency-random", parse_spec(Spec, plan))

    def predictor(self, model: str, calibration: str, method: str, criterion: str, predictor: str) -> str:
        """Path stem of a trained predictor."""
        return f"{self.root}/predictors/{model}/{calibration}/{method}+{criterion}+{predictor}"

    def latency_predictors(self, model: str) -> list[str]:
        """Path stems of the predictors whose speed is measured."""
        plan = self.study.latency
        return [
            self.predictor(model, self.study.calibration[0], method, plan.criterion, plan.predictor)
            for method in plan.methods
        ]

    def predictors(self) -> list[str]:
        """Path stems of every predictor some condition or the latency uses, sorted."""
        used = {
            self.predictor(one.model, one.calibration, one.method, one.criterion, one.predictor)
            for one in self.conditions.values()
            if one.predictor
        }
        if self.study.latency:
            used |= {path for model in self.study.models for path in self.latency_predictors(model)}
        return sorted(used)

    def scores(self) -> list[str]:
        """Tables of mean scores."""
        return [f"{self.root}/scores/{m}/{c}.parquet" for m, c in product(self.study.models, self.study.calibration)]

    def outcomes(self) -> list[str]:
        """Every condition's outcomes."""
        return [f"{self.root}/outcomes/{m}/{d}/{s}/{pct}.parquet" for m, d, s, pct in self.conditions]

    def latencies(self) -> list[str]:
        """Path stems of latency measurements."""
        checkpoints = self.study.models if self.study.latency else []
        return [f"{self.root}/latency/{model}" for model in checkpoints] + [
            f"{self.root}/latency/random/{model}" for model in self.timed_dimensions()
        ]

    def timed_dimensions(self) -> list[str]:
        """Published models that are timed with random weights."""
        return self.study.latency_random.models if self.study.latency_random else []

    def tables(self, names: Iterable[str] = FINAL_TABLES) -> list[str]:
        """The final tables."""
        return [f"{self.root}/tables/{name}.parquet" for name in names]

    def measured_tables(self) -> list[str]:
        """The final tables that hold measurements: what is checked, judged and drawn."""
        return self.tables(MEASURED_TABLES)

    def figures(self) -> list[str]:
        """Path stems of the figures."""
        return [f"{self.root}/figures/{model}/{name}" for model, name in product(self.study.models, FIGURES)]
