"""Tune a trained predictor on the sparse model that its masks make, and report its ranking quality again."""

from contextlib import ExitStack
from pathlib import Path

import torch

from shadowcore.errors import ConfigError
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.sparsity import PredictedMasks
from shadowcore.method.predictors import TUNED_PROXIES
from shadowcore.method.trace_dataset import open_traces
from shadowcore.method.training_state import Checkpoint
from shadowcore.method.tuning import Tuning, tune
from shadowcore.models.families import KINDS_OF, dimensions_of
from shadowcore.stages import train_predictor
from shadowcore.stages.base import Outputs, Progress, header
from shadowcore.stages.inputs import ModelAndText, read_predictor

POLICY = "per_layer"


class Spec(train_predictor.Spec):
    """As for training. units: masked kinds; windows, heldout_windows: to tune on and to judge; dtype: of the model."""

    tuning: Tuning
    units: str
    windows: int
    heldout_windows: int
    window_tokens: int
    dtype: str


class Inputs(ModelAndText):
    trained: Path
    traces: tuple[Path, ...]
    heldout: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"tune {spec.method} {spec.criterion} {spec.predictor}")
    torch.set_float32_matmul_precision("high")  # allows TF32, which is precise enough for training, not for measuring
    windows, heldout = inputs.training_ids(spec, spec.text_seed)
    model = inputs.model(spec.dtype)
    sizes = dimensions_of(model.config)
    predictor = read_predictor(inputs.trained, sizes).to(model.device)
    kinds = tuple(kind for kind in KINDS_OF[spec.units] if kind in predictor.kinds)
    if not kinds:
        raise ConfigError(f"tuning.units: {spec.units} cannot be tuned for {spec.method}, which has neurons only")
    if spec.method in TUNED_PROXIES:
        bits, ahead = TUNED_PROXIES[spec.method]
        predictor.proxy = ProxyMasks(model, bits, 0, ahead).scores  # their sparsity is not used

    def masking(sparsity_pct: int, ids: torch.Tensor, scored: torch.Tensor):
        return PredictedMasks(predictor, kinds, POLICY, sparsity_pct).begin(ids, scored)

    head = header("tune-predictor", spec, inputs)
    checkpoint = Checkpoint(outputs.predictor, head)
    fit = tune(model, predictor, kinds, windows, heldout, spec.tuning, spec.seed, masking, progress, checkpoint)
    tokens = len(windows) * (spec.window_tokens - 1)
    rows = [train_predictor.training_row(spec, predictor, kind, [fit], tokens, spec.tuning.epochs) for kind in kinds]
    with ExitStack() as stack:
        quality = []
        if spec.method not in TUNED_PROXIES:  # no trace has what they read
            examples = spec.recipe.examples
            train = open_traces(stack, inputs.traces, predictor, spec.criterion, spec.token_bits, examples)
            held = open_traces(stack, inputs.heldout, predictor, spec.criterion, spec.heldout_bits, examples)
            quality = train_predictor.rank_quality(spec, predictor, train, held)
    train_predictor.write(predictor, quality, rows, outputs, head)
    checkpoint.remove()
