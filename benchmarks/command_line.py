"""The command line of a benchmark: an error of ours is one sentence and an exit code, as for `shadowcore`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shadowcore.errors import ShadowcoreError


def run(main: Callable[[list[str]], int]) -> None:
    """Call `main` with the words after the script's name, and exit with its code."""
    try:
        sys.exit(main(sys.argv[1:]))
    except ShadowcoreError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
