"""`shadowcore diff`: list the numbers of a study that changed more than noise between two runs."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from shadowcore.commands import console
from shadowcore.commands.show import missing
from shadowcore.report import changes
from shadowcore.report.blocks import number

LISTED = 30  # lines of one kind that are printed


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="a study's results folder, such as results/quick of yesterday")
    parser.add_argument("new", type=Path, help="results folder of another run of this study, or of a similar study")


def run(parsed: argparse.Namespace) -> None:
    for name, folder in (("old", parsed.old), ("new", parsed.new)):
        if missing(folder):
            print(f"The {name} run is incomplete: some of its jobs failed; `shadowcore show {folder}` names them.")
    compared = list(changes.compare(parsed.old, parsed.new))
    print_changes(compared, changes.verdicts(parsed.old, parsed.new), console())


def print_changes(compared: Sequence[changes.Compared], verdicts: Sequence[tuple[str, str, str]], out: Console) -> None:
    """Print a line for each table, then its changed numbers, and rows that are only in one of the runs."""

    def say(line: str) -> None:
        out.print(line, highlight=False, markup=False, soft_wrap=True)

    for one in compared:
        common = one.equal + one.within + one.unknown + len(one.moved)
        parts = [f"{one.equal} equal", f"{one.within} within noise", f"{len(one.moved)} moved"]
        if one.unknown:
            parts.append(f"{one.unknown} differ by an unknown error")
        say(f"{one.table}: {common} in both runs: {', '.join(parts)}")
        for name, (old, new) in one.named.items():
            say(f"  {name.replace('_', ' ')} is {old} in the old run and {new} in the new one")
        if one.moved:
            out.print(_moved(one))
            _more(say, len(one.moved))
        for what, names in (("appeared", one.appeared), ("is missing", one.vanished)):
            for name in names[:LISTED]:
                say(f"  {what}: {name}")
            _more(say, len(names))
    for what, old, new in verdicts:
        say(f"claims: {what}: {old}, now {new}")
    say(
        f"\nMoved: p below {changes.MOVED:g} for a difference of zero, corrected among the numbers of a table. "
        "paired: by document, where both runs kept the outcomes of the same ones; else both estimates are taken as "
        "independent."
    )


def _moved(one: changes.Compared) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("moved", overflow="fold")
    for name in ("old", "new", "change", "p", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in one.moved[:LISTED]:
        change = f"{100 * math.expm1(row.difference):+,.1f} %" if one.log else f"{row.difference:+.4f}"
        errors = "paired" if row.paired else "independent"
        table.add_row(row.what, number(row.old), number(row.new), change, f"{row.p_value:.2g}", errors)
    return table


def _more(say, count: int) -> None:
    if count > LISTED:
        say(f"  and {count - LISTED} more")
