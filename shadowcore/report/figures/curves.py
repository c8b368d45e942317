"""Perplexity and accuracy against measured sparsity, a panel per text or task, units and criterion."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.report.figures.series import (
    INTERVAL,
    LINES,
    Series,
    asked,
    contextual,
    criterion_order,
    intervals,
    leading,
    level,
    of_model,
    series,
    units_order,
    where,
)
from shadowcore.report.style import (
    Axes,
    Figure,
    Line2D,
    empty,
    key,
    legend,
    log_axis,
    look,
    panels,
    styled,
    title,
    whole_ticks,
)
from shadowcore.report.tables import CHANCE, Tables
from shadowcore.schemas import CONDITION

MOST_PANELS = 15
ROOM = 1.7  # factor of space above the highest method but random, for random's values


@styled
def perplexity(tables: Tables, model: str) -> Figure:
    """Token perplexity, log scale; where random leaves the other methods far behind, its values are written."""
    rows = where(of_model(tables, "perplexity", model), metric="token_perplexity")
    if rows.empty:
        return empty(f"{model}: no perplexities in the tables")
    rows = leading(contextual(rows), low_is_good=True)
    return _perplexities(rows, model, "Token perplexity against measured sparsity, with 95 % intervals")


@styled
def policies(tables: Tables, model: str) -> Figure:
    """Token perplexity of what was run under several policies: a share of each layer against a share of the model."""
    rows = where(of_model(tables, "perplexity", model), metric="token_perplexity")
    sparse = rows[~rows["method"].isin(["dense", "random"])]
    alike = [name for name in CONDITION if name not in ("policy", "sparsity_pct")]
    several = sparse.groupby(alike, dropna=False)["policy"].transform("nunique") > 1
    if not several.any():
        return empty(f"{model}: no condition was measured under several policies in the tables")
    kept = rows[(rows["method"] == "dense") | rows.index.isin(sparse.index[several])]
    return _perplexities(kept, model, "Units chosen per layer against over all layers, with 95 % intervals")


def _perplexities(rows: pd.DataFrame, model: str, heading: str) -> Figure:
    limits = rows[rows["method"] != "random"]
    limits = limits if len(limits) else rows
    bottom = limits["low"].fillna(limits["value"]).min() / 1.08
    top = limits["high"].fillna(limits["value"]).max() * ROOM

    def finish(axes: Axes, _: str, lines: list[Series]) -> None:
        axes.set_ylim(bottom, top)
        axes.margins(x=0.1)  # room for the values written beside the first and last points
        log_axis(axes)
        for line in lines:
            for _, row in line.rows[line.rows["value"] > top].iterrows():
                axes.annotate(
                    f"{row['value']:,.0f} ↑", (100 * row["sparsity_measured"], 0.99), ha="center", va="top",
                    xycoords=("data", "axes fraction"), color=look(line.method).color, fontsize=8,
                )  # fmt: skip

    figure = _curves(rows, "data", "token perplexity", finish)
    counts = rows.groupby("data")[["n", "counted"]].first()
    texts = [f"{data}: {row['n']:,} {_documents(data)}, {row['counted']:,} tokens" for data, row in counts.iterrows()]
    title(figure, heading, [model, *texts])
    return figure


@styled
def accuracy(tables: Tables, model: str) -> Figure:
    """Task accuracy with its Wilson interval, over the line of guessing."""
    rows = of_model(tables, "accuracy", model)
    if rows.empty:
        return empty(f"{model}: no accuracies in the tables")
    rows = leading(contextual(asked(rows)), low_is_good=False)
    guessing = {name: CHANCE[task] for name, task in zip(rows["asked"], rows["task"], strict=True) if task in CHANCE}

    def finish(axes: Axes, name: str, _: list[Series]) -> None:
        if name in guessing:
            axes.axhline(guessing[name], color=look("random").color, linestyle=":", linewidth=1.2)

    chance = [key("chance", look("random").color, line=":")] if guessing else []
    figure = _curves(rows, "asked", "accuracy", finish, *chance)
    tasks = [f"{name}: {n:,} documents" for name, n in rows.groupby("asked")["n"].first().items()]
    title(figure, "Accuracy against measured sparsity, with 95 % intervals", [model, *tasks])
    return figure


def _documents(data: str) -> str:
    return "documents" if data in BENCHMARKS else "windows"


def _curves(
    rows: pd.DataFrame, facet: str, label: str, finish: Callable[[Axes, str, list[Series]], None], *more: Line2D
) -> Figure:
    """Draw `rows` in panels of one `facet`, units and criterion each; `finish` adds what is special to a figure."""
    keys = _panel_keys(rows, facet)
    facets, others = {name for name, *_ in keys}, {tuple(other) for _, *other in keys}
    grid = len(facets) > 1 and 1 < len(others) <= 4 and len(keys) == len(facets) * len(others)  # a row for each facet
    figure, axes = panels(len(keys), columns=len(others) if grid else None, sharey=True, sharex=True)
    dense, sparse = rows[rows["method"] == "dense"], rows[rows["method"] != "dense"]
    handles = [key("dense", look("dense").color)] if len(dense) else []
    for panel, (name, units, criterion) in zip(axes, keys, strict=True):
        here = where(sparse, **{facet: name}, units=units)
        # what has no criterion to go by is in every panel of its units
        lines = series(here[_without_criterion(here) | (here["criterion"] == criterion)], among=sparse)
        for _, row in where(dense, **{facet: name}).iterrows():
            level(panel, *row[list(INTERVAL)])
        for line in lines:
            _draw(panel, line)
        finish(panel, name, lines)
        whole_ticks(panel)
        panel.set_title(", ".join(part for part in [name if len(facets) > 1 else "", units, criterion] if part))
        panel.set(xlabel="units removed, measured (%)", ylabel=label)
        panel.label_outer()
        handles += [line.handle() for line in lines]
    for policy in sorted(set(rows["policy"].dropna()) - {"per_layer"}):
        kept = key(f"policy {policy} instead of per_layer", "#444444", "o", LINES[policy], markerfacecolor="white")
        more = (*more, kept)
    legend(figure, [*handles, *more])
    return figure


def _draw(axes: Axes, line: Series) -> None:
    hollow = {"markerfacecolor": "white"} if line.policy in ("global", "floored") else {}
    intervals(
        axes, 100 * line.rows["sparsity_measured"], line.rows, INTERVAL,
        linestyle=LINES.get(line.policy, "-"), **line.style(), **hollow,
    )  # fmt: skip


def _without_criterion(rows: pd.DataFrame) -> pd.Series:
    """Random is a criterion of its own, and baselines have none."""
    return (rows["method"] == "random") | rows["criterion"].isna()


def _panel_keys(rows: pd.DataFrame, facet: str) -> list[tuple[str, str | None, str | None]]:
    """Facet, units and criterion of every panel; methods without, and then dense, have one where there is no other."""
    dense, without = rows["method"] == "dense", _without_criterion(rows)
    keys = set(rows.loc[~dense & ~without, [facet, "units", "criterion"]].itertuples(index=False, name=None))
    drawn = {key[:2] for key in keys}
    without &= ~dense
    alone = set(zip(rows.loc[without, facet], rows.loc[without, "units"], strict=True)) - drawn
    keys |= {(name, units, None) for name, units in alone}
    keys |= {(name, None, None) for name in set(rows.loc[dense, facet]) - {key[0] for key in keys}}
    places = sorted(
        {key[1:] for key in keys}, key=lambda parts: (units_order(parts[0]), criterion_order(parts[1] or ""))
    )
    # more than a page of panels: the first units and criteria; the tables have them all
    shown = places[: max(1, MOST_PANELS // len({key[0] for key in keys}))] if len(keys) > MOST_PANELS else places
    return sorted((key for key in keys if key[1:] in shown), key=lambda key: (key[0], shown.index(key[1:])))
