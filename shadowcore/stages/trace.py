"""Score all units on one shard of one split of a text, with all criteria in one pass."""

from collections.abc import Callable
from typing import Any

import torch

from shadowcore import artifacts
from shadowcore.errors import ConfigError
from shadowcore.method.predictors import groups_of
from shadowcore.method.tracing import EXAMPLES, SCHEMA, Masking, TracePlan, trace
from shadowcore.models.families import dimensions_of
from shadowcore.models.recording import Site
from shadowcore.stages.base import Frozen, Outputs, Progress, origin, runtime_only
from shadowcore.stages.inputs import ModelAndText as Inputs


class Design(Frozen):
    """A predictor design; the trace keeps the features that it reads of its examples, tokens or windows."""

    method: str
    segments: int
    examples: str


class Spec(Frozen):
    """windows: number in the whole split, of which shard `shard` of `shards` is traced; window_criteria: those by which
    whole windows are scored; dtype: of the model.
    """

    split: str
    shard: int
    shards: int
    windows: int
    window_tokens: int
    tokens_per_window: int
    designs: tuple[Design, ...]
    criteria: tuple[str, ...]
    token_criteria: tuple[str, ...]
    window_criteria: tuple[str, ...]
    token_bits: int
    batch: int = runtime_only()
    dtype: str
    seed: int


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    write("trace", spec, spec, spec.seed, inputs, outputs, lambda model: lambda ids, scored: None)


def write(
    stage: str, made_from: Any, spec: Spec, seed: int, inputs: Inputs, outputs: Outputs,
    masking: Callable[[torch.nn.Module], Masking],
) -> None:  # fmt: skip
    """Trace one shard of a split and write it. made_from: the stage's specification; seed: of sampled tokens."""
    progress = Progress(f"{stage} {spec.split} {spec.shard + 1} of {spec.shards}")
    if spec.shards > spec.windows:
        raise ConfigError(
            f"traces.shards: {spec.shards} is too large; it must be at most traces.windows ({spec.windows}), because "
            "every shard needs a window"
        )
    ids = inputs.ids(spec.split, spec.window_tokens, spec.windows, spec.seed)[spec.shard :: spec.shards]
    model = inputs.model(spec.dtype)
    of_tokens, of_windows = (sites_read(spec.designs, examples, model) for examples in EXAMPLES)
    plan = TracePlan(
        spec.criteria, spec.token_criteria, spec.token_bits, spec.tokens_per_window, of_tokens, seed,
        spec.window_criteria, of_windows,
    )  # fmt: skip
    tensors = trace(model, ids, plan, spec.batch, progress, masking(model))
    artifacts.write_with_checksum(outputs.trace, SCHEMA, tensors, origin(stage, made_from, inputs))


def sites_read(designs: tuple[Design, ...], examples: str, model: torch.nn.Module) -> list[Site]:
    """The sites that predictors of tokens, or of windows, read."""
    layers = dimensions_of(model.config).layers
    read = [groups_of(one.method, layers, one.segments) for one in designs if one.examples == examples]
    return sorted({group.site for groups in read for group in groups})
