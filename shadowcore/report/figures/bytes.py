"""Quality against the weights that a step reads: every method on one axis."""

import numpy as np
import pandas as pd

from shadowcore.report import style
from shadowcore.report.best_at_bytes import NO_CANDIDATES
from shadowcore.report.figures.lines import INTERVAL, intervals, lines
from shadowcore.report.select import MOST_LINES, first_of, methods, text_perplexities, where
from shadowcore.report.style import FAINT, GREY, Axes, Drawing
from shadowcore.report.tables import Tables

MOST_LOSS = 4.0  # perplexity over dense at which a panel ends, unless a method begins above it
ROOM = 1.15
DESIGNS = ("shadow", "layerwise", "segments")  # what the study is about: always drawn
# methods that differ in the bits of their copies or in tuned gains are one line, with its name in the figure
FAMILY = r"^proxy\d(_ahead)?(_tuned)?$"
FAMILIES = {"proxy4": "low-bit copies", "proxy4_ahead": "copies, ahead"}


def quality_per_byte(tables: Tables, model: str) -> Drawing:
    """Token perplexity, log scale, against the share of the dense model's bytes that a step reads; a panel a text."""
    rows = first_of(text_perplexities(tables, model), "calibration")
    dense = where(rows, method="dense")
    rows = rows[~rows["method"].isin(NO_CANDIDATES) & (rows["protocol"] != "lookahead") & rows["read_share"].notna()]
    if rows.empty:
        return "no perplexity of a sparse model has its bytes counted"
    rows = rows.assign(method=rows["method"].str.replace(FAMILY, lambda found: f"proxy4{found[1] or ''}", regex=True))
    texts = sorted(set(rows["data"]))
    frontiers = {text: undominated(where(rows, data=text)) for text in texts}
    rows = rows[rows["method"].isin(_shown(rows, pd.concat(frontiers.values())))]
    scale = dense if len(dense) else rows
    best = rows.groupby(["data", "method"])["value"].min()
    bottom = min(best.min(), scale["value"].min(), rows["low"].min())
    top = max(best.max(), MOST_LOSS * scale["value"].max())
    top = max(top, rows.loc[rows["value"] < top * ROOM, "high"].max())  # with the intervals of the points that it shows
    figure, axes = style.panels(len(texts), sharey=True, height=3.4)
    for panel, text in zip(axes, texts, strict=True):
        panel.set_ylim(bottom / ROOM, top * ROOM)
        style.log_axis(panel, "token perplexity")
        _panel(panel, where(rows, data=text), where(dense, data=text), frontiers[text])
        panel.set(title=text, xlabel="weights read (% of dense)")
        panel.label_outer()
    style.legend(figure, [
        style.key("dense", "black", "*", ""), style.key("best at each share", FAINT, linewidth=6),
        style.key("no other condition is as good with as few bytes", GREY, "o", "", markersize=6.5),
    ])  # fmt: skip
    heading = "Token perplexity against bytes of weights read per token, with 95 % intervals"
    counts = [style.counted(row) for row in rows.drop_duplicates("data").sort_values("data").to_dict("records")]
    style.title(figure, heading, [model, *counts])
    return figure


def undominated(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by falling bytes, those only that are better than every row that reads as little or less."""
    rows = rows.sort_values(["read_share", "value"], kind="stable")
    better = rows["value"] < rows["value"].cummin().shift(fill_value=float("inf"))
    return rows[better][::-1]


def _shown(rows: pd.DataFrame, frontier: pd.DataFrame) -> list[str]:
    """The designs, then methods that are often the best, then others: as many as there is room for."""
    names = dict.fromkeys([*DESIGNS, *frontier["method"].value_counts().index, *methods(set(rows["method"]))])
    return [name for name in names if name in set(rows["method"])][: MOST_LINES - 1]


def _panel(axes: Axes, rows: pd.DataFrame, dense: pd.DataFrame, frontier: pd.DataFrame) -> None:
    """Each method's undominated conditions as a line, filled where no other method's is better; fewer bytes right."""
    low, high = axes.get_ylim()
    steps = pd.concat([dense.assign(read_share=1.0), frontier[frontier["read_share"] < 1]]).query("value < @high")
    axes.plot(100 * steps["read_share"], steps["value"], color=FAINT, linewidth=6, zorder=0, drawstyle="steps-pre")
    ends = []
    for line in lines(rows.assign(predictor=None)):  # a line has points of several
        points = undominated(line.rows)
        x, drawn = 100 * points["read_share"], line.style()
        _leaving(axes, x, points["value"], high, drawn["color"])
        x, points = x[points["value"] < high], points[points["value"] < high]
        intervals(axes, x, points, INTERVAL, **drawn, markerfacecolor="white")
        leads = points.index.isin(frontier.index)
        axes.plot(x[leads], points["value"][leads], **drawn, linestyle="", markersize=6.5, zorder=3)
        if len(points):
            *place, name, color = line.end(x, points["value"])
            ends.append((*place, FAMILIES.get(name, name), color))
    axes.plot([100.0] * len(dense), dense["value"], color="black", marker="*", markersize=10, linestyle="", zorder=4)
    axes.margins(x=0.04)
    axes.autoscale_view()
    axes.invert_xaxis()
    axes.set_ylim(low, high)
    axes.locator_params(axis="x", nbins=6)
    style.end_labels(axes, ends)


def _leaving(axes: Axes, x: pd.Series, y: pd.Series, high: float, color: str) -> None:
    """An arrow from the last point below `high` to the top, where the line leaves the panel."""
    inside = int((y < high).sum())
    if 0 < inside < len(y):
        ends = slice(inside - 1, inside + 1)
        top = (np.interp(np.log(high), np.log(y.iloc[ends]), x.iloc[ends]), high)  # on a log axis a line is straight
        axes.update_datalim([top])
        arrow = {"arrowstyle": "->", "color": color, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", top, (x.iloc[inside - 1], y.iloc[inside - 1]), arrowprops=arrow)
