"""Published effects and ours, one panel for each quantity."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from shadowcore.report import claims as judged
from shadowcore.report import style
from shadowcore.report.figures.lines import dots
from shadowcore.report.style import Drawing
from shadowcore.report.tables import Tables
from shadowcore.schemas import MEASURED_TABLES

VERDICTS = {
    "reproduced": ("#009E73", "o"),
    "direction only": ("#0072B2", "^"),
    "transfers": ("#56B4E9", "o"),
    "undecided": ("#999999", "D"),
    "not comparable": ("#999999", "s"),
    "does not transfer": ("#E69F00", "X"),
    "contradicted": ("#D55E00", "X"),
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


def claims(tables: Tables, model: str) -> Drawing:
    """A row per claim and place: our effect on every text with its interval, and the published one."""
    empty = {name: table.build([]).to_pandas() for name, table in MEASURED_TABLES.items() if name not in tables}
    measured = empty | {name: tables[name] for name in MEASURED_TABLES if name in tables}
    rows = pd.DataFrame([row for row in judged.judge(measured) if row["model"] == model])
    rows = rows[rows["verdict"] != "not attempted"] if len(rows) else rows
    if rows.empty:
        return "no published claim can be compared with the tables"
    rows["quantity"] = [judged.CLAIMS[name].quantity for name in rows["claim"]]
    rows["place"] = [_place(row) for row in rows.to_dict("records")]
    rows = _surest(rows)
    parts = {name: rows[rows["quantity"] == name] for name in AXES if name in set(rows["quantity"])}
    lines = rows["place"].nunique()
    figure, axes = style.panels(
        len(parts), columns=1, height=0.26 * lines / len(parts) + 0.75,
        height_ratios=[part["place"].nunique() + 1.5 for part in parts.values()],
    )  # fmt: skip
    figure.set_figwidth(8.5)
    for panel, (quantity, part) in zip(axes, parts.items(), strict=True):
        _panel(panel, part, ratio=quantity != "rank_correlation")
        panel.set_xlabel(AXES[quantity])
    verdicts = [
        style.key(name, color, marker, "") for name, (color, marker) in VERDICTS.items() if name in set(rows["verdict"])
    ]
    style.legend(figure, [style.key("published", line="", **PUBLISHED), *verdicts])
    style.title(
        figure,
        "Published claims: our effect on every text with its 95 % interval; right of the line is as claimed",
        [model],
    )
    return figure


def _panel(panel: Axes, part: pd.DataFrame, ratio: bool) -> None:
    """Effects of one quantity: a line a place, a mark a text; ratios are drawn as such, not as logarithms."""
    values = ["effect", "low", "high", "published_effect"]
    part = part.assign(**{name: np.exp(part[name].astype(float)) for name in values}) if ratio else part
    panel.axvline(1 if ratio else 0, color="#000000", linewidth=0.8)
    for line, (_, texts) in enumerate(part.groupby("place", sort=False)):
        panel.plot(texts["published_effect"].iloc[:1], [line], linestyle="", **PUBLISHED)
        for number, verdict in enumerate(texts["verdict"]):
            color, marker = VERDICTS[verdict]
            y = line + 0.2 * (number - (len(texts) - 1) / 2)
            dots(panel, [y], texts.iloc[[number]], ("effect", "low", "high"), color=color, marker=marker)
    style.named_rows(panel, list(part["place"].unique()))
    if ratio:
        style.log_axis(panel, "x")


def _surest(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the claims; of many places of one claim those with the surest effects, either way."""
    rows = rows.assign(sure=(rows["effect"] / (rows["high"] - rows["low"])).abs().fillna(0))
    places = rows.groupby(["claim", "place"], as_index=False, sort=False)["sure"].max()
    places = places.sort_values("sure", ascending=False, kind="stable").groupby("claim", sort=False).head(MOST)
    rows = rows[rows["place"].isin(places["place"])]
    order = {name: number for number, name in enumerate(judged.CLAIMS)}
    by = ["claim", "sparsity_pct", "units", "place"]
    return rows.sort_values(by, kind="stable", key=lambda one: one.map(order) if one.name == "claim" else one)


def _place(row: dict) -> str:
    pct = "" if pd.isna(row.get("sparsity_pct")) else f"{row['sparsity_pct']:g} %"
    names = ("units", "policy", "protocol", "criterion", "predictor", "dtype")
    parts = [row["claim"].replace("_", " "), pct, *(row.get(name) for name in names)]
    return ", ".join(str(part) for part in parts if part and pd.notna(part) and part not in ("token", "per_layer"))
