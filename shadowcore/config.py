"""A study's configuration file: its sections, and checks between sections.

Stages do not import this module. Each stage gets a specification of its own, so that a change in one part of the
configuration reruns only stages that read this part.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config_file import read_yaml
from shadowcore.config_types import Name, Seed, Strict, Switch, list_of, sentence
from shadowcore.errors import ConfigError, near_miss
from shadowcore.latency_sections import Latency, LatencyRandom
from shadowcore.measure.methods import SPARSE
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.policies import WHOLE_MODEL_POLICIES
from shadowcore.method.predictors import TUNED_ONLY, groups_of
from shadowcore.recipes import AnyPredictor, PredictorConfig, TuningConfig
from shadowcore.sections import Evaluation, Grid, Model, Text, Traces, made_here, needs_network
from shadowcore.stages.conditions import NEEDS_PROMPTS


def _offline(value: Any) -> bool | str:
    """True, false or a folder. `--config offline=true` arrives as text; words such as `no` are refused as folders."""
    text = value.lower() if isinstance(value, str) else None
    if text in ("true", "false"):
        return text == "true"
    if not isinstance(value, bool | str) or text in ("", "no", "off", "none", "null", "~", "yes", "on", "0", "1"):
        raise ValueError(f"{value!r} is not allowed; use true, false, or the folder that `shadowcore fetch` made")
    return value


Offline = Annotated[bool | str, BeforeValidator(_offline)]


def _chain(where: str, name: str, parent: Callable[[str], str | None]) -> list[str]:
    """A name, the one that it is made from, and so on; ValueError if it is made from itself."""
    chain = [name]
    while before := parent(chain[-1]):
        if before in chain:
            way = " from ".join([*chain, before])
            raise ValueError(f"{where}: is made from itself ({way}); it must be made from another one")
        chain.append(before)
    return chain


class Study(Strict):
    """A whole configuration file.

    offline: use no network; true if every source is local, or the folder that `shadowcore fetch` made.
    run_anyway: run on this machine even if it lacks a GPU or memory that a job needs.
    one_model_at_a_time: run models in the order of `models`, and delete their weights and traces when they are no
    longer needed.
    """

    study: Name
    seed: Seed
    offline: Offline = False
    # these two are not shown on the study's page
    run_anyway: Annotated[Switch, Field(exclude=True)] = False
    one_model_at_a_time: Annotated[Switch, Field(exclude=True)] = False
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    texts: Annotated[dict[Name, Text], Field(min_length=1)]
    calibration: list_of(str, least=1)
    traces: Traces
    predictors: dict[Name, AnyPredictor]
    tuning: TuningConfig | None = None
    conditions: list[Grid]
    evaluation: Evaluation
    latency: Latency | None = None
    latency_random: LatencyRandom | None = None

    @model_validator(mode="after")
    def names_exist(self) -> Self:
        """Names that refer to another part of the file must exist there."""
        for where, names, known in (
            ("calibration", self.calibration, self.texts),
            *(
                (f"models.{name}.source.relufied.{key}", [getattr(model.relufied, key)], known)
                for name, model in self.models.items() if model.relufied
                for key, known in (("teacher", self.models), ("text", self.texts))
            ),
            ("evaluation.texts", self.evaluation.texts, self.texts),
            *((f"predictors.{name}", [predictor.parent] if predictor.parent else [], self.predictors)
              for name, predictor in self.predictors.items()),
            ("latency.predictor", [self.latency.predictor] if self.latency else [], self.predictors),
            *((f"conditions[{i}].predictors", g.predictors, self.predictors) for i, g in enumerate(self.conditions)),
            *((f"conditions[{i}].models", g.models, self.models) for i, g in enumerate(self.conditions)),
            *((f"conditions[{i}].calibration", g.calibration, self.texts) for i, g in enumerate(self.conditions)),
        ):  # fmt: skip
            for name in names:
                if name not in known:
                    raise ValueError(f"{where}: unknown '{name}'; {near_miss(name, known)}")
        return self

    @model_validator(mode="after")
    def predictors_can_be_made(self) -> Self:
        """A predictor must not be its own base, and a used predictor needs the section `tuning` or `on_policy`."""
        for name in self.predictors:
            _chain(f"predictors.{name}", name, lambda one: self.predictors[one].parent)
        for name in dict.fromkeys(name for used in self.used_predictors for name in self.chain(used)):
            predictor = self.predictors[name]
            if predictor.parent and not (self.tuning if predictor.tuned_from else self.traces.on_policy):
                section = "tuning" if predictor.tuned_from else "traces.on_policy"
                raise ValueError(f"predictors.{name}: needs the section `{section}`, which is missing")
        if self.latency and self.recipe_of(self.latency.predictor).scaling == "per_example":
            raise ValueError(
                f"latency.predictor: '{self.latency.predictor}' has scaling per_example, which our decoders do not "
                "support; the scaling must be standard or min_max"
            )
        return self

    @model_validator(mode="after")
    def teachers_are_made_first(self) -> Self:
        """The teachers of a relufied model must begin with a fetched model and write enough tokens for a step."""
        for name, model in self.models.items():
            where = f"models.{name}.source.relufied"
            _chain(f"{where}.teacher", name, lambda one: (recipe := self.models[one].relufied) and recipe.teacher)
            if model.relufied:
                model.relufied.require_tokens(self.traces.window_tokens, where)
        return self

    @model_validator(mode="after")
    def grids_are_whole(self) -> Self:
        """A grid must have the keys that its methods need, and only values that they support."""
        for i, grid in enumerate(self.conditions):
            trained = [name for name in grid.methods if SPARSE[name].trained]
            if trained and not grid.predictors:
                raise ValueError(f"conditions[{i}]: {sorted(trained)} need `predictors`, a list of names")
            if not grid.criteria and (scored := [name for name in grid.methods if SPARSE[name].scores]):
                raise ValueError(f"conditions[{i}]: {sorted(scored)} need `criteria`, a list of names")
            tuned = [name for name in trained if name in TUNED_ONLY]
            only_tuned = {name for name, one in self.predictors.items() if one.tuned_from and len(self.chain(name)) < 3}
            if tuned and (other := [name for name in grid.predictors if name not in only_tuned]):
                raise ValueError(
                    f"conditions[{i}].predictors: {tuned[0]} cannot have {other}; it needs predictors with "
                    "`tuned_from` that names a predictor trained on the dense model"
                )
            several = [name for name in trained if self._several_groups(name, grid.predictors)]
            if several and set(grid.policies) & WHOLE_MODEL_POLICIES:
                raise ValueError(
                    f"conditions[{i}]: {several[0]} chooses units layer by layer, but policy "
                    f"{sorted(set(grid.policies) & WHOLE_MODEL_POLICIES)} needs the scores of all layers first; use "
                    "per_layer"
                )
            rolling = {name for name, benchmark in BENCHMARKS.items() if benchmark.rolling}
            if NEEDS_PROMPTS in grid.protocols and set(self.evaluation.tasks) <= rolling:
                raise ValueError(
                    f"conditions[{i}]: protocol prompt needs a task whose documents have prompts, such as second_half; "
                    "add one to evaluation.tasks"
                )
        return self

    def _several_groups(self, design: str, predictors: list[str]) -> bool:
        """Whether a predictor of this design scores its layers in several steps."""
        counts = {self.recipe_of(name).segments for name in predictors}
        return any(len(groups_of(design, count + 2, count)) > 1 for count in counts)

    @model_validator(mode="after")
    def texts_and_traces_suffice(self) -> Self:
        """Texts and traces must have everything that evaluation and training need."""
        for name in self.evaluation.texts if "true_continuation" in self.evaluation.tasks else ():
            if self.texts[name].true_continuation is None:
                raise ValueError(f"texts.{name}.true_continuation: missing; the task true_continuation needs it")
        for name in sorted({self.chain(name)[0] for name in self.used_predictors}):
            recipe = self.predictors[name]
            count = recipe.examples_in(self.traces.windows, self.traces.tokens_per_window)
            there = f"the traces have {count} {recipe.examples}"
            if (recipe.tokens or 0) > count:
                raise ValueError(f"predictors.{name}.tokens: {recipe.tokens} is too large; {there}")
            if recipe.batch > (recipe.tokens or count):
                trained = f"predictors.{name}.tokens is {recipe.tokens}" if recipe.tokens else there
                raise ValueError(f"predictors.{name}.batch: {recipe.batch} is too large; {trained}")
        unfit = [name for name in self.token_criteria if not CRITERIA[name].has_token_form]
        if unfit:
            allowed = sorted(name for name, criterion in CRITERIA.items() if criterion.has_token_form)
            raise ValueError(
                f"conditions: criteria {unfit} have no score of a single token, which predictors and the oracle need; "
                f"allowed: {', '.join(allowed)}"
            )
        used = {name for grid in self.conditions for name in grid.criteria} | set(self.token_criteria)
        missing = sorted(used - set(self.traces.criteria))
        if missing:
            raise ValueError(f"traces.criteria: {missing} are missing, but conditions or latency use them")
        return self

    @model_validator(mode="after")
    def reachable(self) -> Self:
        """With `offline: true`, every source must be local or fetched."""
        from_hub = [name for name in self.evaluation.tasks if name in BENCHMARKS and not self.evaluation.offline_dir]
        remote = [
            *(f"models.{name}" for name, model in self.models.items() if needs_network(model.source)),
            *(f"texts.{name}" for name, text in self.texts.items() if needs_network(text.source)),
            *(f"evaluation.tasks: {name}" for name in from_hub),
        ]
        if self.offline is True and remote:
            raise ValueError(
                f"offline: {remote[0]} comes over the network; use the folder that `shadowcore fetch` makes in place "
                "of `true`"
            )
        return self

    def fetched(self, folder: str) -> Self:
        """This study with all sources in the folder that `shadowcore fetch` made."""

        def local(place: str) -> dict[str, Any]:
            return {"source": {"folder": {"path": f"{folder}/{place}"}}}

        models = {
            name: model if made_here(model.source) else model.model_copy(update=local(f"models/{name}"))
            for name, model in self.models.items()
        }
        texts = {name: text.model_copy(update=local(f"texts/{name}")) for name, text in self.texts.items()}
        evaluation = self.evaluation.model_copy(update={"offline_dir": f"{folder}/benchmarks"})
        return self.model_copy(update={"models": models, "texts": texts, "evaluation": evaluation})

    @property
    def calibrated(self) -> list[str]:
        """The texts that scores and predictors are made from: those of the study, then those of its grids."""
        return list(
            dict.fromkeys([*self.calibration, *(text for grid in self.conditions for text in grid.calibration)])
        )

    def chain(self, predictor: str) -> list[str]:
        """A predictor and all predictors that it begins with, the one trained on the dense model first."""
        return _chain(f"predictors.{predictor}", predictor, lambda one: self.predictors[one].parent)[::-1]

    def recipe_of(self, predictor: str) -> PredictorConfig:
        """Sizes and recipe of a predictor, which are those of the first predictor of its chain."""
        return self.predictors[self.chain(predictor)[0]]

    @property
    def used_predictors(self) -> list[str]:
        """Predictors that conditions or the section `latency` use."""
        grids = [grid for grid in self.conditions if any(SPARSE[name].trained for name in grid.methods)]
        names = [name for grid in grids for name in grid.predictors]
        return [*names, *([self.latency.predictor] if self.latency else [])]

    @property
    def timed_dimensions(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Specifications of the timings with random weights, by published model and lengths such as "4x128+32"."""
        plan = self.latency_random
        every = {model: plan.timed(model) for model in plan.models} if plan else {}
        return {(model, lengths): spec for model, specs in every.items() for lengths, spec in specs.items()}

    @property
    def token_criteria(self) -> tuple[str, ...]:
        """Criteria by which trained predictors or the oracle score single tokens."""
        grids = [grid for grid in self.conditions if any(SPARSE[name].scores == "token" for name in grid.methods)]
        used = {name for grid in grids for name in grid.criteria}
        return tuple(sorted(used | ({self.latency.criterion} if self.latency else set())))


def parse_study(data: Any, where: str) -> Study:
    """Check the mapping of a configuration; ConfigError names the first key that is wrong."""
    try:
        study = Study.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {sentence(error)}") from None
    return study.fetched(study.offline) if isinstance(study.offline, str) else study


def load_study(path: Path) -> Study:
    """Read and check a configuration file."""
    return parse_study(read_yaml(path), str(path))
