"""Where the important units are: a map over layers and units, and how much it changes from input to input."""

import numpy as np

from shadowcore.report import style
from shadowcore.report.select import first_of, of_model, units_order, where
from shadowcore.report.style import Drawing
from shadowcore.report.tables import Tables

BLUE = "#0072B2"
NOTHING = "no importance scores in the tables"


def importance_map(tables: Tables, model: str) -> Drawing:
    """Mean importance of every unit: neurons sorted within their layer, heads in place; log colours."""
    rows = first_of(of_model(tables, "criteria", model), "criterion", "calibration")
    if rows.empty:
        return NOTHING
    facts = rows.iloc[0]
    kinds = sorted(set(rows["kind"]), key=units_order)
    widths = [3 if kind == "neurons" else 2 for kind in kinds]
    figure, axes = style.panels(len(kinds), height=3.2, sharey=True, width_ratios=widths)
    for panel, kind in zip(axes, kinds, strict=True):
        scores = where(rows, kind=kind).pivot(index="layer", columns="unit", values="mean")  # (L, U)
        layers, values = scores.index, scores.to_numpy()
        if kind == "neurons":
            values = -np.sort(-values, axis=1)
        # a few outliers would take all colours for themselves
        low, high = np.quantile(values[values > 0] if (values > 0).any() else values, [0.001, 0.999])
        extent = (0, values.shape[1], layers.min() - 0.5, layers.max() + 0.5)
        label = f"mean {facts['criterion']} of a window"
        style.colour_map(panel, values, low, high, label, origin="lower", extent=extent)
        order = "most important first" if kind == "neurons" else "in their order"
        panel.set_xlabel(f"{kind} of a layer, {order}")
        style.whole_ticks(panel)
    axes[0].set_ylabel("layer")
    style.title(figure, f"Importance of every unit ({facts['criterion']})", [model, style.counted(facts)])
    return figure


def variability(tables: Tables, model: str) -> Drawing:
    """How much a unit's importance changes from input to input: deviation over mean by layer, the main criterion."""
    rows = first_of(of_model(tables, "criteria", model), "calibration", "criterion")
    rows = rows[rows["mean"] > 0]
    if rows.empty:
        return NOTHING
    rows = rows.assign(relative=rows["deviation"] / rows["mean"])
    kinds = sorted(set(rows["kind"]), key=units_order)
    figure, axes = style.panels(len(kinds), sharey=True)
    for panel, kind in zip(axes, kinds, strict=True):
        layers = where(rows, kind=kind).groupby("layer")["relative"]
        low, half, high = (layers.quantile(share) for share in (0.25, 0.5, 0.75))
        panel.fill_between(low.index, low, high, color=BLUE, alpha=0.2, linewidth=0)
        panel.plot(half.index, half, markersize=3, color=BLUE, marker="o")
        panel.set(title=kind, xlabel="layer")
        style.log_axis(panel, "deviation / mean")
        style.whole_ticks(panel)
        panel.label_outer()
    heading = "Change of a unit's importance between inputs: median unit of each layer, band: middle half"
    facts = rows.iloc[0]
    style.title(figure, heading, [model, facts["criterion"], style.counted(facts)])
    return figure
