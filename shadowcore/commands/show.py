"""`shadowcore show`: print the results of a study, the answer first."""

import argparse
from pathlib import Path

from shadowcore.commands import console
from shadowcore.report import show


def options(parser: argparse.ArgumentParser) -> None:
    default = Path("results/quick")
    parser.add_argument("results", type=Path, nargs="?", default=default, help=f"a study's results folder ({default})")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--brief", action="store_true", help="the best method at each sparsity only")
    much.add_argument("--all", action="store_true", help="every table")


def run(parsed: argparse.Namespace) -> None:
    show.show(parsed.results, console(), everything=parsed.all, brief=parsed.brief)
