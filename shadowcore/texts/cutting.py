"""Split documents, and cut windows and questions from them.

Random orders come from a hash of the seed and a name. So they do not depend on the machine or on the order of the
documents, and a larger number of windows begins with the same ones.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Any

from shadowcore.errors import ConfigError
from shadowcore.paragraphs import paragraphs, visible
from shadowcore.texts.documents import Document, Window

CHOICES = 4  # per question: the true continuation and three from other documents


def split(
    documents: Sequence[Document], fraction: float, seed: int, key: str = "evaluation_fraction"
) -> tuple[list[Document], list[Document]]:
    """Distinct documents in two parts, the second of round(fraction n); ConfigError, naming `key`, if one is empty."""
    if not 0 < fraction < 1:
        raise ConfigError(f"{key}: {fraction} found; it must be between 0 and 1")
    ordered = _shuffled(documents, seed)
    chosen = round(fraction * len(ordered))
    if not 0 < chosen < len(ordered):
        raise ConfigError(
            f"{key}: {fraction} of {len(ordered)} documents is {chosen}, so one part is empty; use more documents or "
            "another fraction"
        )
    return ordered[chosen:], ordered[:chosen]


def drawn_again(documents: Sequence[Document], seed: int) -> list[Document]:
    """Another draw of such a text: documents with replacement, until they have as many characters as all of these.

    The bootstrap of a calibration text. The first copy of a document keeps its id; other copies have a number, too.
    """
    random, drawn, copies = Random(f"{seed} documents"), [], Counter()
    size = sum(len(document.text) for document in documents)
    while size > 0:
        document = random.choice(documents)
        size -= len(document.text)
        copies[document.id] += 1
        number = copies[document.id]
        drawn.append(replace(document, id=document.id if number == 1 else f"{document.id}-{number}"))
    return drawn


def windows(
    documents: Sequence[Document], tokenizer, length: int, count: int | None, seed: int, key: str = "windows"
) -> list[Window]:
    """`count` windows (None: all) of exactly `length` tokens without overlap, from as many documents as possible.

    No document gives a second window before every long enough document has given one. Windows have no BOS token. Raises
    ConfigError, naming `key`, if the documents have fewer windows.
    """

    def candidates(document: Document) -> list[Window]:
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        starts = range(0, len(ids) - length + 1, length)
        return [Window(document.id, start, tuple(ids[start : start + length])) for start in starts]

    taken = _in_turns(documents, candidates, count, seed)
    if count and len(taken) < count:
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

    A passage is a sequence of visible words in one paragraph. Passages do not overlap, and come from as many documents
    as possible. The three wrong choices are continuations from three other documents. All labels are equally frequent.
    Raises ConfigError if there are too few passages, or too few documents with passages.
    """

    def candidates(document: Document) -> list[_Passage]:
        passages, before = [], 0
        for paragraph in paragraphs(document.text):
            words = [word for word in paragraph.split() if visible(word)]  # invisible words may have no tokens
            length = context_words + continuation_words
            for start in range(0, len(words) - length + 1, length):
                context = " ".join(words[start : start + context_words])
                continuation = " ".join(words[start + context_words : start + length])
                passages.append(_Passage(document.id, before + start, context, continuation))
            before += len(words)
        return passages

    questions = _in_turns(documents, candidates, count, seed)
    others: dict[str, _Passage] = {}  # one passage of each document that has any
    for passage in _in_turns(documents, candidates, len(documents), seed):
        others.setdefault(passage.document_id, passage)
    if len(questions) < count:
        raise ConfigError(
            f"true_continuation.documents: {count} questions are too many; the {len(documents)} documents for "
            f"evaluation hold {len(questions)} passages of context_words + continuation_words = "
            f"{context_words + continuation_words} words"
        )
    endings = len({passage.continuation for passage in others.values()})
    if endings <= CHOICES:  # wrong choices come from other documents than the question
        raise ConfigError(
            f"true_continuation: {endings} documents have passages with different endings; {CHOICES + 1} are needed"
        )
    random = Random(seed)
    labels = [number % CHOICES for number in range(count)]
    random.shuffle(labels)
    rows = []
    for passage, label in zip(questions, labels, strict=True):
        elsewhere = {other.continuation for name, other in others.items() if name != passage.document_id}
        choices = random.sample(sorted(elsewhere - {passage.continuation}), CHOICES - 1)
        choices.insert(label, passage.continuation)
        name = f"{passage.document_id}:{passage.start}"
        rows.append({"id": name, "context": passage.context, "choices": choices, "label": label})
    return rows


def _shuffled(documents: Iterable[Document], seed: int) -> list[Document]:
    """Distinct documents in the order of a hash of seed and id."""
    distinct = {document.id: document for document in documents}
    return sorted(distinct.values(), key=lambda document: hashlib.sha256(f"{seed} {document.id}".encode()).digest())


def _in_turns(
    documents: Iterable[Document], candidates: Callable[[Document], list], count: int | None, seed: int
) -> list:
    """Up to `count` candidates (None: all): one of every document, then a second one, ordered by seed and document."""
    queues = []
    for document in _shuffled(documents, seed):
        queue = candidates(document)
        Random(f"{seed} {document.id}").shuffle(queue)
        queues.append(queue)
    turns = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return list(islice(turns, count))
