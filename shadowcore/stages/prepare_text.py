"""Read a text from its source, split its documents in three parts, and make a multiple-choice task of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shadowcore import artifacts
from shadowcore.stages.base import Nothing as Inputs
from shadowcore.stages.base import Progress, header, parse_spec
from shadowcore.texts import cutting, sources
from shadowcore.texts.documents import DOCUMENTS, TASKS, documents_to_table


@dataclass(frozen=True)
class Task:
    """Sizes of the task `true_continuation`: questions, and words of a context and of a continuation."""

    documents: int
    context_words: int
    continuation_words: int


@dataclass(frozen=True)
class Spec:
    """kind: of source; source: that kind's fields; fractions of documents held back; task: None for no questions;
    training_draw: seed with which training documents are drawn with replacement, None for each once.
    """

    kind: str
    source: dict[str, Any]
    heldout_fraction: float
    evaluation_fraction: float
    training_draw: int | None
    task: Task | None
    seed: int


@dataclass(frozen=True)
class Outputs:
    documents: Path
    tasks: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"prepare-text {spec.kind}")
    source = parse_spec(sources.TEXT_SOURCES[spec.kind], spec.source, f"texts.{spec.kind}")
    documents, card = sources.fetch(source)
    rest, evaluation = cutting.split(documents, spec.evaluation_fraction, spec.seed)
    share = spec.heldout_fraction / (1 - spec.evaluation_fraction)  # of the rest
    train, heldout = cutting.split(rest, share, spec.seed, "heldout_fraction / (1 - evaluation_fraction)")
    if spec.training_draw is not None:
        train = cutting.drawn_again(train, spec.training_draw)
    if card["left_out"]:
        progress.say(f"{card['left_out']} rows without text are left out")
    progress.say(f"{len(train)} documents to train on, {len(heldout)} held out, {len(evaluation)} to evaluate on")
    made = header("prepare-text", spec, inputs) | {"card": card}

    splits = {"train": train, "heldout": heldout, "evaluation": evaluation}
    tables = [
        documents_to_table(part).append_column("split", pa.array([name] * len(part), pa.string()))
        for name, part in splits.items()
    ]
    questions = []
    if (task := spec.task) is not None:
        questions = cutting.true_continuation(
            evaluation, task.documents, task.context_words, task.continuation_words, spec.seed
        )
    artifacts.write_table(outputs.documents, DOCUMENTS.schema, pa.concat_tables(tables), made)
    artifacts.write_table(outputs.tasks, TASKS.schema, TASKS.build(questions), made)
    progress(1, 1)
