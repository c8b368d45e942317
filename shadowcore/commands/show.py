"""`shadowcore show`: the final tables of a study in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from shadowcore.commands import console
from shadowcore.report import show


def options(parser: argparse.ArgumentParser) -> None:
    default = Path("results/quick")
    parser.add_argument("results", type=Path, nargs="?", default=default, help=f"a study's results folder ({default})")
    parser.add_argument("--brief", action="store_true", help="a summary only")


def run(parsed: argparse.Namespace) -> None:
    (show.summary if parsed.brief else show.show)(parsed.results, console())
