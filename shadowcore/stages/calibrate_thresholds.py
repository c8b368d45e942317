"""Magnitude thresholds of every layer's neurons from the training windows of a text, for `threshold` and `cats`."""

from shadowcore import artifacts
from shadowcore.method.thresholds import neuron_magnitudes
from shadowcore.schemas import THRESHOLDS
from shadowcore.stages.base import Frozen, Outputs, Progress, header, runtime_only
from shadowcore.stages.inputs import ModelAndText as Inputs


class Spec(Frozen):
    """Names for the table's rows, the windows, the methods that need thresholds, and the sparsities to reach."""

    model: str
    calibration: str
    windows: int
    window_tokens: int
    batch: int = runtime_only()
    methods: tuple[str, ...]
    sparsities_pct: tuple[int, ...]
    dtype: str
    seed: int


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("calibrate-thresholds")
    ids = inputs.ids("train", spec.window_tokens, spec.windows, spec.seed)
    model = inputs.model(spec.dtype)
    rows = [
        {"model": spec.model, "calibration": spec.calibration, "method": method, "layer": layer, "sparsity_pct": pct}
        | {"threshold": found.threshold(layer, pct), "n": int(found.counts[layer].sum())}
        for method, found in neuron_magnitudes(model, ids, spec.batch, spec.methods, progress).items()
        for layer in range(len(found.counts))
        for pct in spec.sparsities_pct
    ]
    head = header("calibrate-thresholds", spec, inputs)
    artifacts.write_table(outputs.thresholds, THRESHOLDS.schema, THRESHOLDS.build(rows), head)
