"""Add times that were measured elsewhere to the tables of a reference folder.

python benchmarks/join_reference.py results/reference/gpu-h200 FOLDER

FOLDER holds files *.summary.parquet and *.repeats.parquet of the stage `latency-random`, as time_models.py writes them.
Rows that were measured again replace the older ones. The header of each table lists the headers of its parts, so
`shadowcore explain` names the code, commit and versions behind every part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowcore import artifacts
from shadowcore.errors import ArtifactError, ShadowcoreError
from shadowcore.schemas import LATENCY, LATENCY_REPEATS, Table

PARTS = {"summary": LATENCY, "repeats": LATENCY_REPEATS}  # by the end of a new file's name
MEASURED = ("ttft_ms", "ms_per_token")
KEYS = [name for name in LATENCY_REPEATS.columns if name in LATENCY.columns and name not in MEASURED]
Row = dict[str, Any]


def read(path: Path, table: Table) -> tuple[list[Row], list[Row]]:
    """Rows of a table and the headers of what it was made from; columns that an older version lacks are null."""
    found = artifacts.read_origin(path)
    schema, header = str(found["schema"]), found["header"]
    if schema.split("/")[0] != table.name:
        raise ArtifactError(f"{path}: schema '{schema}'; it must be a table '{table.name}'")
    return artifacts.read_table(path, schema).to_pylist(), header.get("parts", [header])


def joined(old: list[Row], new: list[Row]) -> list[Row]:
    """The old rows, without those that were measured again, and then the new ones."""
    again = {tuple(row[name] for name in KEYS) for row in new}
    return [row for row in old if tuple(row[name] for name in KEYS) not in again] + new


def join(reference: Path, folder: Path) -> list[str]:
    """Add the files of a folder to both tables of a reference folder; a sentence for each table."""
    told, tables = [], {}
    for end, table in PARTS.items():
        files = sorted(folder.glob(f"*.{end}.parquet"))
        if not files:
            raise ArtifactError(f"{folder}: no file *.{end}.parquet in it; time_models.py writes such files")
        path = reference / "tables" / f"{table.name}.parquet"
        old, parts = read(path, table) if path.exists() else ([], [])
        rows = old
        for file in files:
            new, headers = read(file, table)
            rows = joined(rows, new)
            parts = [*parts, *(header for header in headers if header not in parts)]
        tables[path] = table, table.build(rows), parts
        told.append(f"{path}: {len(old)} rows before, {len(rows)} now, from {len(parts)} parts")
    for path, (table, rows, parts) in tables.items():
        header = {"made by": "python benchmarks/join_reference.py", "parts": parts}
        artifacts.write_table(path, table.schema, rows, header)
    return told


def main(words: Sequence[str]) -> int:
    if len(words) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(*join(Path(words[0]), Path(words[1])), sep="\n")
    except ShadowcoreError as error:
        print(f"join_reference: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
