"""Score every unit on one shard of one split of a text, by all criteria in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method.tracing import SCHEMA, TracePlan, trace
from shadowcore.models import sources
from shadowcore.stages import texts
from shadowcore.stages.base import Progress, Stage, header, read_card


@dataclass(frozen=True)
class Spec:
    """windows: of the whole split, of which shard `shard` of `shards` is traced; dtype of the model."""

    split: str
    shard: int
    shards: int
    windows: int
    window_tokens: int
    tokens_per_window: int
    criteria: tuple[str, ...]
    token_criteria: tuple[str, ...]
    token_bits: int
    batch: int
    dtype: str
    seed: int


@dataclass(frozen=True)
class Inputs:
    card: Path
    weights: Path
    documents: Path


@dataclass(frozen=True)
class Outputs:
    trace: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"trace {spec.split} {spec.shard + 1} of {spec.shards}")
    sources.check_files(inputs.weights, read_card(inputs.card))
    tokenizer = sources.load_tokenizer(inputs.weights)
    windows = texts.windows_of(inputs.documents, spec.split, tokenizer, spec.window_tokens, spec.windows, spec.seed)[
        spec.shard :: spec.shards
    ]
    model = sources.load_model(inputs.weights, spec.dtype)
    plan = TracePlan(spec.criteria, spec.token_criteria, spec.token_bits, spec.tokens_per_window, spec.seed)
    tensors = trace(model, torch.tensor([window.ids for window in windows]), plan, spec.batch, progress)
    artifacts.write_tensors(outputs.trace, SCHEMA, tensors, header("trace", spec, inputs))


STAGE = Stage("importance scores and predictor features of one shard of a text", Spec, Inputs, Outputs, run)
