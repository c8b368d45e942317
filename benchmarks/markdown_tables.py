"""Tables as Markdown, and ranges of numbers as words."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd


def markdown(names: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table with these names of columns."""
    names = list(names)
    head, *lines = (f"| {' | '.join(map(str, row))} |" for row in (names, *rows))
    return [head, "|" + "---|" * len(names), *lines]


def lowest_to_highest(values: pd.Series, form: str = ".1f") -> str:
    """The lowest and the highest of some values; one number if they look the same."""
    return " to ".join(dict.fromkeys(f"{value:{form}}" for value in (values.min(), values.max())))
