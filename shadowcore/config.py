"""The study's configuration file as a whole: its sections, and what must agree between them.

Above all stages: it knows every vocabulary below it. Stages do not know it; they get their own specification,
so that editing one part of a configuration reruns only what reads that part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config_errors import sentence
from shadowcore.config_file import read_yaml
from shadowcore.errors import ConfigError, near_miss
from shadowcore.fields import Name, Seed, Strict, Switch, list_of
from shadowcore.measure.activation_masks import BASELINES
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.policies import WHOLE_MODEL_POLICIES
from shadowcore.method.predictors import PREDICTORS
from shadowcore.recipes import Preset, Trained, Tuned
from shadowcore.sections import Evaluation, Grid, Latency, LatencyRandom, Model, Text, Traces, made_here, needs_network
from shadowcore.stages.conditions import NEEDS_PROMPTS


def _offline(value: Any) -> bool | str:
    """True, false or a folder; `--config offline=true` arrives as text, and `no` or `off` is no folder's name."""
    text = value.lower() if isinstance(value, str) else None
    if text in ("true", "false"):
        return text == "true"
    if not isinstance(value, bool | str) or text in ("", "no", "off", "none", "null", "~", "yes", "on", "0", "1"):
        raise ValueError(f"{value!r} is not allowed; use true, false, or the folder that `shadowcore fetch` made")
    return value


Offline = Annotated[bool | str, BeforeValidator(_offline)]


class Study(Strict):
    """A whole configuration file.

    offline: nothing touches a network; true where every source is local, or the folder `shadowcore fetch` made.
    run_anyway: on this machine, even if it has no GPU, or not the memory, that some job needs.
    """

    study: Name
    seed: Seed
    offline: Offline = False
    run_anyway: Annotated[Switch, Field(exclude=True)] = False  # not a part of the page that the study writes
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    texts: Annotated[dict[Name, Text], Field(min_length=1)]
    calibration: list_of(str, least=1)
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
            *(
                (f"models.{name}.source.relufied.{key}", [getattr(one.relufied, key)], known)
                for name, one in self.models.items() if one.relufied
                for key, known in (("teacher", self.models), ("text", self.texts))
            ),
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
                    raise ValueError(f"{where}: '{name}' has a seed in its name; use `seeds: [{one.seed}]`")
                if one.round and not self.traces.on_policy:
                    raise ValueError(f"{where}: '{name}' is trained on sparse traces; `traces.on_policy` is missing")
                if one.tuned and not self.tuning:
                    raise ValueError(f"{where}: '{name}' is tuned; `tuning` is missing")
        return self

    @model_validator(mode="after")
    def teachers_are_made_first(self) -> Study:
        """A relufied model must lead back to one that is fetched, and its teacher must write enough for a step."""
        for name, one in self.models.items():
            where, taught = f"models.{name}.source.relufied", [name]
            while (recipe := self.models[taught[-1]].relufied) and taught[-1] not in taught[:-1]:
                taught.append(recipe.teacher)
            if recipe:
                raise ValueError(f"{where}.teacher: {' <- '.join(taught)} is a circle; a teacher must not depend on it")
            if one.relufied:
                one.relufied.require_tokens(self.traces.window_tokens, where)
        return self

    @model_validator(mode="after")
    def grids_are_whole(self) -> Study:
        """A grid must name what its methods need, and what they can do."""
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
        return self

    @model_validator(mode="after")
    def texts_and_traces_suffice(self) -> Study:
        """Texts and traces must hold what is evaluated and trained on."""
        for name in self.evaluation.texts if "true_continuation" in self.evaluation.tasks else ():
            if self.texts[name].true_continuation is None:
                raise ValueError(f"texts.{name}: true_continuation is missing, which evaluation.tasks asks for")
        tokens = self.traces.windows * self.traces.tokens_per_window
        for name in sorted(self.used_presets):
            if (batch := self.predictors[name].batch) > tokens:
                raise ValueError(
                    f"predictors.{name}.batch: {batch} is too large; traces.windows x traces.tokens_per_window is "
                    f"{tokens} tokens"
                )
        unfit = [name for name in self.token_criteria if not CRITERIA[name].has_token_form]
        if unfit:
            raise ValueError(f"conditions: criteria {unfit} have no token form, which predictors and oracle need")
        missing = sorted(self.used_criteria - set(self.traces.criteria))
        if missing:
            raise ValueError(f"traces.criteria: {missing} are used by conditions or latency but not traced")
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
                f"offline: {remote[0]} comes over the network; use the folder that `shadowcore fetch` makes in place "
                "of `true`"
            )
        return self

    def fetched(self, folder: str) -> Study:
        """This study with every source in the folder that `shadowcore fetch` made of it."""

        def local(place: str) -> dict[str, Any]:
            return {"source": {"folder": {"path": f"{folder}/{place}"}}}

        models = {
            name: one if made_here(one.source) else one.model_copy(update=local(f"models/{name}"))
            for name, one in self.models.items()
        }
        texts = {name: one.model_copy(update=local(f"texts/{name}")) for name, one in self.texts.items()}
        evaluation = self.evaluation.model_copy(update={"offline_dir": f"{folder}/benchmarks"})
        return self.model_copy(update={"models": models, "texts": texts, "evaluation": evaluation})

    @property
    def used_presets(self) -> set[str]:
        """Presets of the predictors that are trained, for conditions or the latency."""
        names = [name for grid in self.conditions if set(grid.methods) & set(PREDICTORS) for name in grid.predictors]
        return {Trained.named(name).preset for name in [*names, *([self.latency.predictor] if self.latency else [])]}

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
    """The study in a configuration mapping; ConfigError names the first key that is wrong."""
    try:
        study = Study.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {sentence(error, Study)}") from None
    return study.fetched(study.offline) if isinstance(study.offline, str) else study


def load_study(path: Path) -> Study:
    """The study in a YAML file."""
    return parse_study(read_yaml(path), str(path))
