"""Accuracy task by task, against dense, and with examples in the prompt."""

from shadowcore.report import select, style
from shadowcore.report.figures.lines import INTERVAL, curves, dots, method_key
from shadowcore.report.looks import look
from shadowcore.report.select import where
from shadowcore.report.style import Drawing
from shadowcore.report.tables import ACCURACY_METRICS, Tables

LAYERWISE = ("layerwise", "layerwise_own")
CHANGE = ("difference", "low", "high")


def differences(tables: Tables, model: str) -> Drawing:
    """Accuracy minus dense at the middle sparsity with its paired 95 % interval: a panel a task, a row a method."""
    rows = where(select.of_model(tables, "comparisons", model), reference="dense")
    rows = rows[rows["metric"].isin(ACCURACY_METRICS) & (rows["fewshot"].fillna(0) == 0)]
    rows = select.main_condition(select.by_task(rows).assign(value=rows["difference"]))
    rows = select.best_predictors(select.trained_alike(tables, model, rows), low_is_good=False)
    if rows["task_label"].nunique() < 2:
        return "fewer than two tasks whose accuracy was compared with dense"
    rows = where(rows, sparsity_pct=select.middle(rows["sparsity_pct"]))
    names, tasks = select.methods(set(rows["method"])), sorted(set(rows["task_label"]))
    columns = len(tasks) if len(tasks) < 6 else (len(tasks) + 1) // 2
    figure, axes = style.panels(len(tasks), columns, 0.19 * len(names) + 0.7, sharey=True, sharex=len(tasks) > 1)
    for panel, task in zip(axes, tasks, strict=True):
        panel.axvline(0, color=look("dense").color, linewidth=1.2)
        for place, method in enumerate(names):
            here = 100 * where(rows, task_label=task, method=method)[list(CHANGE)]
            dots(panel, [place] * len(here), here, CHANGE, color=look(method).color, marker=look(method).marker)
        style.named_rows(panel, [select.named(where(rows, method=name)).replace("\n", ", ") for name in names])
        panel.set(title=task, xlabel="percentage points")
        if columns > 3:
            panel.set(title=task.replace(", ", ",\n"), xlabel="points")
        panel.label_outer()
    facts = rows.iloc[0]
    place = [*rows["criterion"].dropna().head(1), *rows["policy"].dropna().head(1)]
    place = ", ".join([f"{facts['sparsity_pct']} % of {facts['units']} removed", *place])
    heading = "Accuracy minus dense on the same documents, with paired 95 % intervals"
    style.title(figure, heading, [model, place])
    return figure


def tasks(tables: Tables, model: str) -> Drawing:
    """Accuracy task by task: ShadowLLM's predictor and criterion against DejaVu's, and the dense model."""
    rows = select.by_task(where(select.of_model(tables, "accuracy", model), fewshot=0))
    rows = select.trained_alike(tables, model, select.main_condition(rows, "criterion"))
    shadow = where(rows, method="shadow", criterion="plainact")
    rival = where(rows[rows["method"].isin(LAYERWISE)], criterion="l2_norm")
    sparsities = sorted(set(shadow["sparsity_pct"]) & set(rival["sparsity_pct"]))
    names = sorted(set(rows["task_label"]))
    if not sparsities or len(names) < 2:
        return "fewer than two tasks with both shadow (plainact) and layerwise (l2_norm)"
    recipes = set(shadow["predictor"]) & set(rival["predictor"])  # the same one on both sides, if there is one
    both = [side[side["predictor"].isin(recipes)] if recipes else side for side in (shadow, rival)]
    both = [select.best_predictors(side, low_is_good=False) for side in both]
    figure, axes = style.panels(len(sparsities), height=0.3 * len(names) + 0.7, sharey=True, sharex=True)
    for panel, pct in zip(axes, sparsities, strict=True):
        for _, row in where(rows, method="dense").iterrows():
            place = names.index(row["task_label"])
            panel.vlines(100 * row["value"], place - 0.35, place + 0.35, color=look("dense").color)
        for side, shift in zip(both, (-0.15, 0.15), strict=True):
            here = where(side, sparsity_pct=pct)
            drawn = look(here["method"].iloc[0])
            places = here["task_label"].map(names.index) + shift
            dots(panel, places, 100 * here[list(INTERVAL)], color=drawn.color, marker=drawn.marker)
        style.named_rows(panel, names)
        panel.set(title=f"{pct} % removed", xlabel="accuracy (%)")
        panel.label_outer()
    handles = [style.key("dense", "black", "|", "", markersize=11)]
    for facts in (side.iloc[0] for side in both):
        label = f"{look(facts['method']).label}, {facts['criterion']}: recipe {facts['predictor']}"
        handles.append(method_key(facts["method"], label=f"{label}, rank {facts['rank']:,.0f}"))
    style.legend(figure, handles)
    place = f"{shadow['units'].iloc[0]} removed, {shadow['policy'].iloc[0]}"
    style.title(figure, "ShadowLLM's design against DejaVu's, task by task, with 95 % intervals", [model, place])
    return figure


def fewshot(tables: Tables, model: str) -> Drawing:
    """Accuracy averaged over tasks against the number of examples in the prompt, a panel per sparsity."""
    rows = select.mean_over_tasks(select.of_model(tables, "accuracy", model), shots=True)
    rows = select.best_predictors(select.trained_alike(tables, model, select.main_condition(rows)), low_is_good=False)
    sparse = rows[rows["method"] != "dense"]
    if rows["fewshot"].nunique() < 2 or sparse.empty:
        return "no task was measured with several numbers of examples"
    sparsities = sorted(set(sparse["sparsity_pct"]))
    figure, axes = style.panels(len(sparsities), sharey=True, sharex=True)
    ends = []
    for panel, pct in zip(axes, sparsities, strict=True):
        ends.append(curves(panel, rows[rows["sparsity_pct"].isin([0, pct])], "fewshot"))
        panel.set(title=f"{pct} % removed", xlabel="examples in the prompt", ylabel="mean task accuracy")
        style.whole_ticks(panel)
        panel.label_outer()
    for panel, labels in zip(axes, ends, strict=True):
        style.end_labels(panel, labels)
    facts = sparse.iloc[0]
    removed = f"{facts['units']}, {facts['criterion']}, {facts['policy']}"
    heading = f"Accuracy against examples in the prompt, mean over {facts['tasks']:g} tasks, with 95 % intervals"
    style.title(figure, heading, [model, removed])
    return figure
