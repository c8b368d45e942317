"""`shadowcore diff`: list the numbers of a study that changed more than noise between two runs."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shadowcore.commands import console, new_table, say
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
    for one in compared:
        common = one.equal + one.within + one.unknown + len(one.moved)
        parts = [f"{one.equal} equal", f"{one.within} within noise", f"{len(one.moved)} moved"]
        if one.unknown:
            parts.append(f"{one.unknown} differ by an unknown error")
        say(out, f"{one.table}: {common} in both runs: {', '.join(parts)}")
        for name, (old, new) in one.named.items():
            say(out, f"  {name.replace('_', ' ')} is {old} in the old run and {new} in the new one")
        if one.moved:
            out.print(_moved(one))
            _more(out, len(one.moved))
        for what, names in (("appeared", one.appeared), ("is missing", one.vanished)):
            for name in names[:LISTED]:
                say(out, f"  {what}: {name}")
            _more(out, len(names))
    for what, old, new in verdicts:
        say(out, f"claims: {what}: {old}, now {new}")
    say(
        out,
        f"\nMoved: p below {changes.MOVED:g} for a difference of zero, corrected among the numbers of a table. "
        "paired: by document, where both runs kept the outcomes of the same ones; else both estimates are taken as "
        "independent.",
    )


def _moved(one: changes.Compared) -> Table:
    table = new_table("moved", "old", "new", "change", "p", "errors", no_wrap=True)
    for row in one.moved[:LISTED]:
        change = f"{100 * math.expm1(row.difference):+,.1f} %" if one.log else f"{row.difference:+.4f}"
        errors = "paired" if row.paired else "independent"
        table.add_row(row.what, number(row.old), number(row.new), change, f"{row.p_value:.2g}", errors)
    return table


def _more(out: Console, count: int) -> None:
    if count > LISTED:
        say(out, f"  and {count - LISTED} more")
