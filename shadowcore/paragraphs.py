"""Split texts into paragraphs, find out whether a text shows anything, and hash a text to recognise it again."""

import hashlib
import re
import unicodedata
from functools import cache

# characters that show nothing: control and format characters, white space, combining marks
INVISIBLE_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp", "Mn"}
FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # blank, although their categories are letters and symbols
# form feed, the separators of files, groups and records, and Unicode's separators of lines and paragraphs
SEPARATORS = re.compile("[\f\x1c\x1d\x1e\u2028\u2029]")


@cache
def _shows(character: str) -> bool:
    return unicodedata.category(character) not in INVISIBLE_CATEGORIES and character not in FILLERS


def visible(text: str) -> bool:
    """Whether a text has a visible character, which white space and zero-width characters are not.

    >>> visible(" a"), visible(" \\u200b\\n")
    (True, False)
    """
    return any(map(_shows, text))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, separated by lines without a visible character.

    Line ends of any kind inside a paragraph become "\\n". A form feed, U+2028 and U+2029 end a paragraph, too.

    >>> paragraphs("one\\r\\ntwo\\r\\n \\r\\nthree")
    ['one\\ntwo', 'three']
    """
    parts: list[list[str]] = [[]]
    for line in SEPARATORS.sub("\n\n", text).splitlines():
        if visible(line):
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return ["\n".join(lines) for lines in parts if lines]


def one_paragraph(text: str) -> str:
    """The text as a single paragraph, without blank lines."""
    return "\n".join(paragraphs(text))


def mark(text: str) -> str:
    """A hash of a text's visible words, which does not depend on the white space between them."""
    return hashlib.sha256(" ".join(filter(visible, text.split())).encode()).hexdigest()[:16]
