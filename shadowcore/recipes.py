"""How a configuration describes predictors: what one is called, and how it is trained and tuned."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from shadowcore.fields import Percent, Positive, Strict, among
from shadowcore.method.training import TARGETS, Recipe
from shadowcore.models.families import KINDS_OF

# a preset trained on traces under its own masks for the N-th time, and tuned under them: preset@N, preset@tuned, both
ROUND = re.compile(r"(?:@(?P<round>[1-9]\d*))?(?P<tuned>@tuned)?$")


def preset_of(predictor: str) -> str:
    """The preset of a predictor, whichever its round."""
    return ROUND.sub("", predictor, count=1)


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
