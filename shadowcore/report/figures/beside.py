"""The published claims beside ours, as a table to look at."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report import claims
from shadowcore.report.style import Axes, Figure, empty, key, legend, panels, styled, title
from shadowcore.report.tables import Tables
from shadowcore.schemas import MEASURED_TABLES

VERDICTS = {
    "reproduced": ("#009E73", "o"),
    "direction only": ("#56B4E9", "^"),
    "not reproduced": ("#D55E00", "X"),
    "not attempted": ("#8C8C8C", ""),
}
PUBLISHED = {"color": "#000000", "marker": "|", "markersize": 11, "markeredgewidth": 1.6}

NEEDED = [
    "claim", "units", "policy", "protocol", "criterion", "sparsity_pct", "effect", "low", "high", "value_winner",
    "value_loser", "published_value_winner", "published_value_loser", "published_effect", "metric", "data",
]  # fmt: skip
MOST = 4  # places of a claim: a table is to be read


@styled
def beside(tables: Tables, model: str) -> Figure:
    """A line per claim and place: our effect with its interval, the published one, their values, and the verdict."""
    measured = {name: tables.get(name, table.build([]).to_pandas()) for name, table in MEASURED_TABLES.items()}
    rows = pd.DataFrame([row for row in claims.judge(measured) if row["model"] == model])
    if rows.empty:
        return empty(f"{model}: no claim can be judged in the tables")
    rows = _most_telling(rows.reindex(columns=sorted({*rows.columns, *NEEDED})))
    lines = len(rows)
    figure, (axes,) = panels(1, size=(12.0, 0.3 * lines + 1.0))
    axes.axvline(0, color="#000000", linewidth=0.8)
    for place, row in enumerate(rows.to_dict("records")):
        color, marker = VERDICTS[row["verdict"]]
        axes.plot(row["published_effect"], place, linestyle="", **PUBLISHED)
        if pd.notna(row["effect"]):
            axes.hlines(place, row["low"], row["high"], color=color)
            axes.plot(row["effect"], place, color=color, marker=marker)
        _columns(axes, place, [_values(row, ""), _values(row, "published_"), row["verdict"]], color)
    _columns(axes, -0.9, ["ours", "published", "verdict"], "#000000")
    axes.set(xlabel="effect, above 0 as claimed", ylim=(lines - 0.5, -0.5))
    axes.set_yticks(range(lines), [_told(row) for row in rows.to_dict("records")], fontsize=8)
    axes.grid(axis="y", visible=False)
    legend(figure, [
        key("published", line="", **PUBLISHED),
        *(key(name, color, marker, "") for name, (color, marker) in VERDICTS.items() if marker),
    ])  # fmt: skip
    title(
        figure, "Published claims beside ours: effects with 95 % intervals, winner / loser, and what became of them",
        [model, "effects are logarithms of ratios, of rank correlations differences"],
    )  # fmt: skip
    return figure


def _columns(axes: Axes, place: float, words: list[str], color: str) -> None:
    for x, text in zip((1.01, 1.17, 1.33), words, strict=True):
        axes.text(x, place, text, color=color, va="center", fontsize=8, transform=axes.get_yaxis_transform())


def _most_telling(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the claims; of many places of one claim those with the surest effects, either way."""
    sure = (rows["effect"] / (rows["high"] - rows["low"])).abs().fillna(0)
    rows = rows.assign(sure=sure).sort_values("sure", ascending=False, kind="stable")
    rows = rows.groupby("claim", sort=False).head(MOST)
    order = {name: number for number, name in enumerate(claims.CLAIMS)}
    by = ["claim", "sparsity_pct", "units"]
    return rows.sort_values(by, key=lambda column: column.map(order) if column.name == "claim" else column)


def _told(row: dict) -> str:
    place = [row["units"], row["policy"], row["protocol"], row["criterion"]]
    pct = "" if pd.isna(row["sparsity_pct"]) else f"{row['sparsity_pct']:g} %"
    parts = [row["claim"].replace("_", " "), pct, *place]
    return ", ".join(str(part) for part in parts if part and pd.notna(part) and part not in ("token", "per_layer"))


def _values(row: dict, whose: str) -> str:
    pair = [row[f"{whose}value_winner"], row[f"{whose}value_loser"]]
    return " / ".join(
        "-" if pd.isna(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        for value in np.array(pair, dtype=float)
    )
