"""Perplexity and accuracy against measured sparsity, a panel per text or task, units and criterion."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from shadowcore.report.figures.series import (
    INTERVAL,
    LINES,
    Series,
    criterion_order,
    intervals,
    level,
    of_model,
    plain_accuracy,
    series,
    units_order,
    where,
)  # fmt: skip
from shadowcore.report.style import Axes, Figure, empty, key, legend, log_axis, look, panels, styled, title, whole_ticks
from shadowcore.report.tables import Tables, chance

ROOM = 1.3  # above the highest method but random, on the logarithmic axis


@styled
def perplexity(tables: Tables, model: str) -> Figure:
    """Token perplexity, log scale; where random leaves the other methods far behind, its values are written."""
    rows = of_model(tables, "perplexity", model)
    if rows.empty:
        return empty(f"{model}: no perplexities in the tables")
    others = rows[rows["method"] != "random"]
    limits = others if len(others) else rows
    bottom = limits["low"].fillna(limits["value"]).min() / 1.08
    top = limits["high"].fillna(limits["value"]).max() * ROOM

    def finish(axes: Axes, _: str, lines: list[Series]) -> None:
        axes.set_ylim(bottom, top)
        log_axis(axes)
        for line in lines:
            for _, row in line.rows[line.rows["value"] > top].iterrows():
                axes.annotate(
                    f"{row['value']:,.0f} ↑", (100 * row["sparsity_measured"], 1), xycoords=("data", "axes fraction"),
                    color=look(line.method).color, ha="center", va="bottom", fontsize=8,
                )  # fmt: skip

    figure = _curves(rows, "data", "token perplexity", finish)
    counts = rows.groupby("data")[["n", "tokens"]].first()
    texts = [f"{data}: {row['n']:,} windows, {row['tokens']:,} tokens" for data, row in counts.iterrows()]
    title(figure, "Token perplexity against measured sparsity, with 95 % intervals", [model, *texts])
    return figure


@styled
def accuracy(tables: Tables, model: str) -> Figure:
    """Task accuracy with its Wilson interval, over the line of guessing."""
    rows = of_model(tables, "accuracy", model)
    if rows.empty:
        return empty(f"{model}: no accuracies in the tables")
    rows = plain_accuracy(rows)

    def finish(axes: Axes, task: str, lines: list[Series]) -> None:
        axes.axhline(chance(task), color="#8C8C8C", linestyle=":", linewidth=1.2)

    figure = _curves(rows, "task", "accuracy", finish, key("chance", "#8C8C8C", line=":"))
    tasks = [f"{task}: {n:,} documents" for task, n in rows.groupby("task")["n"].first().items()]
    title(figure, "Accuracy against measured sparsity, with 95 % intervals", [model, *tasks])
    return figure


def _curves(
    rows: pd.DataFrame, facet: str, label: str, finish: Callable[[Axes, str, list[Series]], None], *more: object
) -> Figure:
    """Draw `rows` in panels of one `facet`, units and criterion each; `finish` adds what is special."""
    dense, sparse = rows[rows["method"] == "dense"], rows[rows["method"] != "dense"]
    random, scored = sparse[sparse["method"] == "random"], sparse[sparse["method"] != "random"]
    # random has no criterion to go by: it is in every panel of its units
    keys = _panel_keys(scored if len(scored) else sparse, facet) or [
        (name, None, None) for name in sorted(set(dense[facet]))
    ]
    figure, axes = panels(len(keys), sharey=True, sharex=True)
    handles = [key("dense", look("dense").color)] if len(dense) else []
    policies = set()
    for panel, (name, units, criterion) in zip(axes, keys, strict=True):
        shown = pd.concat([where(random, units=units), where(scored, units=units, criterion=criterion)])
        lines = series(where(shown, **{facet: name}), among=sparse)
        for _, row in where(dense, **{facet: name}).iterrows():
            level(panel, *row[list(INTERVAL)])
        for line in lines:
            style = look(line.method)
            measured = 100 * line.rows["sparsity_measured"]
            intervals(
                panel, measured, line.rows, INTERVAL,
                color=style.color, marker=style.marker, linestyle=LINES.get(line.policy, "-"),
            )  # fmt: skip
            handles.append(line.handle())
            policies.add(line.policy)
        finish(panel, name, lines)
        whole_ticks(panel)
        facets = [name] if rows[facet].nunique() > 1 else []
        panel.set_title(", ".join(part for part in [*facets, units, criterion] if part), pad=14)
        panel.set_xlabel("units removed, measured (%)")
    for panel in axes:
        panel.label_outer()
    axes[0].set_ylabel(label)
    if "global" in policies:
        more = (*more, key("kept over the whole model (global)", "#444444", line=LINES["global"]))
    legend(figure, [*handles, *more])
    return figure


def _panel_keys(rows: pd.DataFrame, facet: str) -> list[tuple[str, str, str]]:
    keys = rows[[facet, "units", "criterion"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(keys, key=lambda parts: (parts[0], units_order(parts[1]), criterion_order(parts[2])))
