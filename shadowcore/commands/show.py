"""`shadowcore show`: print the results of a study: the answer first, and every table on request."""

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shadowcore import artifacts
from shadowcore.commands import console
from shadowcore.report import drawn
from shadowcore.report.blocks import Block, answers, claimed, lacking, measured, refused, summaries
from shadowcore.report.budgets import at_bytes
from shadowcore.report.tables import of_study


def options(parser: argparse.ArgumentParser) -> None:
    default = Path("results/quick")
    parser.add_argument("results", type=Path, nargs="?", default=default, help=f"results folder (default: {default})")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--brief", action="store_true", help="the best method at each sparsity only")
    much.add_argument("--all", action="store_true", help="every table")


def run(parsed: argparse.Namespace) -> None:
    show(parsed.results, console(), everything=parsed.all, brief=parsed.brief)


def show(results: Path, out: Console, everything: bool = False, brief: bool = False) -> None:
    """Print the best method at each sparsity, then a line per method; or every table; or only the answer (`brief`)."""
    found = of_study(results)
    parts = [at_bytes(found, everything), answers(found, everything)]
    if everything:
        parts += [measured(found), claimed(found)]
    elif not brief:
        parts.append(summaries(found))
    # what the tables lack, where they are made of a part of the study, and what was not timed
    for part in chain((lacking(missing(results)), refused(found)), *parts):
        if part is not None:
            _table(out, part)
    for line in _files(Path(results), everything):
        out.print(line, highlight=False, soft_wrap=True)


def missing(results: Path) -> list[dict[str, str]]:
    """What tables and page of a results folder lack of their study: jobs, and why; empty where they have everything."""
    files = [*Path(results).glob("tables/*.parquet"), Path(results) / "index.html"]
    return max((artifacts.missing(path) for path in files if path.is_file()), key=len, default=[])


def _files(results: Path, everything: bool) -> Iterator[str]:
    """Where figures, tables and page are, which figures were left out, and how to see more."""
    figures, tables = (len(list(results.glob(pattern))) for pattern in ("figures/**/*.png", "tables/*.parquet"))
    page = results / "index.html"
    words = f"{figures} figures in {results}/figures, {tables} tables in {results}/tables"
    yield f"\n{words}, all on one page: {page}" if page.is_file() else f"\n{words}"
    yield from filter(None, (one.sentence() for one in drawn.read(sorted(results.glob("figures/*.json")))))
    if not everything:
        yield f"`shadowcore show {results} --all` prints every table."


def _table(out: Console, part: Block) -> None:
    """Print a table at its own width, words first: a narrow terminal wraps it, but no number is cut off."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in part.words:
        table.add_column(name.replace("_", " "), no_wrap=True)
    for number in part.numbers:
        table.add_column(number, justify="right", no_wrap=True)
    for row in part.rows:
        table.add_row(*map(Text, row))
    out.print()
    for words in filter(None, (part.title, part.note)):
        out.print(Text(words, "bold"), soft_wrap=True)
    width = out.width
    out.width = max(width, out.measure(table, options=out.options.update(width=10_000)).maximum)
    out.print(table)
    out.width = width
