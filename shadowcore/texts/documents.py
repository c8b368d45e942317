"""Documents, windows and questions, and their tables."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Self

import pyarrow as pa

from shadowcore.errors import SourceError
from shadowcore.schemas import INTEGER, TEXT, Table


@dataclass(frozen=True)
class Document:
    """A text and its title. id: the first 16 digits of the text's SHA-256."""

    id: str
    title: str
    text: str

    @classmethod
    def of(cls, title: str, text: str) -> Self:
        """Make a document with the id of its text; SourceError for text that cannot be encoded in UTF-8."""
        try:
            return cls(hashlib.sha256(text.encode()).hexdigest()[:16], title, text)
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can contain
            raise SourceError(
                f"{title}: character {error.start} is {text[error.start]!r}, which is not Unicode text"
            ) from None


@dataclass(frozen=True)
class Window:
    """Consecutive token ids of one document from token `start`, without special tokens."""

    document_id: str
    start: int
    ids: tuple[int, ...]


DOCUMENTS = Table(
    "documents", 1, "one document",
    {
        "id": (TEXT, "first 16 hexadecimal digits of the SHA-256 of text; a copy in a training draw has a number, too"),
        "title": (TEXT, "its title, or its place in the source"),
        "text": (TEXT, "plain text; blank lines separate paragraphs"),
    },
)  # fmt: skip
TASKS = Table(
    "continuations", 1, "one question: which of four texts continues the context",
    {
        "id": (TEXT, "document id and first word of the context"),
        "context": (TEXT, "consecutive words of one document"),
        "choices": (pa.list_(TEXT), "the true continuation, and continuations of passages of three other documents"),
        "label": (INTEGER, "position of the true continuation among choices, from 0"),
    },
)  # fmt: skip


def documents_to_table(documents: Iterable[Document]) -> pa.Table:
    """Documents as an Arrow table (DOCUMENTS)."""
    return DOCUMENTS.build(asdict(document) for document in documents)
