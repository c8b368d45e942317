"""Perplexity, accuracy and the gain over static masks against sparsity, and what another policy changes."""

import pandas as pd

from shadowcore.report import select, style
from shadowcore.report.checks import CHANCE
from shadowcore.report.figures.lines import INTERVAL, curves, dots
from shadowcore.report.looks import look, method_order
from shadowcore.report.select import where
from shadowcore.report.style import GREY, Axes, Drawing
from shadowcore.report.tables import Tables
from shadowcore.schemas import CONDITION

REMOVED = "units removed, measured (%)"
MOST_TASKS = 3  # with panels of their own; of more tasks the mean is shown
FEWEST = 3  # rows of `policies`
ROOM = 1.5  # factor of space above the highest method but random
POLICIES = {  # marker and meaning
    "per_layer": ("o", "per_layer: a share of each layer"),
    "global": ("D", "global: a share of the whole model"),
    "floored": ("^", "floored"),
}


def perplexity(tables: Tables, model: str) -> Drawing:
    """Token perplexity against sparsity, log scale, a panel for each text."""
    rows = select.main_condition(select.text_perplexities(tables, model))
    rows = select.best_predictors(select.trained_alike(tables, model, rows), low_is_good=True)
    if set(rows["method"]) <= {"dense"}:
        return "no perplexity of a sparse model in the tables"
    limits = rows[rows["method"] != "random"]
    limits = limits if len(limits) else rows
    texts = sorted(set(rows["data"]))
    figure, axes = style.panels(len(texts), sharey=True, height=3.0)
    for panel, text in zip(axes, texts, strict=True):
        panel.set_ylim(limits["low"].fillna(limits["value"]).min() / 1.05, limits["value"].max() * ROOM)
        style.log_axis(panel, "token perplexity")
        _over_sparsity(panel, where(rows, data=text))
        panel.set(title=text, xlabel=REMOVED)
        panel.label_outer()
    style.title(figure, "Token perplexity against sparsity, with 95 % intervals", [model, *_facts(rows)])
    return figure


def accuracy(tables: Tables, model: str) -> Drawing:
    """Task accuracy against sparsity, a panel for each task, or the mean over many tasks."""
    rows = select.of_model(tables, "accuracy", model)
    if set(rows["method"]) <= {"dense"}:
        return "no accuracy of a sparse model in the tables"
    rows = select.by_task(rows[rows["fewshot"].fillna(0) == 0])
    rows = rows.assign(chance=rows["task"].map(CHANCE))
    tasks = rows.drop_duplicates("task_label")
    if len(tasks) > MOST_TASKS:
        known = {"n": tasks["n"].sum(), "chance": tasks["chance"].mean(skipna=False)}
        rows = select.mean_over_tasks(rows).assign(task_label=f"mean of {len(tasks)} tasks", **known)
    rows = select.trained_alike(tables, model, select.main_condition(rows))
    rows = select.best_predictors(rows, low_is_good=False)
    names = sorted(set(rows["task_label"]))
    figure, axes = style.panels(len(names), height=3.0)
    for panel, name in zip(axes, names, strict=True):
        here = where(rows, task_label=name)
        guessing = here["chance"].dropna().head(1)
        for value in guessing:
            panel.axhline(value, color=GREY, linestyle=":", linewidth=1.2)
        _over_sparsity(panel, here, *(("guessing", value, GREY) for value in guessing))
        panel.set(title=name, xlabel=REMOVED, ylabel="accuracy")
    style.title(figure, "Accuracy against sparsity, with 95 % intervals", [model, *_facts(rows)])
    return figure


def _over_sparsity(axes: Axes, rows: pd.DataFrame, *levels: tuple[str, float, str]) -> None:
    """The methods' lines with their names at the ends, over the dense level; levels: of other names."""
    axes.margins(x=0.06)
    bottom, top = axes.get_ylim()
    logarithmic = axes.get_yscale() == "log"
    rows = rows.assign(removed=100 * rows["sparsity_measured"])
    above = (rows["method"] == "random") & (rows["value"] > top) & logarithmic
    ends = curves(axes, rows[(rows["method"] != "dense") & ~above], "removed")
    for _, row in where(rows, method="dense").iterrows():
        style.level(axes, *row[list(INTERVAL)])
        levels = ("dense", row["value"], look("dense").color), *levels
    ends += [(axes.get_xlim()[1], value, name, color) for name, value, color in levels]
    style.whole_ticks(axes)
    if logarithmic:
        axes.set_ylim(bottom, top)
        above = rows[above]
        for _, row in where(above, sparsity_pct=select.middle(above["sparsity_pct"])).iterrows():
            axes.annotate(
                f"random: {row['value']:,.0f} ↑", (row["removed"], 0.99), ha="center", va="top",
                xycoords=("data", "axes fraction"), color=look("random").color, fontsize=8,
            )  # fmt: skip
    style.end_labels(axes, ends)


