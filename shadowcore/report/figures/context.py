"""What choosing units for the input is worth: over fixed units, task by task, and with examples in the prompt."""

from __future__ import annotations

from shadowcore.report.figures.series import (
    INTERVAL,
    asked,
    contextual,
    criterion_order,
    first_of,
    intervals,
    leading,
    mean_over_tasks,
    of_model,
    series,
    units_order,
    where,
)
from shadowcore.report.style import Figure, empty, key, legend, look, panels, styled, title, whole_ticks
from shadowcore.report.tables import Tables

LAYERWISE = ("layerwise", "layerwise_own")


@styled
def context(tables: Tables, model: str) -> Figure:
    """Nats per token that each method saves over static masks of its criterion; what oracle leaves above is the gap."""
    rows = where(of_model(tables, "comparisons", model), metric="log_perplexity", reference="static")
    rows = rows[rows["task"] == "perplexity"]
    if rows.empty:
        return empty(f"{model}: no perplexity was compared with static in the tables")
    saved = {"value": -rows["difference"], "saved_low": -rows["high"], "saved_high": -rows["low"]}
    rows = leading(contextual(rows.assign(**saved)), low_is_good=False)
    rows = first_of(rows, "data", "calibration", "protocol", "seed")
    keys = sorted(
        set(rows[["units", "criterion"]].itertuples(index=False, name=None)),
        key=lambda parts: (units_order(parts[0]), criterion_order(parts[1])),
    )
    figure, axes = panels(len(keys), sharey=True, sharex=True)
    handles = [key("static (mean scores)", look("static").color)]
    for panel, (units, criterion) in zip(axes, keys, strict=True):
        panel.axhline(0, color=look("static").color, linewidth=1.2)
        for line in series(where(rows, units=units, criterion=criterion, policy="per_layer"), among=rows):
            intervals(panel, line.rows["sparsity_pct"], line.rows, ("value", "saved_low", "saved_high"), **line.style())
            handles.append(line.handle())
        panel.set(title=f"{units}, {criterion}", xlabel="units removed per layer (%)", ylabel="nats per token saved")
        whole_ticks(panel)
        panel.label_outer()
    legend(figure, handles)
    facts = rows.iloc[0]
    place = f"{facts['data']}: {facts['n']:,} paired windows"
    title(figure, "What context is worth over static masks, with paired 95 % intervals", [model, place])
    return figure


@styled
def tasks(tables: Tables, model: str) -> Figure:
    """Accuracy task by task: ShadowLLM's predictor and criterion against DejaVu's, dense beside them."""
    rows = of_model(tables, "accuracy", model)
    rows = first_of(asked(rows[rows["fewshot"] == 0]), "calibration", "protocol", "seed", "units", "policy")
    shadow = where(rows, method="shadow", criterion="plainact")
    rival = rows[rows["method"].isin(LAYERWISE) & (rows["criterion"] == "l2_norm")]
    sparsities = sorted(set(shadow["sparsity_pct"]) & set(rival["sparsity_pct"]))
    if not sparsities:
        return empty(f"{model}: no tasks with both shadow (plainact) and layerwise (l2_norm) in the tables")
    names = sorted(set(rows["asked"]))
    dense = where(rows, method="dense")
    lines = [line for part in (shadow, rival) for line in series(part, among=rows)]
    figure, axes = panels(len(sparsities), size=(3.2, 0.4 * len(names) + 1.0), sharey=True, sharex=True)
    for panel, pct in zip(axes, sparsities, strict=True):
        for _, row in dense.iterrows():
            place = names.index(row["asked"])
            panel.vlines(100 * row["value"], place - 0.35, place + 0.35, color=look("dense").color)
        for number, line in enumerate(lines):
            here = where(line.rows, sparsity_pct=pct)
            place = here["asked"].map(names.index) + 0.5 * ((number + 1) / (len(lines) + 1) - 0.5)
            panel.hlines(place, 100 * here["low"], 100 * here["high"], color=line.style()["color"], linewidth=1)
            panel.plot(100 * here["value"], place, linestyle="", **line.style())
        panel.set(title=f"{pct} % removed", xlabel="accuracy (%)", ylim=(len(names) - 0.5, -0.5))
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="y", visible=False)
        panel.label_outer()
    criteria = {line.label: line.rows["criterion"].iloc[0] for line in lines}
    handles = [key(f"{line.label}, {criteria[line.label]}", **line.style()) for line in lines]
    legend(figure, [key("dense", look("dense").color), *handles])
    facts = shadow.iloc[0]
    title(
        figure, "ShadowLLM's design against DejaVu's, task by task, with 95 % intervals",
        [model, f"{facts['units']} removed {facts['policy']}"],
    )  # fmt: skip
    return figure


@styled
def fewshot(tables: Tables, model: str) -> Figure:
    """Accuracy averaged over tasks against the number of examples in the prompt, a panel per sparsity."""
    rows = mean_over_tasks(of_model(tables, "accuracy", model), shots=True)
    rows = first_of(rows, "calibration", "protocol", "seed", "units", "policy", "criterion")
    sparse = rows[rows["method"] != "dense"]
    if rows["fewshot"].nunique() < 2 or sparse.empty:
        return empty(f"{model}: no task was asked with several numbers of examples in the tables")
    sparsities = sorted(set(sparse["sparsity_pct"]))
    figure, axes = panels(len(sparsities), sharey=True, sharex=True)
    handles = []
    for panel, pct in zip(axes, sparsities, strict=True):
        for line in series(rows[rows["sparsity_pct"].isin([0, pct])], among=rows):
            ordered = line.rows.sort_values("fewshot")
            intervals(panel, ordered["fewshot"], ordered, INTERVAL, **line.style())
            handles.append(line.handle())
        panel.set(title=f"{pct} % removed", xlabel="examples in the prompt", ylabel="mean task accuracy")
        whole_ticks(panel)
        panel.label_outer()
    legend(figure, handles)
    facts = sparse.iloc[0]
    removed = f"{facts['units']} by {facts['criterion']}, {facts['policy']}"
    title(figure, f"Examples in the prompt: accuracy, mean over {facts['tasks']:g} tasks", [model, removed])
    return figure
