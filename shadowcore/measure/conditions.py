"""What is put on a model: a method, criterion, predictor, policy, units and sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from shadowcore.models.families import KINDS_OF, Kind


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
