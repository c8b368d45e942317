"""Accuracy task by task, against dense, and with examples in the prompt."""

from __future__ import annotations

from shadowcore.report.figures.lines import (
    INTERVAL,
    asked,
    best_predictors,
    dots,
    intervals,
    lines,
    main_condition,
    mean_over_tasks,
    methods,
    middle,
    of_model,
    predictors_shown,
    trained_alike,
    where,
)
from shadowcore.report.style import (
    Drawing,
    end_labels,
    key,
    legend,
    look,
    named_rows,
    panels,
    styled,
    title,
    whole_ticks,
)
from shadowcore.report.tables import ACCURACY_METRICS, Tables

LAYERWISE = ("layerwise", "layerwise_own")
CHANGE = ("difference", "low", "high")


@styled
def differences(tables: Tables, model: str) -> Drawing:
    """Accuracy minus dense at the middle sparsity with its paired 95 % interval: a panel a task, a row a method."""
    rows = of_model(tables, "comparisons", model)
    rows = rows[
        rows["metric"].isin(ACCURACY_METRICS) & (rows["reference"] == "dense") & (rows["fewshot"].fillna(0) == 0)
    ]
    everything = main_condition(asked(rows).assign(value=rows["difference"]))
    rows = best_predictors(trained_alike(tables, model, everything), low_is_good=False)
    if rows.empty:
        return "no accuracy was compared with dense"
    rows = where(rows, sparsity_pct=middle(rows["sparsity_pct"]))
    names = methods(set(rows["method"]))
    tasks = sorted(set(rows["asked"]))
    columns = len(tasks) if len(tasks) < 6 else (len(tasks) + 1) // 2
    height = 0.19 * len(names) + 0.7
    figure, axes = panels(len(tasks), columns=columns, height=height, sharey=True, sharex=len(tasks) > 1)
    for panel, task in zip(axes, tasks, strict=True):
        panel.axvline(0, color=look("dense").color, linewidth=1.2)
        for place, method in enumerate(names):
            here = 100 * where(rows, asked=task, method=method)[list(CHANGE)]
            style = look(method)
            dots(panel, [place] * len(here), here, CHANGE, color=style.color, marker=style.marker)
        named_rows(panel, names)
        panel.set(
            title=task.replace(", ", ",\n") if columns > 3 else task,
            xlabel="points" if columns > 3 else "percentage points",
        )
        panel.label_outer()
    facts = rows.iloc[0]
    place = [*rows["criterion"].dropna().head(1), *rows["policy"].dropna().head(1)]
    place = ", ".join([f"{facts['sparsity_pct']} % of {facts['units']} removed", *place])
    title(
        figure, "Accuracy minus dense on the same documents, with paired 95 % intervals",
        [model, place, *predictors_shown(rows, everything)],
    )  # fmt: skip
    return figure


@styled
def tasks(tables: Tables, model: str) -> Drawing:
    """Accuracy task by task: ShadowLLM's predictor and criterion against DejaVu's, and the dense model."""
    rows = of_model(tables, "accuracy", model)
    rows = trained_alike(tables, model, main_condition(asked(rows[rows["fewshot"] == 0]), "criterion"))
    shadow = where(rows, method="shadow", criterion="plainact")
    rival = rows[rows["method"].isin(LAYERWISE) & (rows["criterion"] == "l2_norm")]
    sparsities = sorted(set(shadow["sparsity_pct"]) & set(rival["sparsity_pct"]))
    names = sorted(set(rows["asked"]))
    if not sparsities or len(names) < 2:
        return "fewer than two tasks with both shadow (plainact) and layerwise (l2_norm)"
    both = [best_predictors(side, low_is_good=False) for side in (shadow, rival)]
    figure, axes = panels(len(sparsities), height=0.3 * len(names) + 0.7, sharey=True, sharex=True)
    for panel, pct in zip(axes, sparsities, strict=True):
        for _, row in where(rows, method="dense").iterrows():
            place = names.index(row["asked"])
            panel.vlines(100 * row["value"], place - 0.35, place + 0.35, color=look("dense").color)
        for side, shift in zip(both, (-0.15, 0.15), strict=True):
            here = where(side, sparsity_pct=pct)
            style = look(here["method"].iloc[0])
            places = here["asked"].map(names.index) + shift
            dots(panel, places, 100 * here[list(INTERVAL)], color=style.color, marker=style.marker)
        named_rows(panel, names)
        panel.set(title=f"{pct} % removed", xlabel="accuracy (%)")
        panel.label_outer()
    handles = []
    for side in both:
        first = side.iloc[0]
        style = look(first["method"])
        handles.append(key(f"{style.label}, {first['criterion']}, {first['predictor']}", style.color, style.marker, ""))
    legend(figure, [key("dense", "black", "|", "", markersize=11), *handles])
    facts = shadow.iloc[0]
    place = f"{facts['units']} removed, {facts['policy']}"
    title(figure, "ShadowLLM's design against DejaVu's, task by task, with 95 % intervals", [model, place])
    return figure


@styled
def fewshot(tables: Tables, model: str) -> Drawing:
    """Accuracy averaged over tasks against the number of examples in the prompt, a panel per sparsity."""
    everything = main_condition(mean_over_tasks(of_model(tables, "accuracy", model), shots=True))
    rows = best_predictors(trained_alike(tables, model, everything), low_is_good=False)
    sparse = rows[rows["method"] != "dense"]
    if rows["fewshot"].nunique() < 2 or sparse.empty:
        return "no task was asked with several numbers of examples"
    sparsities = sorted(set(sparse["sparsity_pct"]))
    figure, axes = panels(len(sparsities), sharey=True, sharex=True)
    ends: list[list] = []
    for panel, pct in zip(axes, sparsities, strict=True):
        ends.append([])
        for line in lines(rows[rows["sparsity_pct"].isin([0, pct])]):
            ordered = line.rows.sort_values("fewshot")
            intervals(panel, ordered["fewshot"], ordered, INTERVAL, **line.style())
            ends[-1].append(line.end(ordered["fewshot"], ordered["value"]))
        panel.set(title=f"{pct} % removed", xlabel="examples in the prompt", ylabel="mean task accuracy")
        whole_ticks(panel)
        panel.label_outer()
    for panel, labels in zip(axes, ends, strict=True):
        end_labels(panel, labels)
    facts = sparse.iloc[0]
    removed = f"{facts['units']}, {facts['criterion']}, {facts['policy']}"
    title(
        figure, f"Accuracy against examples in the prompt, mean over {facts['tasks']:g} tasks, with 95 % intervals",
        [model, removed, *predictors_shown(rows, everything)],
    )  # fmt: skip
    return figure
