"""What choosing units for the input is worth over fixed units."""

from __future__ import annotations

from shadowcore.report.figures.lines import (
    best_predictors,
    contextual,
    criterion_order,
    first_of,
    intervals,
    lines,
    main_condition,
    of_model,
    predictors_shown,
    trained_alike,
    where,
)
from shadowcore.report.style import Drawing, end_labels, look, panels, styled, title, whole_ticks
from shadowcore.report.tables import Tables


@styled
def gain_over_static(tables: Tables, model: str) -> Drawing:
    """Nats per token that each method saves over static masks of its criterion, a panel for each criterion."""
    rows = where(of_model(tables, "comparisons", model), metric="log_perplexity", reference="static")
    rows = rows[(rows["task"] != "second_half") & (rows["method"] != "static")]
    rows = rows[rows["reference_criterion"] == rows["criterion"]]
    if rows.empty:
        return "no perplexity was compared with static"
    saved = {"value": -rows["difference"], "saved_low": -rows["high"], "saved_high": -rows["low"]}
    everything = first_of(main_condition(contextual(rows.assign(**saved)), "criterion"), "data")
    rows = best_predictors(trained_alike(tables, model, everything), low_is_good=False, by=("method", "criterion"))
    criteria = sorted(set(rows["criterion"]), key=criterion_order)[:3]
    figure, axes = panels(len(criteria), sharey=True, height=2.8)
    for panel, criterion in zip(axes, criteria, strict=True):
        panel.axhline(0, color=look("static").color, linewidth=1.4)
        for line in lines(where(rows, criterion=criterion)):
            intervals(panel, line.rows["sparsity_pct"], line.rows, ("value", "saved_low", "saved_high"), **line.style())
        panel.margins(x=0.06)
        panel.set(title=criterion, xlabel="units removed per layer (%)", ylabel="nats per token saved")
        whole_ticks(panel)
        panel.label_outer()
    for panel, criterion in zip(axes, criteria, strict=True):  # of shared limits, when all panels are drawn
        ends = [(panel.get_xlim()[1], 0.0, "static", look("static").color)]
        for line in lines(where(rows, criterion=criterion)):
            ends.append(line.end(line.rows["sparsity_pct"], line.rows["value"]))
        end_labels(panel, ends)
    facts = rows.iloc[0]
    place = [f"{facts['units']}, {facts['policy']}", f"{facts['data']}: {facts['n']:,} paired documents"]
    title(
        figure, "Gain over static masks, with paired 95 % intervals",
        [model, *place, *predictors_shown(rows, everything)],
    )  # fmt: skip
    return figure
