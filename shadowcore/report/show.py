"""The final tables of a study in the terminal: all of them, or the few lines that end a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shadowcore import artifacts
from shadowcore.report.blocks import Block, claimed, lacking, measured, refused, summaries
from shadowcore.report.tables import Tables, of_study


def show(results: Path, console: Console) -> None:
    """Print all final tables of a results folder, such as results/quick, and say where the figures are."""
    found = of_study(results)
    _print(results, console, chain(_warnings(results, found), measured(found), claimed(found)))


def summary(results: Path, console: Console) -> None:
    """Print a line per method: perplexity, accuracy and time under the main units, criterion and policy."""
    found = of_study(results)
    _print(results, console, chain(_warnings(results, found), summaries(found)))


def _warnings(results: Path, found: Tables) -> Iterator[Block]:
    """What the tables lack, where they are made of a part of the study, and what was not timed."""
    yield from filter(None, (lacking(missing(results)), refused(found)))


def missing(results: Path) -> list[dict[str, str]]:
    """What tables and page of a results folder lack of their study: jobs, and why; empty where they have everything."""
    files = [*Path(results).glob("tables/*.parquet"), Path(results) / "index.html"]
    return max((artifacts.missing(path) for path in files if path.is_file()), key=len, default=[])


def _print(results: Path, console: Console, parts: Iterable[Block]) -> None:
    for part in parts:
        _table(console, part)
    figures = len(list(Path(results).glob("figures/**/*.png")))
    tables = len(list(Path(results).glob("tables/*.parquet")))
    words = f"{figures} figures in {results}/figures, {tables} tables in {results}/tables"
    if (Path(results) / "index.html").is_file():
        words += f", all on one page: {results}/index.html"
    console.print(f"\n{words}", highlight=False, soft_wrap=True)


def _table(console: Console, part: Block) -> None:
    """Print a table at its own width, words first: a narrow terminal wraps it, but no number is cut off."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in part.words:
        table.add_column(name.replace("_", " "), no_wrap=True)
    for number in part.numbers:
        table.add_column(number, justify="right", no_wrap=True)
    for row in part.rows:
        table.add_row(*map(Text, row))
    console.print()
    for words in filter(None, (part.title, part.told)):
        console.print(Text(words, "bold"), soft_wrap=True)
    width = console.width
    console.width = max(width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    console.width = width
