"""Predictors against each other: what each reaches, what a small one costs, and what more training text gains."""

from __future__ import annotations

import pandas as pd

from shadowcore.report.figures.lines import (
    INTERVAL,
    dots,
    first_of,
    intervals,
    main_condition,
    method_order,
    middle,
    of_model,
    ranked,
    text_perplexities,
    where,
)
from shadowcore.report.style import (
    GREY,
    Axes,
    Drawing,
    end_labels,
    key,
    legend,
    log_axis,
    look,
    named_rows,
    panels,
    styled,
    title,
)
from shadowcore.report.tables import Tables

PREDICTOR = ["method", "criterion", "predictor"]
ALIKE = ["method", "criterion", "groups", "rank", "bits", "block", "epochs"]
BOUNDS = ("dense", "oracle", "static")
MOST = 18  # rows of `designs`
SMALLEST = 3  # predictors from which on a figure compares them


@styled
def designs(tables: Tables, model: str) -> Drawing:
    """Every predictor at the middle sparsity, by the number of predictors in the model: perplexity and recall."""
    rows, trained, recall = _evaluated(tables, model)
    if trained["groups"].nunique() < 2 or len(trained) < SMALLEST:
        return f"fewer than {SMALLEST} predictors, or all with the same number in the model"
    trained = trained.sort_values("value").head(MOST).sort_values(["groups", "value"], kind="stable")
    names = [f"{row.predictor} ({_count(row.groups)})" for row in trained.itertuples()]
    figure, axes = panels(2, height=0.2 * len(names) + 0.8, sharey=True)
    trained = trained.assign(place=range(len(trained)))
    recall = recall.merge(trained[[*PREDICTOR, "place"]], on=PREDICTOR, how="left")
    for panel, (name, found) in zip(axes, (("token perplexity", rows), ("recall of kept units", recall)), strict=True):
        points = trained if name == "token perplexity" else recall.dropna(subset="place")
        for method, part in points.groupby("method"):
            style = look(method)
            if name == "token perplexity":
                dots(panel, part["place"], part, color=style.color, marker=style.marker)
            else:
                panel.plot(part["value"], part["place"], color=style.color, marker=style.marker, linestyle="")
        _bounds(panel, found)
        named_rows(panel, names)
        for number in range(1, len(names)):
            if trained["groups"].iloc[number] != trained["groups"].iloc[number - 1]:
                panel.axhline(number - 0.5, color=GREY, linewidth=0.5)
        panel.set_xlabel(name)
        panel.label_outer()
    log_axis(axes[0], "x")
    methods = sorted(set(trained["method"]), key=method_order)
    handles = [key(look(name).label, look(name).color, look(name).marker, "") for name in methods]
    legend(figure, [*handles, *_bound_keys(rows)])
    title(figure, "Perplexity and recall by number of predictors in the model", [model, *_facts(trained)])
    return figure


@styled
def sizes(tables: Tables, model: str) -> Drawing:
    """Perplexity at the middle sparsity against the bytes of its predictor that a token reads."""
    rows, trained, _ = _evaluated(tables, model)
    shapes = trained[["groups", "rank", "bits", "block"]].drop_duplicates()
    if len(shapes) < SMALLEST:
        return f"fewer than {SMALLEST} sizes of predictors"
    # of predictors of one size the best
    best = trained.sort_values("value", kind="stable").drop_duplicates(["method", *shapes])
    figure, (axes,) = panels(1, height=3.4)
    for number, row in enumerate(best.sort_values("step_bytes").itertuples()):
        style = look(row.method)
        axes.plot(row.step_bytes / 1e6, row.value, color=style.color, marker=style.marker)
        words = [
            f"rank {row.rank:g}",
            f"{row.bits:g} bits" * (row.bits != 16),
            f"blocks of {row.block:g}" * (row.block > 1),
        ]
        axes.annotate(
            ", ".join(filter(None, words)), (row.step_bytes / 1e6, row.value), xytext=(5, -10 if number % 2 else 3),
            textcoords="offset points", color=style.color, fontsize=8,
        )  # fmt: skip
    _bounds(axes, rows, horizontal=True)
    axes.set(xlabel="predictor weights read per token (MB)", ylabel="token perplexity", xscale="log")
    axes.margins(x=0.15)
    log_axis(axes)
    log_axis(axes, "x")
    methods = sorted(set(best["method"]), key=method_order)
    handles = [key(look(name).label, look(name).color, look(name).marker, "") for name in methods]
    legend(figure, [*handles, *_bound_keys(rows)])
    title(figure, "Perplexity against the size of the predictor", [model, *_facts(trained)])
    return figure


