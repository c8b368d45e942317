"""What is put on a model: a method, criterion, predictor, policy, units and sparsity."""

from dataclasses import dataclass

from shadowcore.models.families import KINDS_OF, Kind


def joined(*parts: str | None) -> str:
    """A slug for paths: the parts that there are, with `+` between them, which no name has."""
    return "+".join(part for part in parts if part)


@dataclass(frozen=True, order=True)
class PredictorId:
    """Which trained predictor: its model and text, its design, what it learned to score, its name, and its seed."""

    model: str
    calibration: str
    method: str
    criterion: str
    predictor: str
    seed: int

    def slug(self, seed: int) -> str:
        """How paths call it below its model and text; with its own seed, if that is not `seed`, the study's."""
        return joined(self.method, self.criterion, *self.named(seed))

    def named(self, seed: int) -> tuple[str, str | None]:
        """Its name and what paths say of its seed."""
        return self.predictor, None if self.seed == seed else f"seed{self.seed}"


@dataclass(frozen=True)
class Condition:
    """What is put on the model: the key columns of every evaluation row (schemas.CONDITION)."""

    model: str
    data: str
    method: str
    seed: int
    sparsity_pct: int = 0
    calibration: str | None = None
    criterion: str | None = None
    predictor: str | None = None
    policy: str | None = None
    protocol: str | None = None
    units: str | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit removed."""
        return KINDS_OF[self.units] if self.units else ()

    @property
    def predictor_id(self) -> PredictorId | None:
        """The predictor that it uses; None where nothing was trained."""
        if self.predictor is None:
            return None
        return PredictorId(self.model, self.calibration, self.method, self.criterion, self.predictor, self.seed)

    def slug(self, seed: int) -> str:
        """How paths call it, but for model, text and sparsity; seed: the study's."""
        return joined(
            self.method, self.calibration, None if self.criterion == self.method else self.criterion,
            *(self.predictor_id.named(seed) if self.predictor_id else ()), self.policy, self.units,
            None if self.protocol == "token" else self.protocol,
        )  # fmt: skip
