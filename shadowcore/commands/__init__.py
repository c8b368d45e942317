"""The commands before, during and after a study: each module has `options` for its parser, and `run`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """What commands print on: as wide as the terminal, 120 columns where there is none."""
    from rich.console import Console  # here: `doctor` runs where nothing is installed

    return Console(width=None if os.isatty(1) else 120)
