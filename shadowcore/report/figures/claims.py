"""Published effects and ours, one panel for each quantity."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from shadowcore.report import claims as judged
from shadowcore.report import style
from shadowcore.report.figures.lines import dots
from shadowcore.report.select import comparable, distinct, of_model
from shadowcore.report.style import Drawing
from shadowcore.report.tables import Tables

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
    "accuracy": "accuracy of the claimed winner / of the other side",
    "rank_correlation": "difference of rank correlations (with the claim's margin)",
    "latency": "time per token of the other side / of the claimed winner",
}
PLACE = ["claim", "place"]
MOST = 4  # places of a claim
PROTOCOL = "lookahead"  # of the published perplexities and accuracies
SENTENCES = {  # the claims of docs/claims.md in a few words
    "shadow_over_dejavu": "ShadowLLM has lower perplexity than DejaVu",
    "one_over_many": "Design alone: one predictor beats one per layer",
    "predicted_plainact": "Criterion alone: plainact beats magnitude",
    "global_over_per_layer": "Ranking all layers together beats each alone",
    "plainact_over_magnitude": "Without a predictor, plainact beats magnitude",
    "context_over_static": "Units chosen by context beat fixed units",
    "more_accurate": "ShadowLLM is more accurate than DejaVu",
    "one_ranks_as_well": "One predictor ranks as well as one per layer",
    "magnitude_is_easier": "Magnitude is easier to predict than plainact",
    "faster_than_layerwise": "One predictor is faster than one per layer",
}


def claims(tables: Tables, model: str) -> Drawing:
    """A row per claim and place: our effect on every text with its interval, and the published one, if there is one."""
    rows = of_model(tables, "claims", model).query("verdict != 'not attempted'")
    if rows.empty:
        return "no published claim can be compared with the tables"
    rows = comparable(distinct(rows)).copy()
    rows["quantity"] = [judged.CLAIMS[name].quantity for name in rows["claim"]]
    rows["place"] = [_place(row) for row in rows.to_dict("records")]
    rows = _closest(rows)
    parts = {name: rows[rows["quantity"] == name] for name in AXES if name in set(rows["quantity"])}
    lines = [part["claim"].nunique() + len(part.drop_duplicates(PLACE)) for part in parts.values()]
    figure, axes = style.panels(
        len(parts), columns=1, height=0.2 * sum(lines) / len(parts) + 0.75, height_ratios=[one + 1.5 for one in lines]
    )
    figure.set_figwidth(8.5)
    for panel, (quantity, part) in zip(axes, parts.items(), strict=True):
        _panel(panel, part, AXES[quantity], ratio=quantity != "rank_correlation")
    verdicts = [
        style.key(name, color, marker, "") for name, (color, marker) in VERDICTS.items() if name in set(rows["verdict"])
    ]
    style.legend(figure, [style.key("published", line="", **PUBLISHED), *verdicts])
    heading = "Published claims: our effect on every text with its 95 % interval; right of the line is as claimed"
    style.title(figure, heading, [model])
    return figure


def _panel(panel: Axes, part: pd.DataFrame, label: str, ratio: bool) -> None:
    """Effects of one quantity: a line a claim and below it a line a place, with a mark a text; ratios as such."""
    values = ["effect", "low", "high", "published_effect"]
    part = part.assign(**{name: np.exp(part[name].astype(float)) for name in values}) if ratio else part
    panel.axvline(1 if ratio else 0, color="#000000", linewidth=0.8)
    names = []
    for (claim, place), texts in part.groupby(PLACE, sort=False):
        names += [place] if SENTENCES[claim] in names else [SENTENCES[claim], place]
        line = len(names) - 1
        if judged.CLAIMS[claim].published is None:  # otherwise the published pair changes more than the claim names
            panel.plot(texts["published_effect"].iloc[:1], [line], linestyle="", **PUBLISHED)
        for number, verdict in enumerate(texts["verdict"]):
            color, marker = VERDICTS[verdict]
            y = line + 0.2 * (number - (len(texts) - 1) / 2)
            dots(panel, [y], texts.iloc[[number]], ("effect", "low", "high"), color=color, marker=marker)
    style.named_rows(panel, names)
    for name in panel.get_yticklabels():
        name.set_fontweight("bold" if name.get_text() in SENTENCES.values() else "normal")
    panel.set_xlabel(label)
    if ratio:
        style.log_axis(panel, label, "x")


def _closest(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the claims; of many places of one claim those closest to the published one.

    They have its units and protocol, as far as possible; among equals, the surest effects come first, either way.
    """
    alike = (rows["units"] == rows["published_units"]).astype(int) + (rows["protocol"] == PROTOCOL)
    rows = rows.assign(alike=alike, sure=(rows["effect"] / (rows["high"] - rows["low"])).abs().fillna(0))
    places = rows.groupby(PLACE, as_index=False, sort=False)[["alike", "sure"]].max()
    places = places.sort_values(["alike", "sure"], ascending=False, kind="stable")
    places = places.groupby("claim", sort=False).head(MOST)
    rows = rows.merge(places[PLACE])
    order = {name: number for number, name in enumerate(judged.CLAIMS)}
    by = ["claim", "sparsity_pct", "units", "place"]
    return rows.sort_values(by, kind="stable", key=lambda one: one.map(order) if one.name == "claim" else one)


def _place(row: dict) -> str:
    """Where a pair was measured, in words: sparsity, units, and what is not the usual choice."""
    units = {"both": "heads and neurons"}.get(row["units"], row["units"])
    place = units if pd.isna(row.get("sparsity_pct")) else f"{row['sparsity_pct']:g} % of {units}"
    words = {"policy": "policy ", "protocol": "protocol ", "criterion": "", "predictor": "recipe ", "dtype": ""}
    parts = [f"{word}{row[name]}" for name, word in words.items() if pd.notna(row.get(name))]
    return ", ".join([place, *(part for part in parts if part not in ("policy per_layer", "protocol token"))])