@styled
def learning_curves(tables: Tables, model: str) -> Drawing:
    """Perplexity at the middle sparsity against the training tokens of predictors that are otherwise alike."""
    rows, trained, _ = _evaluated(tables, model)
    trained = trained[(trained["rounds"] == 0) & ~trained["tuned"].astype(bool)]
    trained = trained[trained.groupby(ALIKE)["tokens"].transform("nunique") > 1].sort_values("tokens")
    if trained.empty:
        return "no predictors that differ only in their number of training tokens"
    figure, (axes,) = panels(1, height=3.4)
    ends = []
    for (method, _, groups, rank, *_), line in trained.groupby(ALIKE):
        style = look(method)
        intervals(axes, line["tokens"], line, INTERVAL, color=style.color, marker=style.marker)
        ends.append((*line[["tokens", "value"]].iloc[-1], f"{_count(groups)}, rank {rank:g}", style.color))
    _bounds(axes, rows, horizontal=True)
    axes.set(xlabel="training tokens", ylabel="token perplexity", xscale="log")
    log_axis(axes)
    end_labels(axes, ends)
    legend(figure, _bound_keys(rows))
    title(figure, "Perplexity against the number of training tokens", [model, *_facts(trained)])
    return figure


def _evaluated(tables: Tables, model: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """At the middle sparsity of the main condition: all perplexities, those of predictors with shape, recalls."""
    rows = first_of(main_condition(text_perplexities(tables, model)), "data")
    trained = rows[rows["predictor"].notna()]
    if len(trained):
        pct = middle(trained["sparsity_pct"])
        rows = rows[rows["sparsity_pct"].isin([0, pct])]
        trained = where(trained, sparsity_pct=pct)
    kinds = ["heads", "neurons"] if "both" in set(trained["units"]) else sorted(set(trained["units"]))
    shapes = of_model(tables, "predictors", model)
    shapes = shapes[shapes["kind"].isin(kinds)].sort_values("kind")
    # heads first: rank, bits and block shown are those of the last kind, the bytes of all
    shapes = shapes.groupby(PREDICTOR, as_index=False).agg(
        dict.fromkeys([*ALIKE[2:], "rounds", "tuned", "tokens"], "last") | {"step_bytes": "sum"}
    )  # fmt: skip
    trained = trained.merge(shapes, on=PREDICTOR)
    recall = ranked(tables, model, metric="recall")
    recall = recall[recall["kind"].isin(kinds) & recall["sparsity_pct"].isin(trained["sparsity_pct"])]
    recall = first_of(recall, "calibration", "criterion", "policy")
    recall = recall.groupby(PREDICTOR, dropna=False, as_index=False)["value"].mean()  # over layers
    return rows, trained, recall


def _count(groups: float) -> str:
    return "1 predictor" if groups == 1 else f"{groups:g} predictors"


def _bounds(axes: Axes, rows: pd.DataFrame, horizontal: bool = False) -> None:
    """Lines at the values of dense, oracle and static."""
    for name, style in _bound_styles(rows).items():
        for value in where(rows, method=name)["value"]:
            (axes.axhline if horizontal else axes.axvline)(value, **style)


def _bound_styles(rows: pd.DataFrame) -> dict[str, dict]:
    strokes = dict(zip(BOUNDS, ("-", ":", "--"), strict=True))
    return {
        name: {"color": look(name).color, "linestyle": strokes[name], "linewidth": 1.2}
        for name in BOUNDS if name in set(rows["method"])
    }  # fmt: skip


def _bound_keys(rows: pd.DataFrame) -> list:
    styles = _bound_styles(rows).items()
    return [key(look(name).label, style["color"], line=style["linestyle"]) for name, style in styles]


def _facts(trained: pd.DataFrame) -> list[str]:
    facts = trained.iloc[0]
    removed = f"{facts['sparsity_pct']} % of {facts['units']} removed, {facts['criterion']}, {facts['policy']}"
    return [removed, f"{facts['data']}: {facts['n']:,} windows"]
