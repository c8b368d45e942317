"""The static method: every unit's mean score over the calibration windows, and how much it varies."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.models.families import KINDS
from shadowcore.schemas import CRITERIA
from shadowcore.stages.base import Progress, Stage, header


@dataclass(frozen=True)
class Spec:
    """Names for the table's rows, and the criteria to average."""

    model: str
    calibration: str
    criteria: tuple[str, ...]


@dataclass(frozen=True)
class Inputs:
    traces: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    scores: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("average")
    rows = []
    with ExitStack() as stack:
        traces = [stack.enter_context(artifacts.open_tensors(path, tracing.SCHEMA)) for path in inputs.traces]
        for done, criterion in enumerate(spec.criteria, 1):
            for kind in KINDS:
                scores = tracing.sequence_moments(traces, criterion, kind)
                keys = {"model": spec.model, "calibration": spec.calibration, "criterion": criterion, "kind": kind}
                rows += [
                    keys | {"layer": layer, "unit": unit, "n": scores.count, "mean": mean, "deviation": deviation}
                    for layer, units in enumerate(torch.stack((scores.mean, scores.deviation), -1).tolist())
                    for unit, (mean, deviation) in enumerate(units)
                ]
            progress(done, len(spec.criteria))
    artifacts.write_table(outputs.scores, CRITERIA.schema, CRITERIA.build(rows), header("average", spec, inputs))


STAGE = Stage(Spec, Inputs, Outputs, run)
