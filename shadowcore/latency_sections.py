"""The sections of a configuration file that measure time: `latency` and `latency_random`."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shadowcore.config_types import Fraction, Percent, Positive, Strict, Within, among, list_of
from shadowcore.measure.latency_variants import RIVALS
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.predictors import DECODED
from shadowcore.models.families import KINDS_OF
from shadowcore.models.folders import DTYPES
from shadowcore.models.published import PUBLISHED


class Latency(Strict):
    criterion: among(CRITERIA)
    predictor: str
    methods: list_of(among((*DECODED, *PROXIES)), least=1)
    units: among(KINDS_OF)
    sparsities_pct: list_of(Percent, least=1)
    prompt_tokens: Annotated[int, Field(ge=2)]
    new_tokens: Positive
    repeats: Positive
    warmup: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def proxies_choose_neurons(self) -> Self:
        """A proxy needs neurons to choose among."""
        require_neurons("methods", self.methods, self.units)
        return self


def require_neurons(key: str, methods: Iterable[str], units: str) -> None:
    """Raise Within for a proxy in a section that skips heads only."""
    if (proxies := [name for name in methods if name in PROXIES]) and "neurons" not in KINDS_OF[units]:
        raise Within(key, f"{proxies[0]} chooses neurons, but `units` is {units}; use neurons or both, or leave it out")


class ForSome(Strict):
    """Settings for some of a section's models, or for all of them."""

    models: list_of(among(PUBLISHED)) = []

    def concerns(self, model: str) -> bool:
        """Whether the settings are for this model; without names they are for all models."""
        return not self.models or model in self.models


class Design(ForSome):
    """A predictor with random weights, or a proxy; see `shadowcore.stages.latency_random`."""

    method: among((*DECODED, *PROXIES))
    rank_heads: Positive | None = None
    rank_neurons: Positive | None = None
    segments: Positive = 1
    bits: Literal[16, 8] = 16
    sparsities_pct: list_of(Percent) = []

    @model_validator(mode="after")
    def predictors_have_ranks(self) -> Self:
        """A predictor must have both ranks; a proxy has none, and its name says its bits."""
        for key in ("rank_heads", "rank_neurons"):
            if (getattr(self, key) is None) == (self.method in DECODED):
                raise Within(key, f"must be given for a predictor and left out for a proxy; method is {self.method}")
        if self.method in PROXIES and (self.bits, self.segments) != (16, 1):
            raise Within("method", f"{self.method} is a proxy, which has neither `bits` nor `segments`; leave them out")
        return self


class Setting(ForSome):
    """Another batch size, other lengths and sparsities."""

    batch: Annotated[int, Field(ge=1, le=64)] = 1
    prompt_tokens: Annotated[int, Field(ge=2)] | None = None
    new_tokens: Positive | None = None
    sparsities_pct: list_of(Percent) = []
    baselines: list_of(among(RIVALS)) = ["cublas"]


class LatencyRandom(Strict):
    """Timing of published models with random weights; see `shadowcore.stages.latency_random`."""

    models: list_of(among(PUBLISHED), least=1)
    dtype: among(DTYPES)
    units: among(KINDS_OF)
    sparsities_pct: list_of(Percent, least=1)
    designs: list_of(Design)
    baselines: list_of(among(RIVALS))
    active: Fraction
    prompt_tokens: Annotated[int, Field(ge=2)]
    short_tokens: Positive
    new_tokens: Positive
    repeats: Positive
    warmup: Annotated[int, Field(ge=0)]
    also: list_of(Setting) = []

    def timed(self, model: str) -> dict[str, dict[str, Any]]:
        """Specifications of a model's timings, by batch, prompt and new tokens, such as "4x128+32".

        The main timing has all modes; those of `also` have dense, their baselines, static, given units, one design.
        """
        designs = [design.model_dump(exclude={"models"}) for design in self.designs if design.concerns(model)]
        main = self.model_dump(exclude={"models", "also"}) | {"model": model, "batch": 1, "designs": designs}
        other = main | {"designs": [design | {"sparsities_pct": []} for design in designs[:1]]}
        settings = [
            other | {"baselines": setting.baselines} | setting.model_dump(exclude={"models"}, exclude_unset=True)
            for setting in self.also
            if setting.concerns(model)
        ]
        specs: dict[str, dict[str, Any]] = {}
        for spec in (main, *settings):
            name = "{batch}x{prompt_tokens}+{new_tokens}".format(**spec)
            if spec["short_tokens"] >= spec["new_tokens"]:
                raise Within(
                    "short_tokens",
                    f"{spec['short_tokens']} is too large; it must be smaller than new_tokens ({spec['new_tokens']})",
                )
            if name in specs:
                raise Within("also", f"{model} is timed twice at {name} (batch x prompt + new tokens)")
            specs[name] = spec
        return specs

    @model_validator(mode="after")
    def once(self) -> Self:
        """No model must be timed twice at the same lengths, and proxies need neurons."""
        require_neurons("designs", [design.method for design in self.designs], self.units)
        for model in self.models:
            self.timed(model)
        return self
