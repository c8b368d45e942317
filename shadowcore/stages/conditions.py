"""One condition (a method, criterion, predictor, policy, units, sparsity) and its measurement on a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shadowcore import artifacts, text
from shadowcore.measure import harness
from shadowcore.measure.perplexity import window_losses
from shadowcore.measure.sparsity import Masks, SparseModel
from shadowcore.models.families import KINDS_OF, Kind, dimensions_of
from shadowcore.schemas import OUTCOMES
from shadowcore.stages import inputs as reading
from shadowcore.stages.base import Progress, header


@dataclass(frozen=True)
class Condition:
    """What is put on the model: the key columns of every evaluation row (schemas.CONDITION)."""

    model: str
    data: str
    method: str
    seed: int
    sparsity_pct: int = 0
    calibration: str | None = None
    criterion: str | None = None
    predictor: str | None = None
    policy: str | None = None
    protocol: str | None = None
    units: str | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit removed."""
        return KINDS_OF[self.units] if self.units else ()


@dataclass(frozen=True)
class Spec:
    """A condition and the size of its measurement; sizes of batches in windows and in lm-eval requests."""

    condition: Condition
    windows: int
    window_tokens: int
    window_batch: int
    request_batch: int
    dtype: str


@dataclass(frozen=True)
class Outputs:
    outcomes: Path


def measure(stage: str, spec: Spec, inputs: Any, outputs: Outputs, masks: Callable[[torch.nn.Module], Masks | None]):
    """Load the model once, run every task on it under `masks(model)`, and write its documents' outcomes."""
    condition = spec.condition
    progress = Progress(f"{stage} {condition.method} {condition.criterion or ''} {condition.sparsity_pct} %")
    tokenizer = reading.read_tokenizer(inputs.card, inputs.weights)
    windows = reading.windows_of(
        inputs.documents, "evaluation", tokenizer, spec.window_tokens, spec.windows, condition.seed
    )
    model = reading.read_model(inputs.weights, spec.dtype)
    sparse = SparseModel(model, masks(model))
    ids = torch.tensor([window.ids for window in windows])
    losses = window_losses(sparse, ids, spec.window_batch, progress)
    names = [f"{window.document_id}:{window.start}" for window in windows]
    rows = [
        {"task": "perplexity", "metric": "nll", "document": name, "value": loss, "weight": spec.window_tokens - 1}
        for name, loss in zip(names, losses.tolist(), strict=True)
    ]
    measured = sparse.measured_sparsity(condition.kinds)
    questions = artifacts.read_table(inputs.tasks, text.TASKS.schema).to_pylist()
    task = harness.true_continuation(questions)
    longest = dimensions_of(model.config).positions
    rows += harness.outcomes(sparse, tokenizer, task, spec.request_batch, longest)
    progress.say("measured")
    keys = asdict(condition) | measured
    table = OUTCOMES.build([keys | row for row in rows])
    artifacts.write_table(outputs.outcomes, OUTCOMES.schema, table, header(stage, spec, inputs))
