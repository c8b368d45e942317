"""How a configuration describes predictors: what one is called, and how it is trained and tuned."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from shadowcore.fields import AboveZero, Number, Percent, Positive, Strict, among
from shadowcore.method.training import SCALINGS, TARGETS, Recipe
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
    learning_rate: AboveZero
    temperature: AboveZero


# presets that a configuration names instead of writing numbers; what it writes beside the name goes before
RECIPES: dict[str, dict[str, Any]] = {
    # ShadowLLM (arXiv 2406.16635): sizes, scaling, loss and optimiser of its accuracy results; the batch is ours
    "published": {
        "rank_heads": 2048, "rank_neurons": 1024, "target": "score", "scaling": "min_max",
        "epochs": 20, "epochs_heads": 100, "batch": 512, "learning_rate": 0.001, "weight_decay": 0.01,
    },
    # ours, for many tokens; on the sparse model (`@1`, `@tuned`) it gains most
    "best": {
        "rank_heads": 256, "rank_neurons": 1024, "target": "sqrt", "scaling": "standard",
        "epochs": 6, "batch": 512, "learning_rate": 0.001, "weight_decay": 0.01,
    },
}  # fmt: skip


class Preset(Strict):
    """A predictor recipe, see `shadowcore.method.training`; `recipe`: one of RECIPES, whose values hold unless given.

    epochs_heads: where heads are to have others than neurons.
    """

    recipe: among(RECIPES) | None = None
    rank_heads: Positive
    rank_neurons: Positive
    segments: Positive = 1
    target: among(TARGETS)
    scaling: among(SCALINGS) = "standard"
    epochs: Positive
    epochs_heads: Positive | None = None
    batch: Positive
    learning_rate: AboveZero
    weight_decay: Annotated[Number, Field(ge=0)]
    bits: Literal[16, 8] = 16
    block: Positive = 1

    @model_validator(mode="before")
    @classmethod
    def of_a_recipe(cls, data: Any) -> Any:
        """The named recipe's values, and those that are given."""
        name = data.get("recipe") if isinstance(data, dict) else None
        return RECIPES[name] | data if isinstance(name, str) and name in RECIPES else data

    def steps(self) -> Recipe:
        """As the training stage reads it."""
        rank = {"heads": self.rank_heads, "neurons": self.rank_neurons}
        epochs = {"heads": self.epochs_heads or self.epochs, "neurons": self.epochs}
        alike = ("segments", "target", "scaling", "batch", "learning_rate", "weight_decay", "bits", "block")
        return Recipe(rank=rank, epochs=epochs, **{name: getattr(self, name) for name in alike})
