"""One condition (a method, criterion, predictor, policy, units, sparsity) and its measurement on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shadowcore import artifacts, benchmarks
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.errors import ConfigError
from shadowcore.measure.perplexity import window_losses
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.measure.sparsity import Masks, SparseModel
from shadowcore.models.families import KINDS_OF, Kind
from shadowcore.schemas import OUTCOMES
from shadowcore.stages import inputs as reading
from shadowcore.stages.base import Progress, header, how
from shadowcore.texts.documents import TASKS

# true_continuation: a question; second_half: the perplexity of every window's second half, the first being its prompt
OWN_TASKS = ("true_continuation", "second_half")
NEEDS_PROMPTS = "prompt"  # the protocol that has nothing to say of a text without one: it goes unmeasured there


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
    """A condition and the size of its measurement; sizes of batches in windows and in lm-eval requests.

    tasks: what is asked beside the perplexity of whole windows, our own and benchmarks; fewshot: numbers of
    examples in a benchmark's prompts; rolling_tokens: longest window of a rolling benchmark; text_seed: of windows.
    """

    condition: Condition
    windows: int
    window_tokens: int
    window_batch: int = how()
    request_batch: int = how()
    dtype: str
    text_seed: int
    tasks: tuple[str, ...] = ("true_continuation",)
    fewshot: tuple[int, ...] = (0,)
    rolling_tokens: int = 2048


@dataclass(frozen=True)
class Outputs:
    outcomes: Path


def measure(stage: str, spec: Spec, inputs: Any, outputs: Outputs, masks: Callable[[torch.nn.Module], Masks | None]):
    """Load the model once, run every task on it under `masks(model)`, and write its documents' outcomes."""
    condition = spec.condition
    progress = Progress(f"{stage} {condition.method} {condition.criterion or ''} {condition.sparsity_pct} %")
    tokenizer = reading.read_tokenizer(inputs.card, inputs.weights)
    model = reading.read_model(inputs.card, inputs.weights, spec.dtype)
    sparse = SparseModel(model, masks(model), PROTOCOLS[condition.protocol or "token"])
    rows = []
    for found in _runs(spec, inputs, sparse, tokenizer, progress):
        measured = asdict(condition) | sparse.measured_sparsity(condition.kinds)
        rows += [measured | row for row in found]
        sparse.count_anew()
    progress.say("measured")
    artifacts.write_table(outputs.outcomes, OUTCOMES.schema, OUTCOMES.build(rows), header(stage, spec, inputs))


def _runs(spec: Spec, inputs: Any, sparse: SparseModel, tokenizer, progress: Progress) -> Iterator[list[dict]]:
    """What every document came to, run by run: of windows, of our own task, of benchmarks."""
    # not above: lm-eval takes seconds, and every Snakemake that starts reads this file to know what a condition is
    from shadowcore.measure import harness

    yield from _windows(spec, inputs, sparse, tokenizer, progress)
    longest = sparse.sizes.positions
    if "true_continuation" in spec.tasks:
        questions = TASKS.read(inputs.tasks).to_pylist()
        task = harness.true_continuation(questions)
        yield harness.outcomes(sparse, tokenizer, [task], spec.request_batch, longest)
    prepared = {name: rows for path in inputs.benchmarks for name, rows in benchmarks.gathered(path).items()}
    if missing := set(spec.tasks) - {*OWN_TASKS, *prepared}:
        raise ConfigError(f"--benchmarks: no {sorted(missing)} in it; a file of gather-benchmarks with them would fit")
    for batch, window, tasks in _together(spec, prepared):
        progress.say(", ".join(f"{task.config.task} ({task.config.num_fewshot}-shot)" for task in tasks))
        found = harness.outcomes(sparse, tokenizer, tasks, batch, min(window or longest, longest))
        yield [row | {"data": row["task"]} for row in found]


def _windows(spec: Spec, inputs: Any, sparse: SparseModel, tokenizer, progress: Progress) -> Iterator[list[dict]]:
    """Perplexities of windows: of the whole, which has no prompt, and of the half after a prompt.

    A row is an article, its windows summed: they are no independent witnesses of how a model does.
    """
    condition = spec.condition
    windows = reading.windows_of(
        inputs.card, inputs.documents, "evaluation", tokenizer, spec.window_tokens, spec.windows, spec.text_seed
    )
    ids = torch.tensor([window.ids for window in windows])
    articles: dict[str, list[int]] = {}
    for place, window in enumerate(windows):
        articles.setdefault(window.document_id, []).append(place)
    asked = [] if condition.protocol == NEEDS_PROMPTS else [("perplexity", 1, condition.data)]
    if "second_half" in spec.tasks:
        asked.append(("second_half", spec.window_tokens // 2, f"{condition.data} (second half)"))
    for task, prompt, data in asked:
        losses = window_losses(sparse, ids, spec.window_batch, progress, prompt)
        measured, tokens = {"task": task, "data": data, "metric": "nll"}, spec.window_tokens - prompt
        yield [
            measured | {"document": name, "value": losses[places].sum().item(), "weight": tokens * len(places)}
            for name, places in articles.items()
        ]


def _together(spec: Spec, prepared: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[int, int | None, list]]:
    """Batch size, longest window (None: the model's) and tasks of every run of lm-eval: as few as can be."""

    def task(name: str, shots: int):
        parts = {"evaluation": [], "examples": []}
        for row in prepared[name]:
            parts[row[benchmarks.SPLIT]].append({column: row[column] for column in BENCHMARKS[name].columns})
        return benchmarks.task(name, parts["evaluation"], parts["examples"] if shots else [], shots)

    names = [name for name in spec.tasks if name in BENCHMARKS]
    prompted = [name for name in names if not BENCHMARKS[name].rolling]
    for shots in spec.fewshot if prompted else ():
        shown = [name for name in prompted if not shots or BENCHMARKS[name].train]
        yield spec.request_batch, None, [task(name, shots) for name in shown]
    rolling = [task(name, 0) for name in names if BENCHMARKS[name].rolling]
    if rolling and spec.condition.protocol != NEEDS_PROMPTS:
        yield spec.window_batch, spec.rolling_tokens, rolling
