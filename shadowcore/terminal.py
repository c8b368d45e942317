"""What is printed where the terminal, or the file that output goes to, cannot hold every letter."""

from __future__ import annotations

import codecs
import sys

PLAIN = {"±": "+-", "−": "-", "–": "-", "—": "-", "×": "x", "·": "-", "…": "...", "≥": ">=", "≤": "<=", "→": "->"}


def tolerant() -> None:
    """Print what the terminal's encoding lacks in other letters, instead of ending in UnicodeEncodeError."""
    codecs.register_error("shadowcore-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's, or a notebook's, may hold every letter
            stream.reconfigure(errors="shadowcore-plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: signs in ASCII, other letters as Python's escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(one, one.encode("ascii", "backslashreplace").decode()) for one in letters), error.end
