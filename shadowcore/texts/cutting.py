"""How documents are split, and the windows and questions cut out of them.

Everything random is an order by a hash of the seed and a name, so it depends on neither the machine nor
the order in which documents arrive, and asking for more windows keeps the earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from shadowcore.errors import ConfigError
from shadowcore.paragraphs import paragraphs, visible
from shadowcore.texts.documents import Document, Window

CHOICES = 4  # of a question: the true continuation and three from other documents


def split(
    documents: Sequence[Document], fraction: float, seed: int, key: str = "evaluation_fraction"
) -> tuple[list[Document], list[Document]]:
    """Part documents into (the rest, a fraction): round(fraction * n) of the n distinct ones are the second part.

    Raises ConfigError, naming `key`, if the fraction is not between 0 and 1, or leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"{key}: {fraction} found; it must be between 0 and 1")
    ordered = _shuffled(documents, seed)
    chosen = round(fraction * len(ordered))
    if not 0 < chosen < len(ordered):
        raise ConfigError(
            f"{key}: {fraction} of {len(ordered)} documents is {chosen}, which leaves a part without any; give more "
            "documents or another fraction"
        )
    return ordered[chosen:], ordered[:chosen]


def windows(
    documents: Sequence[Document], tokenizer, length: int, count: int, seed: int, key: str = "windows"
) -> list[Window]:
    """`count` windows of exactly `length` tokens that do not overlap, from as many documents as possible.

    Documents take turns, so none gives a second window before all that can have given one. Token ids are
    the text's own, without BOS. Raises ConfigError, naming `key`, if the documents hold fewer windows.
    """

    def candidates(document: Document) -> list[Window]:
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        starts = range(0, len(ids) - length + 1, length)
        return [Window(document.id, start, tuple(ids[start : start + length])) for start in starts]

    taken = _in_turns(documents, candidates, count, seed)
    if len(taken) < count:
        raise ConfigError(
            f"{key}: {count} windows of {length} tokens are too many; the {len(documents)} documents hold {len(taken)}"
        )
    return taken


@dataclass(frozen=True)
class _Passage:
    document_id: str
    start: int  # first word of the context, counted in the document
    context: str
    continuation: str


def true_continuation(
    documents: Sequence[Document], count: int, context_words: int, continuation_words: int, seed: int
) -> list[dict[str, Any]]:
    """`count` questions, rows of TASKS: which of four texts continues a context.

    A passage is consecutive words inside one paragraph, without words that show nothing; passages do not overlap,
    and documents take turns to give one. The three wrong choices continue passages of three other documents. Every
    label is equally frequent. Raises ConfigError if there are too few passages, or too few documents with passages.
    """

    def candidates(document: Document) -> list[_Passage]:
        found, before = [], 0
        for paragraph in paragraphs(document.text):
            words = [word for word in paragraph.split() if visible(word)]  # a choice of others may have no tokens
            length = context_words + continuation_words
            for start in range(0, len(words) - length + 1, length):
                context = " ".join(words[start : start + context_words])
                continuation = " ".join(words[start + context_words : start + length])
                found.append(_Passage(document.id, before + start, context, continuation))
            before += len(words)
        return found

    asked = _in_turns(documents, candidates, count, seed)
    others: dict[str, _Passage] = {}  # one passage of each document that has any
    for passage in _in_turns(documents, candidates, len(documents), seed):
        others.setdefault(passage.document_id, passage)
    if len(asked) < count:
        raise ConfigError(
            f"true_continuation.documents: {count} questions are too many; the {len(documents)} documents for "
            f"evaluation hold {len(asked)} passages of context_words + continuation_words = "
            f"{context_words + continuation_words} words"
        )
    endings = len({passage.continuation for passage in others.values()})
    if endings <= CHOICES:  # a question's own document gives none of its wrong choices
        raise ConfigError(
            f"true_continuation: {endings} documents have passages that end differently; {CHOICES + 1} are needed"
        )
    random = Random(seed)
    labels = [number % CHOICES for number in range(count)]
    random.shuffle(labels)
    rows = []
    for passage, label in zip(asked, labels, strict=True):
        elsewhere = {other.continuation for name, other in others.items() if name != passage.document_id}
        choices = random.sample(sorted(elsewhere - {passage.continuation}), CHOICES - 1)
        choices.insert(label, passage.continuation)
        name = f"{passage.document_id}:{passage.start}"
        rows.append({"id": name, "context": passage.context, "choices": choices, "label": label})
    return rows


def _shuffled(documents: Iterable[Document], seed: int) -> list[Document]:
    """Distinct documents in an order that a hash of seed and id decides, whatever order they came in."""
    distinct = {document.id: document for document in documents}
    return sorted(distinct.values(), key=lambda one: hashlib.sha256(f"{seed} {one.id}".encode()).digest())


def _in_turns(documents: Iterable[Document], candidates: Callable[[Document], list], count: int, seed: int) -> list:
    """Up to `count` candidates: one of every document, then a second of every document that has one, and so on.

    Which of its candidates a document gives first is seeded by the document, so neighbours do not matter.
    """
    queues = []
    for document in _shuffled(documents, seed):
        queue = candidates(document)
        Random(f"{seed} {document.id}").shuffle(queue)
        queues.append(queue)
    turns = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return list(islice(turns, count))
