"""Commands before, during and after a study: each module has `options`, which adds options to a parser, and `run`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """The console of all commands: as wide as the terminal, or 120 columns without a terminal."""
    from rich.console import Console  # imported here, because `doctor` must run if nothing is installed

    return Console(width=None if os.isatty(1) else 120)


def say(out: Console, line: str) -> None:
    """Print a line as it is, which the terminal may wrap."""
    out.print(line, highlight=False, markup=False, soft_wrap=True)


def new_table(first: str, *numbers: str, no_wrap: bool = False) -> Table:
    """An empty table with a column of words and columns of numbers; no_wrap: not to break lines in the numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=no_wrap)
    return table
