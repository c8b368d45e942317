"""The three tables of a latency job: a row for each variant, for each of its repeats, and for each that was refused."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from shadowcore import artifacts, provenance
from shadowcore.measure import gpu_timing
from shadowcore.schemas import LATENCY, LATENCY_REPEATS, REFUSED
from shadowcore.stages.base import Outputs, header

Row = Mapping[str, Any]


def shared_columns(spec: Any, weights: str, device: torch.device, ceiling_gb_s: float | None) -> dict[str, Any]:
    """Columns that every row of a job has: the model, the machine and the lengths. weights: pretrained or random."""
    gpu = device.type == "cuda"
    return {
        "model": spec.model, "device": provenance.device_name(), "driver": gpu_timing.driver_version(device),
        "backend": "triton" if gpu else "torch", "weights": weights, "dtype": spec.dtype,
        "threads": None if gpu else torch.get_num_threads(), "kv": "kept", "batch": getattr(spec, "batch", 1),
        "prompt_tokens": spec.prompt_tokens, "new_tokens": spec.new_tokens, "ceiling_gb_s": ceiling_gb_s,
    }  # fmt: skip


def write(
    stage: str, spec: Any, inputs: Any, outputs: Outputs, keys: Mapping[str, Row], rows: Iterable[Row],
    repeats: Iterable[Row], reasons: Mapping[str, str],
) -> None:  # fmt: skip
    """Write the tables. keys: columns by variant; rows, repeats: with a column `variant`; reasons: of refusals."""
    refused = [{"variant": name, "reason": reason} for name, reason in reasons.items()]
    head = header(stage, spec, inputs)
    tables = {"summary": (LATENCY, rows), "repeats": (LATENCY_REPEATS, repeats), "refused": (REFUSED, refused)}
    for name, (table, found) in tables.items():
        whole = [{**keys[row["variant"]], **row} for row in found]
        content = table.build({column: row[column] for column in table.columns if column in row} for row in whole)
        artifacts.write_table(getattr(outputs, name), table.schema, content, head)
