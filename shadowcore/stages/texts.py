"""Reading back what `prepare-text` wrote: the documents of a split, and token windows of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc

from shadowcore import artifacts, text


def windows_of(path: Path, split: str, tokenizer, length: int, count: int, seed: int) -> list[text.Window]:
    """`count` windows of `length` token ids from a split (train, heldout or evaluation) of a documents file."""
    table = artifacts.read_table(path, text.DOCUMENTS.schema)
    rows = table.filter(pc.equal(table["split"], split)).drop_columns("split")
    return text.windows(text.documents_from_table(rows), tokenizer, length, count, seed)
