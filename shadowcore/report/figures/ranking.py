"""How well predictors rank units that change from token to token, beside a constant that never looks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report.figures.series import criterion_order, first_of, of_model, series, units_order, where
from shadowcore.report.style import Axes, Figure, Line2D, empty, key, legend, look, panels, styled, title, whole_ticks
from shadowcore.report.tables import Tables

CHANCE = {"color": look("random").color, "linestyle": ":", "linewidth": 1.2}


@styled
def predictor_quality(tables: Tables, model: str) -> Figure:
    """Spearman by layer, recall by layer at the middle sparsity, and mean recall at each sparsity."""
    rows = of_model(tables, "quality", model)
    if rows.empty:
        return empty(f"{model}: no predictor quality in the tables")
    keys = sorted(
        rows[["kind", "criterion"]].drop_duplicates().itertuples(index=False, name=None),
        key=lambda parts: (units_order(parts[0]), criterion_order(parts[1])),
    )
    figure, axes = panels(3 * len(keys), columns=3, size=(3.1, 2.3), sharey="col")
    handles = []
    for (kind, criterion), (ranks, layers, sparsities) in zip(keys, np.reshape(axes, (-1, 3)), strict=True):
        shown = where(rows, kind=kind, criterion=criterion)
        recall = first_of(where(shown, metric="recall"), "policy")
        handles += _lines(ranks, where(shown, metric="spearman"), "layer", rows)
        ranks.set(title=f"{kind}, {criterion}", xlabel="layer", ylabel="Spearman correlation")
        removed = np.unique(recall["sparsity_pct"])
        middle = removed[len(removed) // 2] if len(removed) else 0
        handles += _lines(layers, where(recall, sparsity_pct=middle), "layer", rows)
        layers.axhline(1 - middle / 100, **CHANCE)
        layers.set(title=f"{kind}, {criterion}, {middle:g} % removed", xlabel="layer", ylabel="recall of kept units")
        handles += _lines(sparsities, recall, "sparsity_pct", rows)
        sparsities.plot(removed, 1 - removed / 100, **CHANCE)
        sparsities.set(
            title=f"{kind}, {criterion}, mean over layers", xlabel="units removed (%)", ylabel="recall of kept units"
        )
    legend(figure, [*handles, key("expected when kept at random", CHANCE["color"], line=":")])
    tokens = ", ".join(f"{n:,}" for n in sorted(set(rows["n"])))
    texts = ", ".join(sorted(set(rows["calibration"].dropna())))
    title(
        figure, "Ranking of units: predictors beside the constant predictor (static)",
        [model, f"{texts}: {tokens} held-out tokens"],
    )  # fmt: skip
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, x: str, among: pd.DataFrame) -> list[Line2D]:
    """A line per method of the mean value at each `x`; returns its entries for the legend."""
    lines = series(rows, among)
    for line in lines:
        mean = line.rows.groupby(x)["value"].mean()
        axes.plot(mean.index, mean, markersize=3 if x == "layer" else None, **line.style())
    whole_ticks(axes)
    return [line.handle() for line in lines]
