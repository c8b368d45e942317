"""Score all units on one shard of one split of a text, with all criteria in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shadowcore import artifacts
from shadowcore.errors import ConfigError
from shadowcore.method.predictors import groups_of
from shadowcore.method.tracing import SCHEMA, Masking, TracePlan, trace
from shadowcore.models.families import dimensions_of
from shadowcore.stages.base import Progress, Stage, origin, runtime_only
from shadowcore.stages.inputs import ModelAndText


@dataclass(frozen=True)
class Design:
    """A predictor design; the trace keeps the features that it reads."""

    method: str
    segments: int


@dataclass(frozen=True)
class Spec:
    """windows: number in the whole split, of which shard `shard` of `shards` is traced; dtype: of the model."""

    split: str
    shard: int
    shards: int
    windows: int
    window_tokens: int
    tokens_per_window: int
    designs: tuple[Design, ...]
    criteria: tuple[str, ...]
    token_criteria: tuple[str, ...]
    token_bits: int
    batch: int = runtime_only()
    dtype: str
    seed: int


@dataclass(frozen=True)
class Outputs:
    trace: Path


def run(spec: Spec, inputs: ModelAndText, outputs: Outputs) -> None:
    write("trace", spec, spec, spec.seed, inputs, outputs, lambda model: lambda ids, scored: None)


def write(
    stage: str,
    made_from: Any,
    spec: Spec,
    seed: int,
    inputs: ModelAndText,
    outputs: Outputs,
    masking: Callable[[torch.nn.Module], Masking],
) -> None:
    """Trace one shard of a split and write it. made_from: the stage's specification; seed: of sampled tokens."""
    progress = Progress(f"{stage} {spec.split} {spec.shard + 1} of {spec.shards}")
    if spec.shards > spec.windows:
        raise ConfigError(
            f"traces.shards: {spec.shards} is too large; it must be at most traces.windows ({spec.windows}), because "
            "every shard needs a window"
        )
    ids = inputs.ids(spec.split, spec.window_tokens, spec.windows, spec.seed)[spec.shard :: spec.shards]
    model = inputs.model(spec.dtype)
    layers = dimensions_of(model.config).layers
    sites = sorted({group.site for one in spec.designs for group in groups_of(one.method, layers, one.segments)})
    plan = TracePlan(spec.criteria, spec.token_criteria, spec.token_bits, spec.tokens_per_window, sites, seed)
    tensors = trace(model, ids, plan, spec.batch, progress, masking(model))
    artifacts.write_with_checksum(outputs.trace, SCHEMA, tensors, origin(stage, made_from, inputs))


STAGE = Stage(Spec, ModelAndText, Outputs, run)
