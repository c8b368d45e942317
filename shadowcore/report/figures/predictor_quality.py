"""How well predictors rank the units of held-out tokens, against a constant predictor."""

from __future__ import annotations

import numpy as np

from shadowcore.report.figures.lines import (
    best_predictors,
    first_of,
    lines,
    middle,
    predictors_shown,
    ranked,
    trained_alike,
    units_order,
    where,
)
from shadowcore.report.style import GREY, Drawing, end_labels, panels, styled, title, whole_ticks
from shadowcore.report.tables import Tables


@styled
def predictor_quality(tables: Tables, model: str) -> Drawing:
    """Recall of kept units by layer at the middle sparsity, and against sparsity; a row for each kind of unit."""
    everything = first_of(ranked(tables, model, metric="recall"), "calibration", "criterion", "policy")
    rows = best_predictors(trained_alike(tables, model, everything), low_is_good=False)
    if set(rows["method"]) <= {"static"}:
        return "no ranking quality of a predictor in the tables"
    kinds = sorted(set(rows["kind"]), key=units_order)
    sparsities = sorted(set(rows["sparsity_pct"]))
    half = middle(sparsities)
    figure, axes = panels(2 * len(kinds), columns=2, height=2.5)
    for kind, (layers, means) in zip(kinds, np.reshape(axes, (-1, 2)), strict=True):
        here = where(rows, kind=kind)
        layers.axhline(1 - half / 100, color=GREY, linestyle=":", linewidth=1.2)
        means.plot(sparsities, [1 - pct / 100 for pct in sparsities], color=GREY, linestyle=":", linewidth=1.2)
        for panel, part, x in ((layers, where(here, sparsity_pct=half), "layer"), (means, here, "sparsity_pct")):
            guess = 1 - (half if panel is layers else sparsities[-1]) / 100
            ends = [(part[x].max(), guess, "kept at random", GREY)]
            for line in lines(part):
                mean = line.rows.groupby(x)["value"].mean()
                panel.plot(mean.index, mean, markersize=3 if x == "layer" else None, **line.style())
                ends.append(line.end(mean.index.to_series(), mean))
            panel.margins(x=0.04)
            whole_ticks(panel)
            end_labels(panel, ends)
        layers.set(title=f"{kind}, {half:g} % removed", xlabel="layer", ylabel="recall of kept units")
        means.set(title=f"{kind}, mean over layers", xlabel="units removed (%)")
    facts = rows.iloc[0]
    text = f"{facts['calibration']}: {facts['n']:,} held-out tokens"
    title(
        figure, "Recall of the units worth keeping, by predictor",
        [model, facts["criterion"], text, *predictors_shown(rows, everything)],
    )  # fmt: skip
    return figure
