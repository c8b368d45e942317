"""Published effects and ours, one panel for each quantity."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report import claims as judged
from shadowcore.report.figures.lines import dots
from shadowcore.report.style import Drawing, key, legend, log_axis, named_rows, panels, styled, title
from shadowcore.report.tables import Tables
from shadowcore.schemas import MEASURED_TABLES

VERDICTS = {
    "reproduced": ("#009E73", "o"),
    "direction only": ("#0072B2", "^"),
    "not reproduced": ("#D55E00", "X"),
}
PUBLISHED = {"color": "#000000", "marker": "|", "markersize": 12, "markeredgewidth": 1.8}
# what an effect above 1, or above 0, of each quantity means
AXES = {
    "perplexity": "perplexity of the other side / of the claimed winner",
    "accuracy": "mean accuracy of the claimed winner / of the other side",
    "rank_correlation": "difference of rank correlations (with the claim's margin)",
    "latency": "time per token of the other side / of the claimed winner",
}
MOST = 3  # places of a claim


@styled
def claims(tables: Tables, model: str) -> Drawing:
    """A row per claim and place: our effect with its interval, and the published one; a panel per quantity."""
    measured = {name: tables.get(name, table.build([]).to_pandas()) for name, table in MEASURED_TABLES.items()}
    rows = pd.DataFrame([row for row in judged.judge(measured) if row["model"] == model])
    rows = rows[rows["verdict"] != "not attempted"] if len(rows) else rows
    if rows.empty:
        return "no published claim can be compared with the tables"
    rows = _surest(rows)
    rows["quantity"] = [judged.CLAIMS[name].quantity for name in rows["claim"]]
    parts = {name: rows[rows["quantity"] == name] for name in AXES if name in set(rows["quantity"])}
    figure, axes = panels(
        len(parts), columns=1, height=0.22 * len(rows) / len(parts) + 0.75,
        height_ratios=[len(part) + 1.5 for part in parts.values()],
    )  # fmt: skip
    figure.set_figwidth(8.5)
    for panel, (quantity, part) in zip(axes, parts.items(), strict=True):
        ratio = quantity != "rank_correlation"
        shown = part.assign(**{name: np.exp(part[name]) if ratio else part[name] for name in ("effect", "low", "high")})
        theirs = np.exp(part["published_effect"]) if ratio else part["published_effect"]
        panel.axvline(1 if ratio else 0, color="#000000", linewidth=0.8)
        panel.plot(theirs, range(len(part)), linestyle="", **PUBLISHED)
        for place, verdict in enumerate(part["verdict"]):
            color, marker = VERDICTS[verdict]
            dots(panel, [place], shown.iloc[[place]], ("effect", "low", "high"), color=color, marker=marker)
        named_rows(panel, [_place(row) for row in part.to_dict("records")])
        panel.set_xlabel(AXES[quantity])
        if ratio:
            log_axis(panel, "x")
    verdicts = [
        key(name, color, marker, "") for name, (color, marker) in VERDICTS.items() if name in set(rows["verdict"])
    ]
    legend(figure, [key("published", line="", **PUBLISHED), *verdicts])
    title(figure, "Published claims: our effects with 95 % intervals, right of the line as claimed", [model])
    return figure


def _surest(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the claims; of many places of one claim those with the surest effects, either way."""
    sure = (rows["effect"] / (rows["high"] - rows["low"])).abs().fillna(0)
    rows = rows.assign(sure=sure).sort_values("sure", ascending=False, kind="stable")
    rows = rows.groupby("claim", sort=False).head(MOST)
    order = {name: number for number, name in enumerate(judged.CLAIMS)}
    by = ["claim", "sparsity_pct", "units"]
    return rows.sort_values(by, key=lambda column: column.map(order) if column.name == "claim" else column)


def _place(row: dict) -> str:
    pct = "" if pd.isna(row.get("sparsity_pct")) else f"{row['sparsity_pct']:g} %"
    parts = [
        row["claim"].replace("_", " "),
        pct,
        *(row.get(name) for name in ("units", "policy", "protocol", "criterion")),
    ]
    return ", ".join(str(part) for part in parts if part and pd.notna(part) and part not in ("token", "per_layer"))
