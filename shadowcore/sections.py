"""The sections of a configuration file: models, texts, traces, conditions and evaluation.

Each section is checked on its own; those of times and predictors are in `latency_sections` and `recipes`. Checks
between sections are in `shadowcore.config`.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config_types import Fraction, Percent, Positive, Seed, Strict, Within, among, list_of
from shadowcore.errors import ConfigError, near_miss
from shadowcore.measure.conditions import Condition
from shadowcore.measure.methods import SPARSE
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.policies import POLICIES
from shadowcore.method.relufy import Relufied
from shadowcore.models.families import KINDS_OF
from shadowcore.models.folders import DTYPES
from shadowcore.models.sources import MODEL_SOURCES, RandomModel
from shadowcore.recipes import MaskingConfig
from shadowcore.stages.base import parse_spec
from shadowcore.stages.conditions import OWN_TASKS
from shadowcore.texts.sources import TEXT_SOURCES

TASKS = (*OWN_TASKS, *BENCHMARKS)


def source_of(kinds: dict[str, type]) -> Any:
    """The type of a source: a mapping whose only key is the kind, over the fields of this kind."""

    def check(value: Any) -> dict:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(f"must be a mapping with one of these keys: {', '.join(sorted(kinds))} (found {value!r})")
        kind, fields = next(iter(value.items()))
        if kind not in kinds:
            raise ValueError(f"unknown '{kind}'; {near_miss(str(kind), kinds)}")
        names = [field.name for field in dataclasses.fields(kinds[kind])]
        if isinstance(fields, str) and names == ["name"]:
            fields = {"name": fields}
        if not isinstance(fields, dict):
            raise Within(kind, f"must be a mapping with the keys {', '.join(names)} (found {fields!r})")
        try:
            parse_spec(kinds[kind], fields, kind)
        except ConfigError as error:
            key, _, words = str(error).partition(": ")
            raise Within(key, words) from None
        return {kind: fields}

    return Annotated[dict, BeforeValidator(check)]


def needs_network(source: dict[str, dict]) -> bool:
    """Whether a source of a model or a text must be downloaded."""
    kind, fields = next(iter(source.items()))
    return kind in ("hub", "package") or (kind == "benchmark" and not fields.get("offline_dir"))


def made_here(source: dict[str, dict]) -> bool:
    """Whether the study makes the model itself, so that nothing is downloaded."""
    return next(iter(source)) in (RandomModel.KIND, Relufied.KIND)


class Model(Strict):
    source: source_of(MODEL_SOURCES | {Relufied.KIND: Relufied})
    dtype: among(DTYPES) = "float32"

    @property
    def relufied(self) -> Relufied | None:
        """The recipe that makes it from another model of the study; None if the model is fetched."""
        fields = self.source.get(Relufied.KIND)
        return fields and parse_spec(Relufied, fields)


class Questions(Strict):
    documents: Positive
    context_words: Positive
    continuation_words: Positive


class Text(Strict):
    """true_continuation: sizes of the multiple-choice task, only for texts that are evaluated with it."""

    source: source_of(TEXT_SOURCES)
    heldout_fraction: Fraction
    evaluation_fraction: Fraction
    true_continuation: Questions | None = None

    @model_validator(mode="after")
    def leaves_some_to_train_on(self) -> Self:
        """The two fractions must leave documents for training."""
        if (both := self.heldout_fraction + self.evaluation_fraction) >= 1:
            raise Within(
                "heldout_fraction",
                f"{self.heldout_fraction:g} and evaluation_fraction ({self.evaluation_fraction:g}) are {both:g} "
                "together; they must be less than 1, because the rest of the documents is needed for training",
            )
        return self


class Traces(Strict):
    """Amount of scored text, and precision of the scores; see `shadowcore.method.tracing`."""

    window_tokens: Positive
    windows: Positive
    tokens_per_window: Positive
    shards: Positive
    bits: Literal[4, 8]
    heldout_windows: Positive
    heldout_tokens_per_window: Positive
    criteria: list_of(among(CRITERIA))
    batch: Positive
    on_policy: MaskingConfig | None = None

    @model_validator(mode="after")
    def sizes_go_together(self) -> Self:
        """A window must have enough tokens to score, and a shard at least one window."""
        for key in ("tokens_per_window", "heldout_tokens_per_window"):
            if (tokens := getattr(self, key)) >= self.window_tokens:
                raise Within(
                    key,
                    f"{tokens} is too large; it must be smaller than window_tokens ({self.window_tokens}), because the "
                    "last token has no target",
                )
        if self.shards > self.windows:
            raise Within("shards", f"{self.shards} is too large; it must be at most windows ({self.windows})")
        for name in self.criteria:
            if self.window_tokens < (least := CRITERIA[name].least_tokens + 1):
                raise Within("window_tokens", f"{self.window_tokens} is too small; {name} needs at least {least}")
        return self


class Grid(Strict):
    """A grid of conditions: every combination of its values is measured; `dense` is always measured.

    models: all by default. seeds: of training, by default the study's; methods without training are not repeated.
    """

    models: list_of(str) = []
    methods: list_of(among(SPARSE), least=1)
    criteria: list_of(among(CRITERIA)) = []
    predictors: list_of(str) = []
    policies: list_of(among(POLICIES), least=1) = ["per_layer"]
    protocols: list_of(among(PROTOCOLS), least=1) = ["token"]
    units: list_of(among(KINDS_OF), least=1) = ["neurons"]
    sparsities_pct: list_of(Percent, least=1)
    seeds: list_of(Seed) = []

    @model_validator(mode="after")
    def suits_methods(self) -> Self:
        """Seeds need a trained method; other values must be among those that each method supports."""
        if self.seeds and not any(SPARSE[method].trained for method in self.methods):
            trained = ", ".join(name for name, method in SPARSE.items() if method.trained)
            raise Within("seeds", f"needs a trained method ({trained}); found {self.methods}")
        for method, key in product(self.methods, ("protocols", "policies", "units", "sparsities_pct")):
            allowed = getattr(SPARSE[method], key)
            unfit = [value for value in getattr(self, key) if allowed is not None and value not in allowed]
            if unfit:
                raise Within(key, f"{unfit} cannot be combined with {method}; allowed: {sorted(allowed)}")
        return self

    def combinations(self, dense: Condition, calibration: list[str]) -> Iterator[Condition]:
        """Every combination of the grid's values, on the model and the text of the condition `dense`."""
        for name, policy, protocol, units, pct in product(
            self.methods, self.policies, self.protocols, self.units, self.sparsities_pct
        ):
            method = SPARSE[name]
            for criterion, predictor, text, seed in product(
                self.criteria if method.scores else [method.criterion],
                self.predictors if method.trained else [None],
                calibration if method.reads else [None],
                self.seeds if method.trained and self.seeds else [dense.seed],
            ):
                yield replace(
                    dense, method=name, policy=policy if method.has_policy else None, protocol=protocol, units=units,
                    sparsity_pct=pct, criterion=criterion, predictor=predictor, calibration=text, seed=seed,
                )  # fmt: skip


