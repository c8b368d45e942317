"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def markdown(names: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table with these names of columns."""
    names = list(names)
    head, *lines = (f"| {' | '.join(map(str, row))} |" for row in (names, *rows))
    return [head, "|" + "---|" * len(names), *lines]
