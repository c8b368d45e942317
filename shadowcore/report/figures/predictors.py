"""Predictors against each other: what each reaches, how well it ranks units, and what size and more text change."""

import numpy as np
import pandas as pd

from shadowcore.report import select, style
from shadowcore.report.figures.lines import INTERVAL, dots, intervals, lines, method_key
from shadowcore.report.looks import look, method_order
from shadowcore.report.select import where
from shadowcore.report.style import GREY, Axes, Drawing
from shadowcore.report.tables import Tables

PREDICTOR = ["method", "criterion", "predictor"]
ALIKE = ["method", "criterion", "groups", "rank", "bits", "block", "epochs"]
BOUNDS = {"dense": "-", "oracle": ":", "static": "--"}  # drawn as lines
MOST = 18  # rows of `designs`
SMALLEST = 3  # predictors from which on a figure compares them


def designs(tables: Tables, model: str) -> Drawing:
    """Every predictor at the middle sparsity, by the number of predictors in the model: perplexity and recall."""
    rows, trained, recall = _evaluated(tables, model)
    if trained["groups"].nunique() < 2 or len(trained) < SMALLEST:
        return f"fewer than {SMALLEST} predictors, or all with the same number in the model"
    trained = trained.sort_values("value").head(MOST).sort_values(["groups", "value"], kind="stable")
    trained = trained.assign(place=range(len(trained)))
    names = [f"{row.predictor} ({_count(row.groups)})" for row in trained.itertuples()]
    figure, axes = style.panels(2, height=0.2 * len(names) + 0.8, sharey=True)
    ranked = recall.merge(trained[[*PREDICTOR, "place"]], on=PREDICTOR).assign(low=np.nan, high=np.nan)
    parts = (("token perplexity", trained, rows), ("recall of kept units", ranked, recall))
    for panel, (name, points, everything) in zip(axes, parts, strict=True):
        for method, part in points.groupby("method"):
            dots(panel, part["place"], part, color=look(method).color, marker=look(method).marker)
        _bounds(panel.axvline, everything)
        style.named_rows(panel, names)
        for number in np.flatnonzero(np.diff(trained["groups"])):
            panel.axhline(number + 0.5, color=GREY, linewidth=0.5)
        panel.set_xlabel(name)
        panel.label_outer()
    style.log_axis(axes[0], "token perplexity", "x")
    _finish(figure, "Perplexity and recall by number of predictors in the model", model, rows, trained)
    return figure


def sizes(tables: Tables, model: str) -> Drawing:
    """Perplexity at the middle sparsity against the bytes of its predictor that a token reads."""
    rows, trained, _ = _evaluated(tables, model)
    shapes = ["groups", "rank", "bits", "block"]
    if len(trained.drop_duplicates(shapes)) < SMALLEST:
        return f"fewer than {SMALLEST} sizes of predictors"
    # of predictors of one size the best
    best = trained.sort_values("value", kind="stable").drop_duplicates(["method", *shapes])
    figure, (axes,) = style.panels(1, height=3.4)
    for number, row in enumerate(best.sort_values("step_bytes").itertuples()):
        drawn, place = look(row.method), (row.step_bytes / 1e6, row.value)
        axes.plot(*place, color=drawn.color, marker=drawn.marker)
        bits, blocks = f", {row.bits:g} bits" * (row.bits != 16), f", blocks of {row.block:g}" * (row.block > 1)
        axes.annotate(
            f"rank {row.rank:g}{bits}{blocks}", place, xytext=(5, -10 if number % 2 else 3),
            textcoords="offset points", color=drawn.color, fontsize=8,
        )  # fmt: skip
    _bounds(axes.axhline, rows)
    axes.margins(x=0.15)
    style.log_axis(axes, "token perplexity")
    style.log_axis(axes, "predictor weights read per token, MB", "x")
    _finish(figure, "Perplexity against the size of the predictor", model, rows, best)
    return figure


def learning_curves(tables: Tables, model: str) -> Drawing:
    """Perplexity at the middle sparsity against the training tokens of predictors that are otherwise alike."""
    rows, trained, _ = _evaluated(tables, model)
    trained = trained[(trained["rounds"] == 0) & ~trained["tuned"].astype(bool)]
    windows = select.ranked(tables, model, metric="spearman_of_examples")["predictor"]  # predictors of whole windows
    trained = trained[~trained["predictor"].isin(windows)]
    trained = trained[trained.groupby(ALIKE)["tokens"].transform("nunique") > 1].sort_values("tokens")
    if trained.empty:
        return "no predictors that differ only in their number of training tokens"
    figure, (axes,) = style.panels(1, height=3.4)
    ends = []
    for (method, _, groups, rank, *_), line in trained.groupby(ALIKE):
        drawn = look(method)
        intervals(axes, line["tokens"], line, INTERVAL, color=drawn.color, marker=drawn.marker)
        ends.append((*line[["tokens", "value"]].iloc[-1], f"{_count(groups)}, rank {rank:g}", drawn.color))
    _bounds(axes.axhline, rows)
    style.log_axis(axes, "training tokens", "x")
    style.log_axis(axes, "token perplexity")
    style.end_labels(axes, ends)
    _finish(figure, "Perplexity against the number of training tokens", model, rows, trained)
    return figure


