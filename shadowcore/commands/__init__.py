"""Commands before, during and after a study: each module has `options`, which adds options to a parser, and `run`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """The console of all commands: as wide as the terminal, or 120 columns without a terminal."""
    from rich.console import Console  # imported here, because `doctor` must run if nothing is installed

    return Console(width=None if os.isatty(1) else 120)
