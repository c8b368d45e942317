"""Perplexity and accuracy against measured sparsity, and what another policy changes."""

from __future__ import annotations

import pandas as pd

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.report.checks import CHANCE
from shadowcore.report.figures.lines import (
    INTERVAL,
    asked,
    best_predictors,
    dots,
    first_of,
    intervals,
    lines,
    main_condition,
    mean_over_tasks,
    method_order,
    middle,
    of_model,
    predictors_shown,
    text_perplexities,
    trained_alike,
    where,
)
from shadowcore.report.style import (
    GREY,
    Axes,
    Drawing,
    end_labels,
    key,
    legend,
    level,
    log_axis,
    look,
    named_rows,
    panels,
    styled,
    title,
    whole_ticks,
)
from shadowcore.report.tables import Tables
from shadowcore.schemas import CONDITION

REMOVED = "units removed, measured (%)"
MOST_TASKS = 3  # with panels of their own; of more tasks the mean is shown
ROOM = 1.5  # factor of space above the highest method but random


@styled
def perplexity(tables: Tables, model: str) -> Drawing:
    """Token perplexity against sparsity, log scale, a panel for each text."""
    everything = main_condition(text_perplexities(tables, model))
    rows = best_predictors(trained_alike(tables, model, everything), low_is_good=True)
    if set(rows["method"]) <= {"dense"}:
        return "no perplexity of a sparse model in the tables"
    limits = rows[rows["method"] != "random"]
    limits = limits if len(limits) else rows
    texts = sorted(set(rows["data"]))
    figure, axes = panels(len(texts), sharey=True, height=3.0)
    for panel, text in zip(axes, texts, strict=True):
        here = where(rows, data=text)
        panel.set_ylim(limits["low"].fillna(limits["value"]).min() / 1.05, limits["value"].max() * ROOM)
        log_axis(panel)
        _curves(panel, here)
        panel.set(title=text, xlabel=REMOVED, ylabel="token perplexity")
        panel.label_outer()
    title(figure, "Token perplexity against sparsity, with 95 % intervals", [model, *_facts(rows, everything)])
    return figure


@styled
def accuracy(tables: Tables, model: str) -> Drawing:
    """Task accuracy against sparsity, a panel for each task, or the mean over many tasks."""
    rows = of_model(tables, "accuracy", model)
    if set(rows["method"]) <= {"dense"}:
        return "no accuracy of a sparse model in the tables"
    rows = asked(rows[rows["fewshot"].fillna(0) == 0])
    names, chance = sorted(set(rows["asked"])), dict(zip(rows["asked"], rows["task"].map(CHANCE), strict=True))
    if len(names) > MOST_TASKS:
        guessed = [chance[name] for name in names]
        name = f"mean of {len(names)} tasks"
        rows = mean_over_tasks(rows).assign(asked=name, n=rows.drop_duplicates("asked")["n"].sum())
        names, chance = [name], {name: sum(guessed) / len(guessed)}
    everything = main_condition(rows)
    rows = best_predictors(trained_alike(tables, model, everything), low_is_good=False)
    figure, axes = panels(len(names), height=3.0)
    for panel, name in zip(axes, names, strict=True):
        here = where(rows, asked=name)
        guessing = [(name, chance[name])] if pd.notna(chance[name]) else []
        for _, value in guessing:
            panel.axhline(value, color=GREY, linestyle=":", linewidth=1.2)
        _curves(panel, here, *(("guessing", value, GREY) for _, value in guessing))
        panel.set(title=name, xlabel=REMOVED, ylabel="accuracy")
    title(figure, "Accuracy against sparsity, with 95 % intervals", [model, *_facts(rows, everything)])
    return figure


