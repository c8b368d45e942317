"""Accuracy of every sparse condition minus dense, documents paired."""

from __future__ import annotations

import pandas as pd

from shadowcore.report.figures.series import (
    NAMES,
    asked,
    contextual,
    criterion_order,
    leading,
    method_order,
    of_model,
    units_order,
    varies,
)
from shadowcore.report.style import FAINT, Axes, Figure, empty, look, panels, styled, title
from shadowcore.report.tables import ACCURACY_METRICS, Tables

ROW_INCHES = 0.17  # height of one condition
VARIANTS = ["policy", "predictor", "protocol", "calibration", "seed"]


@styled
def differences(tables: Tables, model: str) -> Figure:
    """A line per condition with its paired 95 % interval, in blocks of equal units, criterion and sparsity."""
    rows = of_model(tables, "comparisons", model)
    rows = rows[rows["metric"].isin(ACCURACY_METRICS) & (rows["reference"] == "dense")]
    if rows.empty:
        return empty(f"{model}: no accuracy was compared with dense in the tables")
    rows = leading(contextual(asked(rows).assign(value=rows["difference"])), low_is_good=False)
    rows = _placed(rows)
    lines = rows["place"].max() + 1
    tasks = sorted(set(rows["asked"]))
    # names of conditions are written once, so that many panels are narrow
    width, label = (
        (5.4, "accuracy minus dense (percentage points)") if len(tasks) < 4 else (2.4, "minus dense (points)")
    )
    figure, axes = panels(len(tasks), columns=len(tasks), size=(width, ROW_INCHES * lines + 0.6), sharey=True)
    for panel, task in zip(axes, tasks, strict=True):
        _forest(panel, rows, task)
        panel.set(title=task, xlabel=label, ylim=(lines - 0.5, -0.5))
        panel.label_outer()
    counts = [f"{task}: {n:,} paired documents" for task, n in rows.groupby("asked")["n"].first().items()]
    title(figure, "Accuracy against dense on the same documents, with paired 95 % intervals", [model, *counts])
    return figure


def _placed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the `block` and the `place` of their condition, from the top, and its `name`."""
    # what tells conditions of one method apart
    told = {method: [name for name in VARIANTS if varies(alike[name])] for method, alike in rows.groupby("method")}
    keys, names = [], []
    for _, row in rows.astype(object).where(rows.notna(), "").iterrows():
        block = (units_order(row["units"]), row["units"], criterion_order(row["criterion"]), row["sparsity_pct"])
        variants = [NAMES.get(row[name], str(row[name])) for name in told[row["method"]]]
        keys.append((block, method_order(row["method"]), *variants))
        parts = [f"{row['sparsity_pct']} % {row['units']}", row["criterion"], row["method"], *variants]
        names.append(", ".join(part for part in dict.fromkeys(parts) if part))  # random is its own criterion
    places = {condition: place for place, condition in enumerate(sorted(set(keys)))}
    blocks = {block: number for number, block in enumerate(sorted({condition[0] for condition in keys}))}
    return rows.assign(
        place=[places[condition] for condition in keys], block=[blocks[condition[0]] for condition in keys], name=names
    )


def _forest(axes: Axes, rows: pd.DataFrame, task: str) -> None:
    for number, block in rows.groupby("block")["place"]:
        if number % 2:
            axes.axhspan(block.min() - 0.5, block.max() + 0.5, color=FAINT, alpha=0.4, linewidth=0, zorder=0)
    axes.axvline(0, color=look("dense").color, linewidth=1.2)
    for _, row in rows[rows["asked"] == task].iterrows():
        style = look(row["method"])
        if pd.notna(row["low"]):
            axes.hlines(row["place"], 100 * row["low"], 100 * row["high"], color=style.color)
        axes.plot(100 * row["difference"], row["place"], color=style.color, marker=style.marker)
    axes.grid(axis="y", visible=False)
    named = rows.drop_duplicates("place")
    axes.set_yticks(named["place"], named["name"], fontsize=8)
