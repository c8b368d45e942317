"""What to rank units by: criteria against each other without a predictor, and with every method."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report.figures.series import (
    INTERVAL,
    contextual,
    criterion_order,
    first_of,
    intervals,
    leading,
    level,
    mean_over_tasks,
    method_order,
    of_model,
    ranked,
    units_order,
    where,
)
from shadowcore.report.style import (
    Axes,
    Figure,
    empty,
    key,
    legend,
    log_axis,
    look,
    look_of_criterion,
    panels,
    styled,
    title,
    whole_ticks,
)
from shadowcore.report.tables import Tables

MANY = 15.0  # a static criterion whose perplexity is this many times the best one's may leave the panel


@styled
def criteria(tables: Tables, model: str) -> Figure:
    """Criteria of static masks: perplexity, and accuracy averaged over tasks, local and global choice in columns."""
    found = where(of_model(tables, "perplexity", model), metric="token_perplexity")
    scores = {"token perplexity": found, "mean task accuracy": mean_over_tasks(of_model(tables, "accuracy", model))}
    scores = {name: first_of(rows, "data", "calibration", "protocol", "seed") for name, rows in scores.items()}
    static = [rows[rows["method"] == "static"] for rows in scores.values()]
    if all(rows.empty for rows in static):
        return empty(f"{model}: no static condition in the tables")
    scores = {name: rows for (name, rows), chosen in zip(scores.items(), static, strict=True) if len(chosen)}
    places = sorted(
        set(pd.concat(static)[["units", "policy"]].itertuples(index=False, name=None)),
        key=lambda place: (units_order(place[0]), place[1] != "per_layer", place[1]),
    )
    figure, axes = panels(len(scores) * len(places), columns=len(places), sharey="row", sharex=True)
    handles = [key("dense", look("dense").color)]
    for row, (name, rows) in zip(np.reshape(axes, (-1, len(places))), scores.items(), strict=True):
        for panel, (units, policy) in zip(row, places, strict=True):
            for _, dense in rows[rows["method"] == "dense"].iterrows():
                level(panel, *dense[list(INTERVAL)])
            here = where(rows[rows["method"].isin(["static", "random"])], units=units)
            here = here[(here["policy"] == policy) | (here["method"] == "random")]
            for criterion in sorted(set(here["criterion"]), key=criterion_order):
                style = look_of_criterion(criterion)
                line = where(here, criterion=criterion).sort_values("sparsity_pct")
                drawn = {"color": style.color, "marker": style.marker}
                intervals(panel, 100 * line["sparsity_measured"], line, INTERVAL, **drawn)
                handles.append(key(style.label, **drawn))
            panel.set(title=f"{units}, {policy}", xlabel="units removed, measured (%)", ylabel=name)
            if name == "token perplexity":
                _within_reach(panel, rows)
            whole_ticks(panel)
            panel.label_outer()
    legend(figure, handles)
    facts = [f"{rows['data'].iloc[0]}: {rows['n'].iloc[0]:,} windows" for rows in scores.values() if "data" in rows]
    title(figure, "Criteria compared: the same units for every token (static)", [model, *facts])
    return figure


def _within_reach(axes: Axes, rows: pd.DataFrame) -> None:
    """A log axis that ends where the criteria worth comparing are; random goes beyond."""
    values = rows.loc[rows["method"].isin(["dense", "static"]), "value"]
    best = rows[rows["method"] == "static"].groupby("sparsity_pct")["value"].min().max()
    axes.set_ylim(values.min() / 1.1, min(values.max(), MANY * best) * 1.2)
    log_axis(axes)


@styled
def factorial(tables: Tables, model: str) -> Figure:
    """Every method with every criterion: perplexity over dense a sparsity, and how well the units are ranked."""
    rows = where(of_model(tables, "perplexity", model), metric="token_perplexity")
    rows = first_of(rows, "data", "calibration", "protocol", "seed", "units", "policy")
    dense = rows.loc[rows["method"] == "dense", "value"]
    rows = rows[~rows["method"].isin(["dense", "random"]) & rows["criterion"].notna()]  # baselines go by no criterion
    rows = leading(contextual(rows), low_is_good=True)
    if rows.empty or dense.empty:
        return empty(f"{model}: no methods to compare in the tables")
    cells = {
        f"perplexity over dense, {pct} % removed": part.assign(value=part["value"] / dense.iloc[0])
        for pct, part in rows.groupby("sparsity_pct")
    }
    quality = ranked(tables, model, metric="spearman")
    quality = leading(first_of(quality, "calibration", "seed"), low_is_good=False)
    cells |= {f"Spearman correlation, {kind}": part for kind, part in quality.groupby("kind")}
    names = [sorted(set(part["criterion"]), key=criterion_order) for part in cells.values()]
    shown = [sorted(set(map(_named, part.to_dict("records"))), key=_order) for part in cells.values()]
    height = 0.26 * max(map(len, shown)) + 0.9
    figure, axes = panels(len(cells), size=(2.2 + 0.6 * max(map(len, names)), height))
    for panel, (name, part), columns, lines in zip(axes, cells.items(), names, shown, strict=True):
        part = part.assign(line=list(map(_named, part.to_dict("records"))))
        grid = part.pivot_table(index="line", columns="criterion", values="value", dropna=False)
        _matrix(panel, grid.reindex(index=lines, columns=columns), low_is_good="perplexity" in name)
        panel.set_title(name)
    facts = rows.iloc[0]
    place = [model, f"{facts['data']}: {facts['n']:,} windows", f"{facts['units']} removed {facts['policy']}"]
    title(figure, "Every method with every criterion", place)
    return figure


def _named(row: dict) -> tuple[str, str]:
    return row["method"], "" if pd.isna(row["predictor"]) else row["predictor"]


def _order(line: tuple[str, str]) -> tuple:
    return method_order(line[0]), line[1]


def _matrix(axes: Axes, grid: pd.DataFrame, low_is_good: bool) -> None:
    """Numbers on colours, dark for the better ones."""
    values = grid.to_numpy(dtype=float)
    shade = -np.log(values) if low_is_good else values
    axes.imshow(shade, aspect="auto", cmap="Blues", vmin=np.nanmin(shade), vmax=np.nanmax(shade) + 1e-9)
    middle = (np.nanmin(shade) + 2 * np.nanmax(shade)) / 3
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if shade[row, column] > middle else "black"
            axes.text(column, row, f"{value:,.3g}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=30, ha="right")
    axes.set_yticks(range(len(grid)), [" ".join(filter(None, line)) for line in grid.index])
    axes.grid(False)
