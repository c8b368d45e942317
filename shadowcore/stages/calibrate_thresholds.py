"""Compute thresholds of every layer's activations from the training windows of a text, for the method `threshold`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method.thresholds import neuron_magnitudes
from shadowcore.schemas import THRESHOLDS
from shadowcore.stages import inputs as reading
from shadowcore.stages.base import Progress, Stage, header, runtime_only


@dataclass(frozen=True)
class Spec:
    """Names for the rows of the table, the windows, and the sparsities of the thresholds."""

    model: str
    calibration: str
    windows: int
    window_tokens: int
    batch: int = runtime_only()
    sparsities_pct: tuple[int, ...]
    dtype: str
    seed: int


@dataclass(frozen=True)
class Inputs:
    card: Path
    weights: Path
    documents: Path


@dataclass(frozen=True)
class Outputs:
    thresholds: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("calibrate-thresholds")
    tokenizer = reading.read_tokenizer(inputs.card, inputs.weights)
    windows = reading.windows_of(
        inputs.card, inputs.documents, "train", tokenizer, spec.window_tokens, spec.windows, spec.seed
    )
    model = reading.read_model(inputs.card, inputs.weights, spec.dtype)
    magnitudes = neuron_magnitudes(model, torch.tensor([window.ids for window in windows]), spec.batch, progress)
    rows = [
        {"model": spec.model, "calibration": spec.calibration, "layer": layer, "sparsity_pct": pct}
        | {"threshold": magnitudes.threshold(layer, pct), "n": int(magnitudes.counts[layer].sum())}
        for layer in range(len(magnitudes.counts))
        for pct in spec.sparsities_pct
    ]
    head = header("calibrate-thresholds", spec, inputs)
    artifacts.write_table(outputs.thresholds, THRESHOLDS.schema, THRESHOLDS.build(rows), head)


STAGE = Stage(Spec, Inputs, Outputs, run)
