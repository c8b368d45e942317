"""Read tables that other people made: a Parquet file, a file of JSON lines, or a split of a data set of the hub.

All readers return the named columns as Python values. A missing or damaged file, a missing column or a value that is
not allowed raises an error of one sentence.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadowcore.errors import ConfigError, SourceError, near_miss

Row = dict[str, Any]
SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Column:
    """What a column may contain: in words, and as a test of each value."""

    allowed: str
    has_value: Callable[[Any], bool]


OPTIONAL_TEXT = Column("text", lambda value: value is None or isinstance(value, str))


def check_file(path: Path, columns: Mapping[str, Column], where: str) -> int:
    """The number of rows of a Parquet file with these columns; only its footer and its first row are read.

    Raises SourceError for a missing or damaged file, and ConfigError, naming the key `where`, for a column that is
    missing or given twice, or holds a value that is not allowed.
    """
    with _opened(path, columns, where) as content:
        for first in content.iter_batches(batch_size=1, columns=list(columns)):
            _rows(pa.Table.from_batches([first]), columns, f"{where} in {path}")
            break
        return content.metadata.num_rows


def of_file(path: Path, columns: Mapping[str, Column], where: str) -> list[Row]:
    """The rows of a Parquet file with the columns in this order. Raises the same errors as `check_file`."""
    with _opened(path, columns, where) as content:
        return _rows(content.read(list(columns)), columns, f"{where} in {path}")


def of_lines(path: Path, column: str, where: str) -> Iterator[tuple[int, str | None]]:
    """Row numbers and one column of a file of JSON lines. Each line is an object whose value is text or null.

    Raises SourceError for a missing or damaged file, and ConfigError, naming the key `where`, for a line in which the
    column is missing, given twice, or has another value.
    """
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such file; a file of JSON lines is needed")
    with open(path, "rb") as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            place = f"{path}, row {number}"
            try:
                pairs = json.loads(line, object_pairs_hook=list)
            except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8; deeply nested lists
                raise SourceError(f"{place}: not JSON in UTF-8 ({error}); every line must be an object") from None
            if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
                raise SourceError(f"{place}: JSON that is not an object; every line must be an object")
            names = [name for name, _ in pairs]
            _require_once(column, names, f"{where} in {place}")
            value = pairs[names.index(column)][1]
            if not OPTIONAL_TEXT.has_value(value):
                raise ConfigError(f"{where} in {place}: column '{column}' holds {shown(value)}; it must hold text")
            yield number, value


def of_hub(
    dataset: str, config: str | None, split: str, revision: str, columns: Mapping[str, Column], where: str
) -> tuple[list[Row], str | None]:
    """The rows of a split at one commit, and the licence on the data set's page, if there is one.

    Raises SourceError if it is not available, and ConfigError, naming the key `where`, for a missing column or a value
    that is not allowed.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(dataset, config, split=split, revision=revision)
    except (DatasetsError, OSError, ValueError) as error:
        raise unavailable(dataset, revision, error) from None
    where = f"{where} of {dataset} at {revision}"
    _require(columns, rows.column_names, where)
    return _rows(rows.select_columns(list(columns)).with_format("arrow")[:], columns, where), rows.info.license or None


def shown(value: Any) -> str:
    """The beginning of a value on one line, for messages."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def commit_of(dataset: str) -> str:
    """The newest commit of a data set of the hub, at which it is then downloaded."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(dataset).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise unavailable(dataset, "its newest commit", error) from None


def unavailable(dataset: str, revision: str, error: Exception) -> SourceError:
    """The error for a data set of the hub that is not available, with a hint for machines without internet."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SourceError(
        f"hub data set {dataset} at {revision}: not available ({reason}); check the name, or run `shadowcore fetch` on "
        "a machine with internet and set `offline` to its folder"
    )


@contextmanager
def _opened(path: Path, columns: Mapping[str, Column], where: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file and check that it has these columns."""
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such file; a Parquet file with columns {', '.join(columns)} is needed")
    try:
        # read_table would make columns of folders in the path with names such as `key=value`
        with pq.ParquetFile(path) as content:
            _require(columns, content.schema_arrow.names, f"{where} in {path}")
            yield content
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: damaged Parquet ({str(error).splitlines()[0]})") from None


def _require(columns: Iterable[str], names: Sequence[str], where: str) -> None:
    """Raise ConfigError unless a table has each of these columns once."""
    for name in columns:
        _require_once(name, names, where)


def _require_once(column: str, names: Sequence[str], where: str) -> None:
    if column not in names:
        raise ConfigError(f"{where}: no column '{column}'; {near_miss(column, names)}")
    if (count := names.count(column)) > 1:
        raise ConfigError(f"{where}: {count} columns have the name '{column}'; one is allowed")


def _rows(table: pa.Table, columns: Mapping[str, Column], where: str) -> list[Row]:
    """The rows of a table with the columns in this order; ConfigError for the first value that is not allowed."""
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for name, column in columns.items():
        for row, scalar in enumerate(table[name]):
            try:
                value = scalar.as_py()
                found = None if column.has_value(value) else shown(value)
            except UnicodeDecodeError:
                found = "text that is not UTF-8"
            except (ValueError, OverflowError):  # no Python type can hold it, as a time in nanoseconds
                found = str(scalar.type)
            if found:
                raise ConfigError(f"{where}, row {row}: column '{name}' holds {found}; it must hold {column.allowed}")
            values[name].append(value)
    return [dict(zip(columns, row, strict=True)) for row in zip(*values.values(), strict=True)]
