"""Draw one figure of one model from the final tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shadowcore.report import tables
from shadowcore.report.figures import FIGURES, TIMED_FIGURES, save
from shadowcore.stages.base import Stage


@dataclass(frozen=True)
class Spec:
    """figure: a name in report.figures.FIGURES or TIMED_FIGURES; model: whose rows."""

    figure: str
    model: str


@dataclass(frozen=True)
class Inputs:
    tables: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    pdf: Path
    png: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    figure = (FIGURES | TIMED_FIGURES)[spec.figure](tables.read(inputs.tables[0].parent), spec.model)
    save(figure, outputs.pdf.with_suffix(""))


STAGE = Stage(Spec, Inputs, Outputs, run)
