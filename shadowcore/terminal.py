"""Print letters that the encoding of the terminal, or of the output file, does not have."""

import codecs
import sys

PLAIN = {"±": "+-", "−": "-", "–": "-", "—": "-", "×": "x", "·": "-", "…": "...", "≥": ">=", "≤": "<=", "→": "->"}


def tolerant() -> None:
    """Replace letters that the terminal's encoding does not have, instead of failing with UnicodeEncodeError."""
    codecs.register_error("shadowcore-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # streams of tests and notebooks have no encoding
            stream.reconfigure(errors="shadowcore-plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: signs become ASCII, other letters become Python escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    plain = (PLAIN.get(letter, letter.encode("ascii", "backslashreplace").decode()) for letter in letters)
    return "".join(plain), error.end