class Evaluation(Strict):
    """Texts and tasks on which every condition is measured. The jobs of the first text also measure the benchmarks.

    offline_dir: folder with <task>/<split>.parquet, by default the hub; limit: documents of a benchmark, a seeded
    subset; fewshot: numbers of examples in its prompts; rolling_tokens: longest window of wikitext.
    """

    texts: list_of(str, least=1)
    tasks: list_of(among(TASKS))
    offline_dir: str | None = None
    limit: dict[among(BENCHMARKS), Positive] = {}
    fewshot: list_of(Annotated[int, Field(ge=0)], least=1) = [0]
    rolling_tokens: Annotated[int, Field(ge=2)] = 2048
    windows: Positive
    window_tokens: Annotated[int, Field(ge=2)]  # the first token is not predicted
    window_batch: Positive
    request_tokens: Positive

    @model_validator(mode="after")
    def benchmarks_are_measured(self) -> Self:
        """`limit` must name measured benchmarks, and `fewshot` must let every benchmark be measured."""
        if unused := sorted(set(self.limit) - set(self.tasks)):
            raise Within(f"limit.{unused[0]}", f"not among evaluation.tasks ({', '.join(self.tasks)})")
        for name in self.tasks if 0 not in self.fewshot else ():
            if name in BENCHMARKS and BENCHMARKS[name].train is None:
                raise Within(
                    "fewshot",
                    f"{self.fewshot} has no 0, but {name} has no training split with examples; add 0 to the list, or "
                    "leave the task out",
                )
        return self
