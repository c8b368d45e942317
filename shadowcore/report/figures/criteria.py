"""What to rank units by: criteria against each other without a predictor, and with every method."""

import numpy as np
import pandas as pd

from shadowcore.report import select, style
from shadowcore.report.figures.lines import dots
from shadowcore.report.looks import look, method_order
from shadowcore.report.select import where
from shadowcore.report.style import Axes, Drawing
from shadowcore.report.tables import Tables


def criteria(tables: Tables, model: str) -> Drawing:
    """Static masks of every criterion, the best at the top: perplexity, and accuracy averaged over tasks."""
    scores = {
        "token perplexity": select.first_of(select.text_perplexities(tables, model), "data"),
        "mean task accuracy": select.mean_over_tasks(select.of_model(tables, "accuracy", model)),
    }
    scores = {name: select.main_condition(rows, "criterion") for name, rows in scores.items()}
    static = {name: where(rows, method="static") for name, rows in scores.items()}
    static = {name: rows for name, rows in static.items() if rows["criterion"].nunique() > 2}
    if not static:
        return "fewer than three criteria with static masks"
    name, rows = next(iter(static.items()))
    counts = rows.groupby("sparsity_pct")["criterion"].nunique()
    sparsities = sorted(counts.index[counts > counts.max() / 2])  # where most criteria were measured
    half = where(rows, sparsity_pct=select.middle(sparsities))
    names = list(half.sort_values("value", ascending=name == "token perplexity")["criterion"])
    columns = len(sparsities) if len(sparsities) > 1 else len(static)
    figure, axes = style.panels(len(static) * len(sparsities), columns, 0.19 * len(names) + 0.75, sharey=True)
    places = [(name, pct) for name in static for pct in sparsities]
    for panel, (name, pct) in zip(axes, places, strict=True):
        for value in where(scores[name], method="dense")["value"]:
            panel.axvline(value, color=look("dense").color, linewidth=1.2)
        here = where(static[name], sparsity_pct=pct)
        here = here[here["criterion"].isin(names)]
        drawn = look("static")
        dots(panel, here["criterion"].map(names.index), here, color=drawn.color, marker=drawn.marker)
        style.named_rows(panel, names)
        panel.set(title=f"{pct} % removed", xlabel=name)
        if name == "token perplexity":
            style.log_axis(panel, name, "x")
        panel.tick_params(labelleft=panel.get_subplotspec().is_first_col())
    facts = half.iloc[0]
    place = f"{facts['units']} removed, {facts['policy']}; black line: dense"
    texts = [style.counted(rows.iloc[0]) for rows in static.values() if "data" in rows]
    style.title(figure, "Criteria compared by static masks, with 95 % intervals", [model, place, *texts])
    return figure


def factorial(tables: Tables, model: str) -> Drawing:
    """Every method with every criterion: perplexity over dense, a panel a sparsity, and how well units are ranked."""

    def best(rows: pd.DataFrame, low_is_good: bool) -> pd.DataFrame:
        return select.best_predictors(select.trained_alike(tables, model, rows), low_is_good, ("method", "criterion"))

    rows = select.first_of(select.main_condition(select.text_perplexities(tables, model), "criterion"), "data")
    dense = rows.loc[rows["method"] == "dense", "value"]
    rows = rows[~rows["method"].isin(["dense", "random"]) & rows["criterion"].notna()]  # baselines have no criterion
    rows = best(select.contextual(rows), low_is_good=True)
    if rows["criterion"].nunique() < 2 or rows["method"].nunique() < 2 or dense.empty:
        return "fewer than two methods or two criteria"
    cells = {
        f"perplexity / dense\n{pct} % removed": part.assign(value=part["value"] / dense.iloc[0])
        for pct, part in rows.groupby("sparsity_pct")
    }
    quality = select.first_of(select.ranked(tables, model, metric="spearman"), "calibration", "seed")
    quality = best(quality, low_is_good=False)
    cells |= {f"rank correlation\n{kind}": part for kind, part in quality.groupby("kind")}
    every = pd.concat(cells.values())
    names = sorted(set(every["criterion"]), key=select.criterion_order)
    methods = sorted(set(every["method"]), key=method_order)
    figure, axes = style.panels(len(cells), len(cells), 0.26 * len(methods) + 1.2, sharey=True)
    for panel, (name, part) in zip(axes, cells.items(), strict=True):
        grid = part.pivot_table(index="method", columns="criterion", values="value", dropna=False)
        _matrix(panel, grid.reindex(index=methods, columns=names), low_is_good="perplexity" in name)
        panel.set_title(name)
    facts = rows.iloc[0]
    place = [model, style.counted(facts), f"{facts['units']} removed, {facts['policy']}"]
    style.title(figure, "Every method with every criterion: dark is better, blank was not measured", place)
    return figure


def _matrix(axes: Axes, grid: pd.DataFrame, low_is_good: bool) -> None:
    """Numbers on colours, dark for the better ones."""
    values = grid.to_numpy(dtype=float)
    shade = -np.log(values) if low_is_good else values
    axes.imshow(shade, aspect="auto", cmap="Blues", vmin=np.nanmin(shade), vmax=np.nanmax(shade) + 1e-9)
    threshold = (np.nanmin(shade) + 2 * np.nanmax(shade)) / 3
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if shade[row, column] > threshold else "black"
            axes.text(column, row, f"{value:,.3g}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=40, ha="right")
    axes.set_yticks(range(len(grid)), list(grid.index))
    axes.grid(False)