def _curves(axes: Axes, rows: pd.DataFrame, *levels: tuple[str, float, str]) -> None:
    """The methods' lines with their names at the ends, over the dense level; levels: of other names."""
    axes.margins(x=0.06)
    ends = []
    bottom, top = axes.get_ylim()
    logarithmic = axes.get_yscale() == "log"
    sparse = rows[
        (rows["method"] != "dense") & ((rows["method"] != "random") | (rows["value"] <= top) | (not logarithmic))
    ]
    for line in lines(sparse):
        x = 100 * line.rows["sparsity_measured"]
        intervals(axes, x, line.rows, INTERVAL, **line.style())
        ends.append(line.end(x, line.rows["value"]))
    for _, row in rows[rows["method"] == "dense"].iterrows():
        level(axes, *row[list(INTERVAL)])
        levels = ("dense", row["value"], look("dense").color), *levels
    ends += [(axes.get_xlim()[1], value, name, color) for name, value, color in levels]
    whole_ticks(axes)
    if logarithmic:
        axes.set_ylim(bottom, top)
        above = rows[(rows["method"] == "random") & (rows["value"] > top)]
        for _, row in above[above["sparsity_pct"] == middle(above["sparsity_pct"])].iterrows():
            axes.annotate(
                f"random: {row['value']:,.0f} ↑", (100 * row["sparsity_measured"], 0.99), ha="center", va="top",
                xycoords=("data", "axes fraction"), color=look("random").color, fontsize=8,
            )  # fmt: skip
    end_labels(axes, ends)


def _facts(rows: pd.DataFrame, everything: pd.DataFrame) -> list[str]:
    """What is the same in all lines, which predictors are shown, and how many documents were measured."""
    sparse = rows[~rows["method"].isin(["dense", "random"])]
    place = [
        f"{sparse[name].dropna().iloc[0]}" for name in ("units", "criterion", "policy") if sparse[name].notna().any()
    ]
    name = "data" if "counted" in rows else "asked"
    kinds = {data: "documents" if name == "asked" or data in BENCHMARKS else "windows" for data in rows[name]}
    counts = [f"{text}: {n:,} {kinds[text]}" for text, n in rows.groupby(name)["n"].first().items()]
    return [", ".join(place), *counts, *predictors_shown(rows, everything)]


@styled
def policies(tables: Tables, model: str) -> Drawing:
    """Token perplexity of one share of each layer against one share of the whole model: two points a line."""
    rows = first_of(text_perplexities(tables, model), "data")
    sparse = rows[~rows["method"].isin(["dense", "random"])]
    same = [name for name in CONDITION if name not in ("policy", "sparsity_pct")]
    several = sparse.groupby([*same, "sparsity_pct"], dropna=False)["policy"].transform("nunique") > 1
    rows = main_condition(sparse[several], "policy")
    if rows.empty:
        return "no condition was measured under several policies"
    rows = best_predictors(trained_alike(tables, model, rows), low_is_good=True)
    names = sorted(
        set(zip(rows["sparsity_pct"], rows["method"], strict=True)), key=lambda one: (one[0], method_order(one[1]))
    )
    figure, (axes,) = panels(1, height=0.35 * len(names) + 0.7)
    styles = {"per_layer": {"marker": "o"}, "global": {"marker": "D"}, "floored": {"marker": "^"}}
    for number, (pct, method) in enumerate(names):
        for policy, row in where(rows, sparsity_pct=pct, method=method).groupby("policy"):
            shift = 0.25 * (list(styles).index(policy) - 0.5 if policy in styles else 1.5)
            color = look(method).color
            filled = color if policy == "per_layer" else "white"
            dots(
                axes, [number + shift], row, color=color, markerfacecolor=filled, **styles.get(policy, {"marker": "X"})
            )
    log_axis(axes, "x")
    named_rows(axes, [f"{method}, {pct} % removed" for pct, method in names])
    axes.set_xlabel("token perplexity")
    meanings = {"per_layer": "per_layer: a share of each layer", "global": "global: a share of the whole model"}
    shown = [name for name in styles if name in set(rows["policy"])]
    fill = {"per_layer": GREY}
    handles = [
        key(meanings.get(name, name), GREY, line="", markerfacecolor=fill.get(name, "white"), **styles[name])
        for name in shown
    ]
    legend(figure, handles)
    facts = rows.iloc[0]
    place = f"{facts['units']}, {facts['criterion']}"
    title(
        figure, "Perplexity by policy, with 95 % intervals", [model, place, f"{facts['data']}: {facts['n']:,} windows"]
    )
    return figure
