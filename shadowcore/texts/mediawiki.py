"""Read the export of a MediaWiki encyclopaedia: articles as prose without markup."""

import bz2
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

MARKUP_DROPPED = re.compile(r"<ref[^<>]*/>|<ref\b.*?</ref>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
INNERMOST_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
TAGS_DROPPED = {"gallery", "math", "table"}
LINKS_DROPPED = ("file:", "image:", "category:")
END_MATTER = {
    "see also", "references", "notes", "notes and references", "references and notes", "footnotes", "citations",
    "sources", "bibliography", "works cited", "further reading", "external links",
}  # fmt: skip
RESIDUE = [  # remainders of removed templates and pictures, and white space; in this order
    (r"^.*(?:\[\[(?:File|Image):|\bthumb\|).*$", ""),
    (r"'{2,}", ""),
    (r"[ \t\xa0]+", " "),
    (r"\( ?(?:[,;] ?)+", "("),
    (r" ?\( ?\)", ""),
    (r" ([,.;:)])", r"\1"),
    (r" ?\n ?", "\n"),
    (r"\n{3,}", "\n\n"),
]


def articles(path: Path) -> Iterator[tuple[str, str]]:
    """Title and prose of every article in a MediaWiki export (XML, bzip2), without redirects."""
    with bz2.open(path) as export:
        for _, element in ElementTree.iterparse(export):
            if element.tag.endswith("}page"):
                if element.findtext("{*}ns") == "0" and element.find("{*}redirect") is None:
                    yield element.findtext("{*}title"), prose(element.findtext("{*}revision/{*}text") or "")
                element.clear()


def prose(markup: str) -> str:
    """Convert wiki markup to plain paragraphs without references, tables, templates, pictures and end matter."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Heading, Tag, Wikilink

    markup, tables = MARKUP_DROPPED.sub("", markup), 1
    while tables:  # nested tables, the innermost first
        markup, tables = INNERMOST_TABLE.subn("", markup)
    code = mwparserfromhell.parse(markup)
    kept = []
    for node in code.nodes:
        if isinstance(node, Heading) and node.title.strip_code().strip().lower() in END_MATTER:
            break
        if isinstance(node, Wikilink) and str(node.title).strip().lower().startswith(LINKS_DROPPED):
            continue
        if isinstance(node, Tag) and str(node.tag).strip().lower() in TAGS_DROPPED:
            continue
        kept.append(node)
    code.nodes = kept
    text = code.strip_code(normalize=True, collapse=True)
    for pattern, replacement in RESIDUE:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text.strip()