def _count(groups: float) -> str:
    return "1 predictor" if groups == 1 else f"{groups:g} predictors"


def _evaluated(tables: Tables, model: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """At the middle sparsity of the main condition: all perplexities, those of predictors with shape, recalls."""
    rows = select.first_of(select.main_condition(select.text_perplexities(tables, model)), "data")
    trained = rows[rows["predictor"].notna()]
    if len(trained):
        pct = select.middle(trained["sparsity_pct"])
        rows = rows[rows["sparsity_pct"].isin([0, pct])]
        trained = where(trained, sparsity_pct=pct)
    kinds = ["heads", "neurons"] if "both" in set(trained["units"]) else sorted(set(trained["units"]))
    shapes = select.of_model(tables, "predictors", model)
    shapes = shapes[shapes["kind"].isin(kinds)].sort_values("kind")
    # heads first: rank, bits and block shown are those of the last kind, the bytes of all
    shapes = shapes.groupby(PREDICTOR, as_index=False).agg(
        dict.fromkeys([*ALIKE[2:], "rounds", "tuned", "tokens"], "last") | {"step_bytes": "sum"}
    )  # fmt: skip
    trained = trained.merge(shapes, on=PREDICTOR)
    recall = select.ranked(tables, model, metric="recall")
    recall = recall[recall["kind"].isin(kinds) & recall["sparsity_pct"].isin(trained["sparsity_pct"])]
    recall = select.first_of(recall, "calibration", "criterion", "policy")
    recall = recall.groupby(PREDICTOR, dropna=False, as_index=False)["value"].mean()  # over layers
    return rows, trained, recall


def _bounds(draw, rows: pd.DataFrame) -> None:
    """Lines, drawn by `draw`, at the values of dense, oracle and static."""
    for name, stroke in BOUNDS.items():
        for value in where(rows, method=name)["value"]:
            draw(value, color=look(name).color, linestyle=stroke, linewidth=1.2)


def _finish(figure, heading: str, model: str, rows: pd.DataFrame, trained: pd.DataFrame) -> None:
    """Legend and title."""
    handles = [method_key(name) for name in sorted(set(trained["method"]), key=method_order)]
    bounds = [(look(name), stroke) for name, stroke in BOUNDS.items() if name in set(rows["method"])]
    style.legend(figure, [*handles, *(style.key(name.label, name.color, line=stroke) for name, stroke in bounds)])
    facts = trained.iloc[0]
    removed = f"{facts['sparsity_pct']} % of {facts['units']} removed, {facts['criterion']}, {facts['policy']}"
    style.title(figure, heading, [model, removed, style.counted(facts)])


def predictor_quality(tables: Tables, model: str) -> Drawing:
    """Recall of kept units by layer at the middle sparsity, and against sparsity; a row for each kind of unit."""
    rows = select.first_of(select.ranked(tables, model, metric="recall"), "calibration", "criterion", "policy")
    rows = select.best_predictors(select.trained_alike(tables, model, rows), low_is_good=False)
    if set(rows["method"]) <= {"static"}:
        return "no ranking quality of a predictor in the tables"
    kinds = sorted(set(rows["kind"]), key=select.units_order)
    sparsities = sorted(set(rows["sparsity_pct"]))
    half = select.middle(sparsities)
    figure, axes = style.panels(2 * len(kinds), columns=2, height=2.5)
    for kind, (layers, means) in zip(kinds, np.reshape(axes, (-1, 2)), strict=True):
        here = where(rows, kind=kind)
        layers.axhline(1 - half / 100, color=GREY, linestyle=":", linewidth=1.2)
        means.plot(sparsities, [1 - pct / 100 for pct in sparsities], color=GREY, linestyle=":", linewidth=1.2)
        _recall(layers, where(here, sparsity_pct=half), "layer", 1 - half / 100)
        _recall(means, here, "sparsity_pct", 1 - sparsities[-1] / 100)
        layers.set(title=f"{kind}, {half:g} % removed", xlabel="layer", ylabel="recall of kept units")
        means.set(title=f"{kind}, mean over layers", xlabel="units removed (%)")
    facts = rows.iloc[0]
    place = [model, facts["criterion"], style.counted(facts, "held-out tokens")]
    style.title(figure, "Recall of the units worth keeping, by predictor", place)
    return figure


def _recall(axes: Axes, rows: pd.DataFrame, x: str, guess: float) -> None:
    """A line of each method's mean recall against column `x`; guess: the value of units kept at random, at the end."""
    ends = [(rows[x].max(), guess, "kept at random", GREY)]
    for line in lines(rows):
        mean = line.rows.groupby(x)["value"].mean()
        axes.plot(mean.index, mean, markersize=3 if x == "layer" else None, **line.style())
        ends.append(line.end(mean.index.to_series(), mean))
    axes.margins(x=0.04)
    style.whole_ticks(axes)
    style.end_labels(axes, ends)
