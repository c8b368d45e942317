"""Lines and points of methods in a panel: at most seven lines, each with its name at its end."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from shadowcore.report.looks import look
from shadowcore.report.select import methods, named, where
from shadowcore.report.style import Axes, End, Line2D, key

INTERVAL = ("value", "low", "high")


class Line(NamedTuple):
    """One method's rows by rising sparsity."""

    method: str
    rows: pd.DataFrame

    def style(self) -> dict[str, str]:
        """Its colour and marker."""
        style = look(self.method)
        return {"color": style.color, "marker": style.marker}

    def end(self, x: pd.Series, y: pd.Series) -> End:
        """Its last point, name and colour, for the label at its end."""
        return x.iloc[-1], y.iloc[-1], named(self.rows), look(self.method).color


def lines(rows: pd.DataFrame, *by: str) -> list[Line]:
    """A line for each method in their fixed order, at most MOST_LINES with that of dense."""
    names = [name for name in methods({"dense", *rows["method"]}) if name in set(rows["method"])]
    return [Line(name, where(rows, method=name).sort_values(["sparsity_pct", *by])) for name in names]


def curves(axes: Axes, rows: pd.DataFrame, x: str = "sparsity_pct", columns: tuple[str, ...] = INTERVAL) -> list[End]:
    """Draw a line for each method against column `x`, with bars over its intervals; returns the labels of the ends."""
    drawn = lines(rows, x)
    for line in drawn:
        intervals(axes, line.rows[x], line.rows, columns, **line.style())
    return [line.end(line.rows[x], line.rows[columns[0]]) for line in drawn]


def intervals(axes: Axes, x: pd.Series, rows: pd.DataFrame, columns: tuple[str, ...], **style: object) -> None:
    """Points joined by a line; `columns` name the value and, for a bar over the interval, low and high."""
    if len(columns) == 1:
        axes.plot(x, rows[columns[0]], **style)
        return
    axes.errorbar(x, rows[columns[0]], yerr=_reach(rows, columns), elinewidth=1, capsize=2, **style)


def dots(axes: Axes, places: Iterable[float], rows: pd.DataFrame, columns=INTERVAL, **style: object) -> None:
    """Points at heights `places`, each with a horizontal bar over its interval."""
    style = {"elinewidth": 1.2, "capsize": 0, "linestyle": ""} | style
    axes.errorbar(rows[columns[0]], list(places), xerr=_reach(rows, columns), **style)


def _reach(rows: pd.DataFrame, columns: tuple[str, ...]) -> np.ndarray:
    """From the value down to low and up to high; no interval, no bar."""
    value, low, high = (rows[name] for name in columns)
    return np.stack([(value - low).fillna(0), (high - value).fillna(0)]).clip(0)


def method_key(method: str, line: str = "", label: str | None = None) -> Line2D:
    """A method's entry in a legend."""
    style = look(method)
    return key(label or style.label, style.color, style.marker, line)
