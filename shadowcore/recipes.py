"""How a configuration describes predictors: what one is called, and how it is trained and tuned."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from shadowcore.fields import Percent, Positive, Strict, among
from shadowcore.method.training import TARGETS, Recipe
from shadowcore.models.families import KINDS_OF

NAME = re.compile(r"(?P<preset>[^@]+)(@seed(?P<seed>\d+))?(@(?P<round>[1-9]\d*))?(?P<tuned>@tuned)?")


class Trained(NamedTuple):
    """What a predictor is called: its preset, its round on the sparse model, and whether it was tuned there.

    A configuration says preset[@N][@tuned]: trained on traces under the masks of round N - 1, and tuned under its own.
    Paths say preset[@seedS][@N][@tuned] where the training's seed is not the study's.
    """

    preset: str
    seed: int | None = None
    round: int = 0
    tuned: bool = False

    @classmethod
    def named(cls, name: str) -> Trained:
        """The parts of a name; what is no such name is a preset that no configuration has."""
        parts = NAME.fullmatch(name)
        if parts is None:
            return cls(name)
        seed = None if parts["seed"] is None else int(parts["seed"])
        return cls(parts["preset"], seed, int(parts["round"] or 0), bool(parts["tuned"]))

    def __str__(self) -> str:
        seed = "" if self.seed is None else f"@seed{self.seed}"
        return self.preset + seed + (f"@{self.round}" if self.round else "") + ("@tuned" if self.tuned else "")

    @property
    def configured(self) -> str:
        """The name in a configuration, whatever the seed."""
        return str(self._replace(seed=None))

    def rounds(self) -> list[Trained]:
        """The predictors that training this one takes, in their order; itself the last."""
        found = [self._replace(round=number, tuned=False) for number in range(self.round + 1)]
        return [*found, self] if self.tuned else found


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
