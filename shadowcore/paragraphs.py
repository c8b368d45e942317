"""Where the paragraphs of a text end, what of it can be seen, and the mark it is recognised by."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import cache

# Characters that show nothing: control and format characters, white space, marks that need a letter to sit on
INVISIBLE_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp", "Mn"}
FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and a symbol by category, and blank on the page
# form feed, the separators of files, groups and records, and Unicode's separators of lines and paragraphs
SEPARATORS = re.compile("[\f\x1c\x1d\x1e\u2028\u2029]")


@cache
def _shows(character: str) -> bool:
    return unicodedata.category(character) not in INVISIBLE_CATEGORIES and character not in FILLERS


def visible(text: str) -> bool:
    """Whether anything of a text can be seen: white space and zero-width characters cannot.

    >>> visible(" a"), visible(" \\u200b\\n")
    (True, False)
    """
    return any(map(_shows, text))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text: what lines without anything visible part, whatever character ends a line.

    Line ends inside a paragraph become "\\n". A form feed, U+2028 and U+2029 end a paragraph, too.

    >>> paragraphs("one\\r\\ntwo\\r\\n \\r\\nthree")
    ['one\\ntwo', 'three']
    """
    found: list[list[str]] = [[]]
    for line in SEPARATORS.sub("\n\n", text).splitlines():
        if visible(line):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def one_paragraph(text: str) -> str:
    """A text without the breaks that would part it into several paragraphs."""
    return "\n".join(paragraphs(text))


def mark(text: str) -> str:
    """What a text is recognised by: the hash of its visible words, whatever white space is between them."""
    return hashlib.sha256(" ".join(filter(visible, text.split())).encode()).hexdigest()[:16]
