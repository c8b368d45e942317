"""Rows of other people's tables: a Parquet file, or a split of a data set of the Hugging Face hub.

Both readers return the asked columns as Python values, and refuse in one sentence what is missing or damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadowcore.errors import ConfigError, SourceError, near_miss


def of_file(path: Path, columns: Sequence[str], where: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file, columns in the order asked for.

    Raises SourceError for a missing or damaged file, ConfigError, naming the key `where`, for a missing column.
    """
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such file; a Parquet file with columns {', '.join(columns)} would fit")
    try:
        # ParquetFile and not read_table, which would make columns of a path's `key=value` folders
        with pq.ParquetFile(path) as content:
            _require(columns, content.schema_arrow.names, f"{where} in {path}")
            return content.read(list(columns)).select(list(columns)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path}: damaged Parquet ({str(error).splitlines()[0]})") from None


def of_hub(
    dataset: str, config: str | None, split: str, revision: str, columns: Sequence[str], where: str
) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of a split at one commit, and the licence the data set's page names, if it does.

    Raises SourceError if it cannot be had, ConfigError, naming the key `where`, for a missing column.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(dataset, config, split=split, revision=revision)
    except (DatasetsError, OSError, ValueError) as error:
        raise unavailable(dataset, revision, error) from None
    _require(columns, rows.column_names, f"{where} of {dataset}")
    return rows.select_columns(list(columns)).to_list(), rows.info.license or None


def commit_of(dataset: str) -> str:
    """The commit a data set of the hub is at now: what is downloaded is then read at that very commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(dataset).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise unavailable(dataset, "its newest commit", error) from None


def unavailable(dataset: str, revision: str, error: Exception) -> SourceError:
    """Why a data set of the hub cannot be had, and what to do where there is no internet."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SourceError(
        f"hub data set {dataset} at {revision}: not available ({reason}); check the name, or run "
        "`shadowcore fetch` where there is internet and name the folder it makes"
    )


def _require(columns: Sequence[str], found: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in found:
            raise ConfigError(f"{where}: unknown '{column}'; {near_miss(column, found)}")
