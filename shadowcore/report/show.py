"""The final tables of a study in the terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from shadowcore.errors import ArtifactError
from shadowcore.report import tables
from shadowcore.report.tables import Tables

SETUP = ["model", "data", "units", "policy", "method", "criterion"]


def show(results: Path, console: Console) -> None:
    """Print every final table of a results folder that people read as numbers."""
    found = _read(results)
    summary(results, console)
    for name, value in (("comparisons", "difference"),):
        console.print(_pivot(f"{name}: difference to dense", found[name], value, ["task", "metric"]))
    quality = found["quality"]
    recall = quality[quality["metric"] == "recall"]
    if len(recall):
        means = recall.groupby(["model", "kind", "criterion", "method", "sparsity_pct"], as_index=False)["value"].mean()
        console.print(_grid("recall of the kept units, mean over layers (static: constant predictor)", means, "value"))


def summary(results: Path, console: Console) -> None:
    """Print perplexity, accuracy and time per token by method and sparsity, and where to look further."""
    found = _read(results)
    console.print(_pivot("token perplexity", found["perplexity"], "value", []))
    accuracy = tables_of_one_metric(found["accuracy"])
    console.print(_pivot("accuracy", accuracy, "value", ["task"]))
    if len(found["latency"]):
        times = found["latency"].assign(stderr=None)
        console.print(
            _grid(
                "milliseconds per token (median)",
                times[["model", "device", "mode", "sparsity_pct", "ms_per_token"]],
                "ms_per_token",
            )
        )
    console.print(f"Tables: {results}/tables   Figures: {results}/figures   All numbers: shadowcore show {results}")


def tables_of_one_metric(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `acc` where a task has several metrics."""
    return rows[rows["metric"] == "acc"]


def _read(results: Path) -> Tables:
    folder = Path(results) / "tables"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; a study's results folder, such as results/quick, would fit")
    return tables.read(folder)


def _pivot(title: str, rows: pd.DataFrame, value: str, more: list[str]) -> Table:
    """Method by sparsity, each cell value ± stderr."""
    cells = rows.assign(cell=[f"{v:.3g} ± {s:.2g}" for v, s in zip(rows[value], rows["stderr"], strict=True)])
    return _grid(title, cells[[*SETUP, *more, "sparsity_pct", "cell"]], "cell")


def _grid(title: str, rows: pd.DataFrame, cell: str) -> Table:
    """A table with a column per sparsity."""
    keys = [name for name in rows.columns if name not in ("sparsity_pct", cell)]
    rows = rows.assign(**{name: rows[name].fillna("") for name in keys})
    wide = rows.pivot_table(index=keys, columns="sparsity_pct", values=cell, aggfunc="first").reset_index()
    table = Table(title=title, title_justify="left")
    for name in wide.columns:
        table.add_column(f"{name} %" if isinstance(name, (int, float)) else name)
    for row in wide.itertuples(index=False):
        table.add_row(*[f"{v:.3g}" if isinstance(v, float) and v == v else ("" if v != v else str(v)) for v in row])
    return table
