"""The static method: every unit's mean score over the calibration windows, and how much it varies."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.models.families import KINDS, Kind
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
    parts = []
    with ExitStack() as stack:
        traces = [stack.enter_context(artifacts.open_tensors(path, tracing.SCHEMA)) for path in inputs.traces]
        for done, criterion in enumerate(spec.criteria, 1):
            for kind in KINDS:
                parts.append(averages(spec, criterion, kind, tracing.sequence_moments(traces, criterion, kind)))
            progress(done, len(spec.criteria))
    # one chunk a column: Parquet's pages, and so the file's bytes, follow chunks
    table = pa.concat_tables(parts).combine_chunks() if parts else CRITERIA.build([])
    artifacts.write_table(outputs.scores, CRITERIA.schema, table, header("average", spec, inputs))


def averages(spec: Spec, criterion: str, kind: Kind, scores: tracing.Moments) -> pa.Table:
    """Rows of CRITERIA, column by column: a large model has millions of them, one for every unit and criterion."""
    layers, units = scores.mean.shape
    keys = {"model": spec.model, "calibration": spec.calibration, "criterion": criterion, "kind": kind}
    columns = {name: pa.repeat(value, layers * units) for name, value in keys.items()} | {
        "layer": torch.arange(layers).repeat_interleave(units).numpy(),
        "unit": torch.arange(units).repeat(layers).numpy(),
        "mean": scores.mean.flatten().numpy(),
        "deviation": scores.deviation.flatten().numpy(),
        "n": pa.repeat(scores.count, layers * units),
    }
    return pa.table(columns, schema=CRITERIA.arrow)


STAGE = Stage(Spec, Inputs, Outputs, run)
