"""Average every unit's score over the calibration windows, for the method `static`."""

from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.models.families import KINDS, Kind
from shadowcore.schemas import CRITERIA
from shadowcore.stages.base import Frozen, Outputs, Progress, header


class Spec(Frozen):
    """Names for the table's rows, and the criteria to average."""

    model: str
    calibration: str
    criteria: tuple[str, ...]


class Inputs(Frozen):
    traces: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("average")
    parts = []
    with ExitStack() as stack:
        traces = [stack.enter_context(artifacts.open_tensors(path, tracing.SCHEMA)) for path in inputs.traces]
        for done, criterion in enumerate(spec.criteria, 1):
            for kind in KINDS:
                parts.append(averages(spec, criterion, kind, tracing.sequence_moments(traces, criterion, kind)))
            progress(done, len(spec.criteria))
    # one chunk per column, because the pages of Parquet, and so the bytes of the file, depend on chunks
    table = pa.concat_tables(parts).combine_chunks() if parts else CRITERIA.build([])
    artifacts.write_table(outputs.scores, CRITERIA.schema, table, header("average", spec, inputs))


def averages(spec: Spec, criterion: str, kind: Kind, scores: tracing.Moments) -> pa.Table:
    """Rows of CRITERIA, made column by column because a large model has millions of them."""
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
