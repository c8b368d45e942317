"""Add conditions that were measured later to the tables of a reference folder.

    python benchmarks/join_outcomes.py results/reference/smollm2 results/smollm2/tables PREDICTOR ...

Conditions that the folder does not have are added, and those of the named predictors replace the older ones. Estimates
and comparisons are made again from the outcomes of all documents. The header of each table then lists its parts.
`shadowcore judge-claims` makes the claims again.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pyarrow as pa
from command_line import run

from shadowcore import artifacts
from shadowcore.errors import ConfigError
from shadowcore.schemas import CONDITION, TABLES
from shadowcore.stages.aggregate import AT_ONCE, estimates

JOINED = ("outcomes", "predictors", "quality")  # the other tables are made of the first two


def joined(old: pd.DataFrame, new: pd.DataFrame, again: Collection[str]) -> pd.DataFrame:
    """Rows of two tables: old ones without those of the predictors `again`, and new ones that the old have not."""
    old = old[~old["predictor"].isin(again)]
    both = pd.concat([old, new], ignore_index=True)
    keys = [name for name in CONDITION if name in both.columns]
    number = both.groupby(keys, dropna=False).ngroup()
    there = number.isin(number[: len(old)].unique())
    return both[(both.index < len(old)) | ~there]


def join(reference: Path, later: Path, again: Collection[str]) -> list[str]:
    """Write the joined tables into a reference folder; a sentence for each."""
    told, tables = [], {}
    for name in JOINED:
        table = TABLES[name]
        old, new = (table.read(folder / f"{name}.parquet") for folder in (reference, later))
        rows = joined(old.to_pandas(), new.to_pandas(), again)
        tables[name] = pa.Table.from_pandas(rows, schema=table.arrow, preserve_index=False)
        told.append(f"{name}: {len(old)} rows before, {len(rows)} now")
    if unknown := set(again) - set(tables["outcomes"].column("predictor").unique().to_pylist()):
        raise ConfigError(f"{later}/outcomes.parquet: no predictor {', '.join(sorted(unknown))}")
    tables |= estimates([tables["outcomes"]], tables["predictors"])
    for name, rows in tables.items():
        path, table = reference / f"{name}.parquet", TABLES[name]
        headers = [artifacts.read_header(folder / path.name) for folder in (reference, later)]
        parts = [part for header in headers for part in header.get("parts", [header])]
        pieces = (rows.slice(start, AT_ONCE) for start in range(0, max(1, len(rows)), AT_ONCE))
        header = {"made by": "benchmarks/join_outcomes.py", "parts": parts}
        artifacts.write_parts(path, table.schema, table.arrow, pieces, header)
    return told


def main(words: list[str]) -> int:
    if len(words) < 2:
        raise ConfigError(__doc__)
    reference, later, *again = words
    print(*join(Path(reference) / "tables", Path(later), again), sep="\n")
    return 0


if __name__ == "__main__":
    run(main)
