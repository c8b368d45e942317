"""Measure the oracle: masks from each example's own true scores. A stage apart, for it alone needs criteria."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore.measure.oracle import OracleMasks
from shadowcore.stages.base import Stage
from shadowcore.stages.conditions import Outputs, Source, Spec, measure


@dataclass(frozen=True)
class Inputs:
    card: Path
    weights: Path
    documents: Path
    tasks: Path
    benchmarks: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    measure("evaluate-oracle", spec, inputs, outputs, dict.fromkeys(spec.conditions, inputs), sources)


def sources(model: torch.nn.Module) -> Source:
    """Where conditions' keep masks come from."""
    return lambda one, inputs: OracleMasks(model, one.criterion, one.kinds, one.policy, one.sparsity_pct)


STAGE = Stage(Spec, Inputs, Outputs, run)
