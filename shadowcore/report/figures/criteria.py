"""What to rank units by: criteria against each other without a predictor, and with every method."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report.figures.lines import (
    best_predictors,
    contextual,
    criterion_order,
    dots,
    first_of,
    main_condition,
    mean_over_tasks,
    method_order,
    middle,
    of_model,
    ranked,
    text_perplexities,
    trained_alike,
    where,
)
from shadowcore.report.style import Axes, Drawing, log_axis, look, named_rows, panels, styled, title
from shadowcore.report.tables import Tables


@styled
def criteria(tables: Tables, model: str) -> Drawing:
    """Static masks of every criterion, the best at the top: perplexity, and accuracy averaged over tasks."""
    scores = {
        "token perplexity": first_of(text_perplexities(tables, model), "data"),
        "mean task accuracy": mean_over_tasks(of_model(tables, "accuracy", model)),
    }
    scores = {name: main_condition(rows, "criterion") for name, rows in scores.items()}
    static = {name: where(rows, method="static") for name, rows in scores.items()}
    static = {name: rows for name, rows in static.items() if rows["criterion"].nunique() > 1}
    if not static:
        return "fewer than two criteria with static masks"
    name, rows = next(iter(static.items()))
    counts = rows.groupby("sparsity_pct")["criterion"].nunique()
    sparsities = sorted(counts.index[counts > counts.max() / 2])  # where most criteria were measured
    half = where(rows, sparsity_pct=middle(sparsities))
    names = list(half.sort_values("value", ascending=name == "token perplexity")["criterion"])
    size = {"height": 0.19 * len(names) + 0.75, "columns": len(sparsities) if len(sparsities) > 1 else len(static)}
    figure, axes = panels(len(static) * len(sparsities), sharey=True, **size)
    for row, (name, rows) in zip(np.reshape(axes, (len(static), -1)), static.items(), strict=True):
        for panel, pct in zip(row, sparsities, strict=True):
            for value in where(scores[name], method="dense")["value"]:
                panel.axvline(value, color=look("dense").color, linewidth=1.2)
            here = where(rows, sparsity_pct=pct)
            here = here[here["criterion"].isin(names)]
            style = look("static")
            dots(panel, here["criterion"].map(names.index), here, color=style.color, marker=style.marker)
            named_rows(panel, names)
            panel.set(title=f"{pct} % removed", xlabel=name)
            if name == "token perplexity":
                log_axis(panel, "x")
    for panel in axes:
        panel.tick_params(labelleft=panel.get_subplotspec().is_first_col())
    facts = half.iloc[0]
    place = f"{facts['units']} removed, {facts['policy']}; black line: dense"
    texts = [f"{rows['data'].iloc[0]}: {rows['n'].iloc[0]:,} windows" for rows in static.values() if "data" in rows]
    title(figure, "Criteria compared by static masks, with 95 % intervals", [model, place, *texts])
    return figure


@styled
def factorial(tables: Tables, model: str) -> Drawing:
    """Every method with every criterion: perplexity over dense, a panel a sparsity, and how well units are ranked."""
    rows = first_of(main_condition(text_perplexities(tables, model), "criterion"), "data")
    dense = rows.loc[rows["method"] == "dense", "value"]
    rows = rows[~rows["method"].isin(["dense", "random"]) & rows["criterion"].notna()]  # baselines have no criterion
    rows = best_predictors(trained_alike(tables, model, contextual(rows)), low_is_good=True, by=("method", "criterion"))
    if rows["criterion"].nunique() < 2 or rows["method"].nunique() < 2 or dense.empty:
        return "fewer than two methods or two criteria"
    cells = {
        f"perplexity / dense\n{pct} % removed": part.assign(value=part["value"] / dense.iloc[0])
        for pct, part in rows.groupby("sparsity_pct")
    }
    quality = first_of(ranked(tables, model, metric="spearman"), "calibration", "seed")
    quality = best_predictors(trained_alike(tables, model, quality), low_is_good=False, by=("method", "criterion"))
    cells |= {f"rank correlation\n{kind}": part for kind, part in quality.groupby("kind")}
    names = sorted({name for part in cells.values() for name in part["criterion"]}, key=criterion_order)
    methods = sorted({name for part in cells.values() for name in part["method"]}, key=method_order)
    figure, axes = panels(len(cells), columns=len(cells), height=0.26 * len(methods) + 1.2, sharey=True)
    for panel, (name, part) in zip(axes, cells.items(), strict=True):
        grid = part.pivot_table(index="method", columns="criterion", values="value", dropna=False)
        _matrix(panel, grid.reindex(index=methods, columns=names), low_is_good="perplexity" in name)
        panel.set_title(name)
    facts = rows.iloc[0]
    place = [model, f"{facts['data']}: {facts['n']:,} windows", f"{facts['units']} removed, {facts['policy']}"]
    title(figure, "Every method with every criterion: dark is better", place)
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