def _facts(rows: pd.DataFrame) -> list[str]:
    """What is the same in all lines, and how many documents were measured."""
    sparse = rows[~rows["method"].isin(["dense", "random"])]
    place = [str(value) for name in ("units", "criterion", "policy") for value in sparse[name].dropna().head(1)]
    name = "data" if "counted" in rows else "task_label"
    counts = [f"{text}: {n:,} documents" for text, n in rows.groupby(name)["n"].first().items()]
    return [", ".join(place), *counts]


def gain_over_static(tables: Tables, model: str) -> Drawing:
    """Nats per token that each method saves over static masks of its criterion, a panel for each criterion."""
    rows = where(select.of_model(tables, "comparisons", model), metric="log_perplexity", reference="static")
    rows = rows[(rows["task"] != "second_half") & (rows["method"] != "static")]
    rows = rows[rows["reference_criterion"] == rows["criterion"]]
    if rows.empty:
        return "no perplexity was compared with static"
    rows = rows.assign(value=-rows["difference"], low=-rows["high"], high=-rows["low"])
    rows = select.first_of(select.main_condition(select.contextual(rows), "criterion"), "data")
    # of a criterion with one sparsity there is no line
    several = rows[rows["method"].isin(select.CONTEXTUAL)].groupby("criterion")["sparsity_pct"].nunique() > 1
    rows = rows[rows["criterion"].isin(several.index[several])] if several.any() else rows
    rows = select.trained_alike(tables, model, rows)
    rows = select.best_predictors(rows, low_is_good=False, by=("method", "criterion"))
    criteria = sorted(set(rows["criterion"]), key=select.criterion_order)[:3]
    figure, axes = style.panels(len(criteria), sharey=True, height=2.8)
    ends = []
    for panel, criterion in zip(axes, criteria, strict=True):
        panel.axhline(0, color=look("static").color, linewidth=1.4)
        ends.append(curves(panel, where(rows, criterion=criterion)))
        panel.margins(x=0.06)
        panel.set(title=criterion, xlabel="units removed per layer (%)", ylabel="nats per token saved")
        style.whole_ticks(panel)
        panel.label_outer()
    for panel, labels in zip(axes, ends, strict=True):  # of shared limits, when all panels are drawn
        style.end_labels(panel, [(panel.get_xlim()[1], 0.0, "static", look("static").color), *labels])
    facts = rows.iloc[0]
    place = [f"{facts['units']}, {facts['policy']}", style.counted(facts)]
    style.title(figure, "Gain over static masks, with paired 95 % intervals", [model, *place])
    return figure


def policies(tables: Tables, model: str) -> Drawing:
    """Token perplexity of one share of each layer against one share of the whole model: two points a line."""
    rows = select.first_of(select.text_perplexities(tables, model), "data")
    sparse = rows[~rows["method"].isin(["dense", "random"])]
    same = [name for name in CONDITION if name != "policy"]
    several = sparse.groupby(same, dropna=False)["policy"].transform("nunique") > 1
    rows = select.main_condition(sparse[several], "policy")
    if rows[["method", "sparsity_pct"]].drop_duplicates().shape[0] < FEWEST:
        return f"fewer than {FEWEST} conditions were measured under several policies"
    rows = select.best_predictors(select.trained_alike(tables, model, rows), low_is_good=True)
    names = set(zip(rows["sparsity_pct"], rows["method"], strict=True))
    names = sorted(names, key=lambda name: (name[0], method_order(name[1])))
    figure, (axes,) = style.panels(1, height=0.35 * len(names) + 0.7)
    for number, (pct, method) in enumerate(names):
        for policy, row in where(rows, sparsity_pct=pct, method=method).groupby("policy"):
            shift = 0.25 * (list(POLICIES).index(policy) - 0.5 if policy in POLICIES else 1.5)
            filled = look(method).color if policy == "per_layer" else "white"
            marker, _ = POLICIES.get(policy, ("X", policy))
            dots(axes, [number + shift], row, color=look(method).color, markerfacecolor=filled, marker=marker)
    style.log_axis(axes, "token perplexity", "x")
    style.named_rows(axes, [f"{method}, {pct} % removed" for pct, method in names])
    style.legend(figure, [
        style.key(meaning, GREY, marker, "", markerfacecolor=GREY if name == "per_layer" else "white")
        for name, (marker, meaning) in POLICIES.items() if name in set(rows["policy"])
    ])  # fmt: skip
    facts = rows.iloc[0]
    place = [model, f"{facts['units']}, {facts['criterion']}", style.counted(facts)]
    style.title(figure, "Perplexity by policy, with 95 % intervals", place)
    return figure
