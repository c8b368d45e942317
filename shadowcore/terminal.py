"""Print letters that the encoding of the terminal, or of the output file, does not have."""

import sys


def tolerant() -> None:
    """Print "?" for letters that the terminal's encoding does not have, instead of failing with UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # streams of tests and notebooks have no encoding
            stream.reconfigure(errors="replace")
