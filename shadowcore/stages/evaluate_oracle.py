"""Measure the oracle: masks from each example's own true scores. A stage apart, for it alone needs criteria."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shadowcore.measure.oracle import OracleMasks
from shadowcore.stages.base import Stage
from shadowcore.stages.conditions import Outputs, Spec, measure


@dataclass(frozen=True)
class Inputs:
    card: Path
    weights: Path
    documents: Path
    tasks: Path
    benchmarks: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    one = spec.condition
    measure(
        "evaluate-oracle", spec, inputs, outputs,
        lambda model: OracleMasks(model, one.criterion, one.kinds, one.policy, one.sparsity_pct),
    )  # fmt: skip


STAGE = Stage(Spec, Inputs, Outputs, run)
