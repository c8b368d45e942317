"""Where the important units are: a map over layers and units, and how much it changes from input to input."""

from __future__ import annotations

import numpy as np

from shadowcore.report.figures.series import MAIN_CRITERION, criterion_order, first_of, of_model, units_order, where
from shadowcore.report.style import (
    Figure,
    colour_bar,
    colour_scale,
    empty,
    key,
    legend,
    log_axis,
    look_of_criterion,
    panels,
    styled,
    title,
    whole_ticks,
)
from shadowcore.report.tables import Tables


@styled
def importance_map(tables: Tables, model: str) -> Figure:
    """Mean importance of every unit: neurons sorted within their layer, heads in place; log colours."""
    rows = of_model(tables, "criteria", model)
    if rows.empty:
        return empty(f"{model}: no importance scores in the tables")
    criterion = min(set(rows["criterion"]), key=criterion_order)
    rows = where(rows, criterion=criterion)
    rows = where(rows, calibration=min(set(rows["calibration"])))
    kinds = sorted(set(rows["kind"]), key=units_order)
    figure, axes = panels(
        len(kinds), size=(4.4, 3.6), sharey=True, width_ratios=[3 if kind == "neurons" else 2 for kind in kinds]
    )
    for panel, kind in zip(axes, kinds, strict=True):
        scores = where(rows, kind=kind).pivot(index="layer", columns="unit", values="mean")  # (L, U)
        layers, values = scores.index, scores.to_numpy()
        if kind == "neurons":
            values = -np.sort(-values, axis=1)
        # a few outliers would take all colours for themselves
        low, high = np.quantile(values[values > 0] if (values > 0).any() else values, [0.001, 0.999])
        image = panel.imshow(
            values, aspect="auto", origin="lower", interpolation="nearest", cmap="viridis",
            norm=colour_scale(low, high), extent=(0, values.shape[1], layers.min() - 0.5, layers.max() + 0.5),
        )  # fmt: skip
        panel.grid(False)
        order = "most important first" if kind == "neurons" else "in their order"
        panel.set_xlabel(f"{kind} of a layer, {order}")
        whole_ticks(panel)
        colour_bar(image, panel, f"mean {criterion} of a window")
    axes[0].set_ylabel("layer")
    facts = rows.iloc[0]
    title(figure, f"Importance of every unit ({criterion})", [model, f"{facts['calibration']}: {facts['n']:,} windows"])
    return figure


@styled
def variability(tables: Tables, model: str) -> Figure:
    """How much a unit's importance changes from input to input: deviation over mean by layer, a line per criterion."""
    rows = first_of(of_model(tables, "criteria", model), "calibration")
    rows = rows[rows["mean"] > 0]
    if rows.empty:
        return empty(f"{model}: no importance scores in the tables")
    rows = rows.assign(relative=rows["deviation"] / rows["mean"])
    kinds = sorted(set(rows["kind"]), key=units_order)
    figure, axes = panels(len(kinds), size=(3.6, 2.9), sharey=True)
    handles = []
    for panel, kind in zip(axes, kinds, strict=True):
        for criterion in sorted(set(where(rows, kind=kind)["criterion"]), key=criterion_order):
            layers = where(rows, kind=kind, criterion=criterion).groupby("layer")["relative"]
            low, middle, high = (layers.quantile(share) for share in (0.25, 0.5, 0.75))
            style = look_of_criterion(criterion)
            drawn = {"color": style.color, "marker": style.marker}
            if criterion == MAIN_CRITERION:
                panel.fill_between(low.index, low, high, color=style.color, alpha=0.15, linewidth=0)
            panel.plot(middle.index, middle, markersize=3, **drawn)
            handles.append(key(style.label, **drawn))
        panel.set(title=kind, xlabel="layer", ylabel="deviation over mean")
        log_axis(panel)
        whole_ticks(panel)
        panel.label_outer()
    legend(figure, handles)
    facts = rows.iloc[0]
    title(
        figure, "Importance varies from input to input: median unit of a layer",
        [model, f"{facts['calibration']}: {facts['n']:,} windows", f"band: middle half of the units, {MAIN_CRITERION}"],
    )  # fmt: skip
    return figure
