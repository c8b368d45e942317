"""A table's columns: how its rows are built, and how its files are checked when they are read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shadowcore import artifacts
from shadowcore.errors import ArtifactError

TEXT, INTEGER, NUMBER, BOOLEAN = pa.string(), pa.int64(), pa.float64(), pa.bool_()
Columns = Mapping[str, tuple[pa.DataType, str]]


@dataclass(frozen=True)
class Table:
    """A tidy table: its name and version, the meaning of a row, and its columns with types and meanings."""

    name: str
    version: int
    row: str
    columns: Columns

    @property
    def schema(self) -> str:
        """The schema in the file's header, "name/version"."""
        return f"{self.name}/{self.version}"

    @property
    def arrow(self) -> pa.Schema:
        """The columns as an Arrow schema."""
        return pa.schema([(name, kind) for name, (kind, _) in self.columns.items()])

    def read(self, path: Path) -> pa.Table:
        """The table in a file of this schema, which may have more columns; ArtifactError if one is missing or wrong."""
        return self._checked(path, artifacts.read_table(path, self.schema))

    def read_parts(self, paths: Iterable[Path]) -> Iterator[pa.Table]:
        """The parts of files of this schema, one after the other, each checked as `read` does."""
        for path in paths:
            for part in artifacts.read_parts(path, self.schema):
                yield self._checked(path, part)

    def _checked(self, path: Path, table: pa.Table) -> pa.Table:
        for field in self.arrow:
            kind = table.schema.field(field.name).type if field.name in table.column_names else "missing"
            if kind != field.type:
                raise ArtifactError(
                    f"{path}: column '{field.name}' is {kind}; it must be {field.type}; delete the file and run the "
                    "study again"
                )
        return table

    def build(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """An Arrow table of `rows`; missing keys become null, and a key that is not a column is an ArtifactError."""
        rows = list(rows)
        for row in rows:
            if unknown := set(row) - set(self.columns):
                raise ArtifactError(f"table '{self.name}' has no column {sorted(unknown)}")
        return pa.Table.from_pylist([{name: row.get(name) for name in self.columns} for row in rows], schema=self.arrow)
