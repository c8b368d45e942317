"""Read a text from its source, split its documents in three parts, and make a multiple-choice task of it."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from shadowcore import artifacts
from shadowcore.stages.base import Frozen, Outputs, Progress, header, parse_spec
from shadowcore.stages.base import Nothing as Inputs
from shadowcore.texts import cutting, sources
from shadowcore.texts.documents import DOCUMENTS, TASKS, Document, documents_to_table


class Task(Frozen):
    """Sizes of the task `true_continuation`: questions, and words of a context and of a continuation."""

    documents: int
    context_words: int
    continuation_words: int


class Spec(Frozen):
    """kind: of source; source: that kind's fields; fractions of documents held back; task: None for no questions."""

    kind: str
    source: dict[str, Any]
    heldout_fraction: float
    evaluation_fraction: float
    task: Task | None
    seed: int


def in_three(documents: Sequence[Document], heldout: float, evaluation: float, seed: int) -> dict[str, list[Document]]:
    """The parts of a text by their fractions of its distinct documents; ConfigError if one is empty."""
    rest, evaluated = cutting.split(documents, evaluation, seed)
    share = heldout / (1 - evaluation)  # of the rest
    train, held = cutting.split(rest, share, seed, "heldout_fraction / (1 - evaluation_fraction)")
    return {"train": train, "heldout": held, "evaluation": evaluated}


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"prepare-text {spec.kind}")
    source = parse_spec(sources.TEXT_SOURCES[spec.kind], spec.source, f"texts.{spec.kind}")
    documents, card = sources.fetch(source)
    splits = in_three(documents, spec.heldout_fraction, spec.evaluation_fraction, spec.seed)
    train, heldout, evaluation = splits.values()
    if card["left_out"]:
        progress.say(f"{card['left_out']} rows without text are left out")
    progress.say(f"{len(train)} documents to train on, {len(heldout)} held out, {len(evaluation)} to evaluate on")
    made = header("prepare-text", spec, inputs) | {"card": card}
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
