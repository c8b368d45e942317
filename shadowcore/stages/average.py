"""The static method: every unit's mean score over the calibration windows, and how much it varies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.models.families import KINDS, Dimensions
from shadowcore.schemas import CRITERIA
from shadowcore.stages.base import Progress, Stage, header, read_card


@dataclass(frozen=True)
class Spec:
    """Names for the table's rows, and the criteria to average."""

    model: str
    calibration: str
    criteria: tuple[str, ...]


@dataclass(frozen=True)
class Inputs:
    card: Path
    traces: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    scores: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("average")
    sizes = Dimensions(**read_card(inputs.card)["dimensions"])
    rows = []
    for done, criterion in enumerate(spec.criteria, 1):
        for kind in KINDS:
            parts = []
            for path in inputs.traces:
                with artifacts.open_tensors(path, tracing.SCHEMA) as trace:
                    parts.append(tracing.sequence_scores(trace, criterion, kind, sizes.units(kind)))
            scores = torch.cat(parts).double()  # (N, L, U)
            mean, deviation = scores.mean(0), scores.std(0, correction=0)
            for layer in range(mean.shape[0]):
                for unit in range(mean.shape[1]):
                    rows.append(
                        {
                            "model": spec.model, "calibration": spec.calibration, "criterion": criterion,
                            "kind": kind, "layer": layer, "unit": unit, "n": len(scores),
                            "mean": mean[layer, unit].item(), "deviation": deviation[layer, unit].item(),
                        }
                    )  # fmt: skip
        progress(done, len(spec.criteria))
    artifacts.write_table(outputs.scores, CRITERIA.schema, CRITERIA.build(rows), header("average", spec, inputs))


STAGE = Stage(Spec, Inputs, Outputs, run)
