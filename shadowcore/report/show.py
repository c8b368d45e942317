"""The final tables of a study in the terminal: all of them, or the few lines that end a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from shadowcore.errors import ArtifactError
from shadowcore.report import tables
from shadowcore.report.figures.series import NAMES, ORDERS, asked, first_of, where
from shadowcore.report.tables import Tables
from shadowcore.schemas import FINAL_TABLES

# what a line is about; what is the same in every line is told once, above them
LINE = ["model", "device", "data", "task", "fewshot", "metric", "kind", "units", "criterion", "policy", "protocol"]
LINE += ["calibration", "predictor", "predictor_rank", "dtype", "batch", "seed", "method"]
# what tells two rows of one claim apart
CLAIMED = ["model", "data", "device", "dtype", "prompt_tokens", "new_tokens", "metric", "units", "criterion", "policy"]
CLAIMED += ["predictor_rank", "predictor_bits", "protocol", "calibration", "sparsity_pct"]
CLAIMED += ["side_winner", "side_loser"]
# what a summary shows one value of, the first in order
CHOSEN = ["device", "data", "task", "fewshot", "units", "criterion", "policy", "protocol", "calibration", "predictor"]
CHOSEN += ["seed"]

Cell = Callable[[pd.Series], str]
Lines = dict[tuple[str, ...], dict[tuple[str, int], str]]  # what a line is about: (heading, sparsity): cell


def show(results: Path, console: Console) -> None:
    """Print all final tables of a results folder, such as results/quick, and say where the figures are."""
    found = _read(results)
    compared, quality = where(found["comparisons"], reference="dense"), found["quality"]
    logs = compared["metric"].str.startswith("log_")
    for heading, rows, cell in (
        ("Perplexity ± standard error", found["perplexity"].drop(columns="task"), _estimate),
        ("Accuracy ± standard error", found["accuracy"], _estimate),
        (
            "Log-perplexity minus dense, nats [95 %, paired]",
            compared[logs].drop(columns="task"),
            _nats,
        ),
        ("Accuracy minus dense, percentage points [95 %, paired], McNemar's p", compared[~logs], _points),
        ("Recall of kept units, mean over layers; static is the constant predictor", _over_layers(quality), _value),
        ("Milliseconds per token: median [10 %, 90 % of repeats]", _latency(found), _times),
    ):
        if len(rows):
            shown = [name for name in LINE if name in rows]
            same = [name for name in shown if name != "method" and rows[name].nunique() <= 1]
            told = [_told(name, rows[name].dropna().iloc[0]) for name in same if rows[name].notna().any()]
            names = [name for name in shown if name not in same]
            _print(console, [heading, ", ".join(told)], names, _lines(rows, names, cell))
    _claims(console, found["claims"])
    _places(results, console)


def summary(results: Path, console: Console) -> None:
    """Print a line per method: perplexity, accuracy and time under the main units, criterion and policy."""
    found = _read(results)
    blocks = {
        "ppl": (where(found["perplexity"], metric="token_perplexity").drop(columns="task"), _value),
        "acc": (asked(found["accuracy"]), _value),
        "ms": (_latency(found), _median),
    }
    for model in sorted({model for rows, _ in blocks.values() for model in rows["model"]}):
        told, lines = [f"{model} (ppl token perplexity, acc accuracy, ms per token)"], {}
        for block, (rows, cell) in blocks.items():
            rows = _chosen(where(rows, model=model), told)
            for line, cells in _lines(rows, ["method"], cell, block).items():
                lines.setdefault(line, {}).update(cells)
        _print(console, [", ".join(dict.fromkeys(told))], ["method"], _sorted(lines, ["method"]))
    _places(results, console)


def _read(results: Path) -> Tables:
    folder = Path(results) / "tables"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; a study's results folder, such as results/quick, would fit")
    return tables.read(folder)


def _chosen(rows: pd.DataFrame, told: list[str]) -> pd.DataFrame:
    """Rows with the first value of every column in CHOSEN; the values are added to `told`."""
    rows = first_of(rows, *CHOSEN)
    named = rows[rows["method"] != "random"]  # random is a criterion of its own
    values = {name: named[name].dropna() for name in CHOSEN if name in named}
    told += [_told(name, chosen.iloc[0]) for name, chosen in values.items() if len(chosen)]
    return rows


def _lines(rows: pd.DataFrame, names: list[str], cell: Cell, heading: str = "") -> Lines:
    """A line for each distinct value of `names`, with a cell for each sparsity; dense is at 0 %."""
    lines = {}
    for _, row in rows.sort_values("sparsity_pct", kind="stable").iterrows():
        cells = lines.setdefault(tuple(_text(row[name]) for name in names), {})
        column = (heading, int(row["sparsity_pct"]))
        cells[column] = f"{cells[column]} / {cell(row)}" if column in cells else cell(row)
    return _sorted(lines, names)


def _sorted(lines: Lines, names: list[str]) -> Lines:
    """Lines in the order of ORDERS, or by name; what has no value, as dense has none, comes first."""

    def rank(line: tuple[str, ...]) -> list:
        return [(text != "", ORDERS.get(name, str)(text)) for name, text in zip(names, line, strict=True)]

    return {line: lines[line] for line in sorted(lines, key=rank)}


def _print(console: Console, title: list[str], names: list[str], lines: Lines) -> None:
    """Print lines under the names of what they are about, and a column for each heading and sparsity."""
    columns = {column for cells in lines.values() for column in cells}
    headings = list(dict.fromkeys(heading for cells in lines.values() for heading, _ in cells))
    columns = sorted(columns, key=lambda column: (headings.index(column[0]), column[1]))
    sparsities = [f"{heading}\n{sparsity} %".strip() for heading, sparsity in columns]
    rows = [[*line, *(cells.get(column, "") for column in columns)] for line, cells in lines.items()]
    _table(console, title, names, sparsities, rows)


def _table(
    console: Console, title: list[str], names: list[str], numbers: list[str], rows: Iterable[Iterable[str]]
) -> None:
    """Print a table at its own width, words first: a narrow terminal wraps it, but no number is cut off."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name.replace("_", " "), no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print()
    for words in title:
        console.print(words, style="bold", highlight=False, soft_wrap=True)
    width = console.width
    console.width = max(width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    console.width = width


def _claims(console: Console, claims: pd.DataFrame) -> None:
    """Print every published claim with our pairs beside it; effects are logarithms, or differences of correlations."""
    for statement, rows in claims.groupby("statement", sort=False):
        compared = rows[rows["verdict"] != "not attempted"]
        names = [name for name in CLAIMED if compared[name].nunique(dropna=False) > 1]
        if rows["model"].nunique() > 1 and "model" not in names:  # one was compared, or none
            names.insert(0, "model")
        same = [name for name in CLAIMED if name not in names and compared[name].notna().any()]
        told = [_told(name, compared[name].iloc[0]) for name in same]
        lines = [
            [*(_text(row[name]) for name in names), row["verdict"], _effect(row), _published(row)]
            for _, row in rows.sort_values(names, kind="stable").iterrows()
        ]
        _table(
            console,
            list(filter(None, [statement, ", ".join(told)])),
            [*names, "verdict"],
            ["ours [95 %]", "published"],
            lines,
        )


def _effect(row: pd.Series) -> str:
    if pd.isna(row["effect"]):
        return "-"
    pair = f"{_number(row['value_winner'])} against {_number(row['value_loser'])}"
    return f"{pair}: {row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _published(row: pd.Series) -> str:
    pair = f"{_text(row['published_value_winner'])} against {_text(row['published_value_loser'])}: "
    place = [row["published_model"], row["published_units"], row["published_sparsity_pct"]]
    words = [_text(part) + (" %" if part is place[2] else "") for part in place if pd.notna(part)]
    pair = "" if pd.isna(row["published_value_winner"]) else pair
    return f"{pair}{row['published_effect']:+.3f} ({' '.join(words) or 'headline'})"


def _places(results: Path, console: Console) -> None:
    figures = len(list(Path(results).glob("figures/**/*.png")))
    words = f"{figures} figures in {results}/figures, {len(FINAL_TABLES)} tables in {results}/tables"
    console.print(f"\n{words}", highlight=False, soft_wrap=True)


def _latency(found: Tables) -> pd.DataFrame:
    """Latencies with the columns of other tables: their modes are methods."""
    return found["latency"].rename(columns={"mode": "method"})


def _over_layers(quality: pd.DataFrame) -> pd.DataFrame:
    """Recall averaged over layers."""
    recall = where(quality, metric="recall").drop(columns="metric")
    keys = [name for name in [*LINE, "sparsity_pct"] if name in recall]
    return recall.groupby(keys, dropna=False, as_index=False)["value"].mean()


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return NAMES.get(value, value) if isinstance(value, str) else f"{value:g}"


def _told(name: str, value: Any) -> str:
    """A value that explains itself, with its name where it does not."""
    alone = name in ("model", "device", "data", "task", "kind", "units", "criterion", "policy", "dtype")
    return _text(value) if alone else f"{name.replace('_', ' ')} {_text(value)}"


def _number(value: float, like: float | None = None) -> str:
    """A number with the decimals that give `like`, itself unless told, three digits or more; "-" for none."""
    if pd.isna(value):
        return "-"
    size = abs(value if like is None else like)
    return f"{value:,.{3 if size < 2 else max(0, 3 - len(str(int(size))))}f}"


def _value(row: pd.Series) -> str:
    return _number(row["value"])


def _estimate(row: pd.Series) -> str:
    return f"{_number(row['value'])} ± {_number(row['stderr'], like=row['value'])}"


def _nats(row: pd.Series) -> str:
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _points(row: pd.Series) -> str:
    value, low, high = (f"{100 * row[name]:+.1f}" for name in ("difference", "low", "high"))
    p_value = "p<.001" if row["p_value"] < 0.001 else f"p={row['p_value']:.3f}".replace("0.", ".")
    return f"{value} [{low}, {high}] {p_value}"


def _median(row: pd.Series) -> str:
    return _number(row["ms_per_token"])


def _times(row: pd.Series) -> str:
    median = row["ms_per_token"]
    return f"{_number(median)} [{_number(row['ms_p10'], like=median)}, {_number(row['ms_p90'], like=median)}]"
