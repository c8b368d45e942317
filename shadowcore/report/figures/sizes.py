"""What a small predictor costs in quality, and saves in bytes: rank, bits of a weight, neurons that share a score."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report.figures.designs import TRAINING, training_of
from shadowcore.report.figures.series import first_of, of_model, ranked, where
from shadowcore.report.style import (
    ROUNDS,
    Axes,
    Figure,
    empty,
    key,
    legend,
    log_axis,
    look,
    panels,
    styled,
    title,
)
from shadowcore.report.tables import Tables

PREDICTOR = ["method", "criterion", "predictor"]
SHAPE = ["method", "groups", "bits", "block"]  # predictors that differ in rank alone are a line
BOUNDS = ("static", "oracle")


@styled
def sizes(tables: Tables, model: str) -> Figure:
    """Perplexity and recall of kept units against the bytes of its predictor that a token reads, a point each."""
    chosen = ("calibration", "criterion", "policy")
    rows = where(of_model(tables, "perplexity", model), metric="token_perplexity")
    rows = first_of(rows, "data", "protocol", "units", *chosen)
    trained = rows[rows["predictor"].notna()]
    kinds = ["heads", "neurons"] if "both" in set(trained["units"]) else sorted(set(trained["units"]))
    shapes = of_model(tables, "predictors", model)
    shapes = shapes[shapes["kind"].isin(kinds)].merge(trained[PREDICTOR].drop_duplicates())
    # heads first: rank, bits and block shown are those of the last kind, the bytes of all
    shapes = shapes.sort_values("kind").groupby(PREDICTOR, as_index=False).agg(
        dict.fromkeys(("rank", "groups", "bits", "block", "rounds", "tuned"), "last") | {"step_bytes": "sum"}
    )  # fmt: skip
    shapes = _of_one_round(shapes)
    if len(shapes[[*SHAPE[1:], "rank"]].drop_duplicates()) < 2:
        return empty(f"{model}: no predictors of several sizes were evaluated in the tables")
    recall = ranked(tables, model, metric="recall")
    recall = first_of(recall[recall["kind"].isin(kinds)], *chosen)
    recall = recall.groupby([*PREDICTOR, "sparsity_pct"], dropna=False, as_index=False)["value"].mean()
    shapes["shape"] = list(map(_told, shapes.to_dict("records")))
    names = sorted(set(shapes["shape"]))
    colors = {name: ROUNDS[number % len(ROUNDS)] for number, name in enumerate(names)}
    sparsities = sorted(set(trained["sparsity_pct"]))
    figure, axes = panels(2 * len(sparsities), columns=len(sparsities), size=(3.1, 2.6), sharex=True, sharey="row")
    handles = []
    for line, (name, found) in zip(
        np.reshape(axes, (2, -1)), (("token perplexity", rows), ("recall of kept units", recall)), strict=True
    ):
        points = shapes.merge(found, on=PREDICTOR)
        for panel, pct in zip(line, sparsities, strict=True):
            here = where(found, sparsity_pct=pct)
            for bound in (where(here, method=bound) for bound in BOUNDS):
                for _, row in first_of(bound, *chosen).iterrows():
                    style = look(row["method"])
                    panel.axhline(row["value"], color=style.color, linestyle="--", linewidth=1.2)
                    handles.append(key(style.label, style.color, line="--"))
            _lines(panel, where(points, sparsity_pct=pct), colors, ranks=name == "token perplexity")
            panel.set(title=f"{pct} % removed", xlabel="predictor read per token (MB)", ylabel=name)
            if len(points):
                panel.set_xscale("log")
            if name == "token perplexity":
                log_axis(panel)
            panel.label_outer()
    markers = [key(look(name).label, "#444444", look(name).marker, "") for name in sorted(set(shapes["method"]))]
    legend(figure, [*handles, *(key(name, color) for name, color in colors.items()), *markers])
    facts = trained.iloc[0]
    removed = f"{facts['units']} by {facts['criterion']}, {facts['policy']}"
    text = f"{facts['data']}: {facts['n']:,} windows"
    title(figure, "Small predictors: what rank (numbers), bits and blocks cost and save", [model, text, removed])
    return figure


def _of_one_round(shapes: pd.DataFrame) -> pd.DataFrame:
    """Predictors of the rounds, and tuned or not, that most names have, of several the first."""
    counts = shapes.groupby(TRAINING)["predictor"].nunique()
    return shapes[[one == counts.idxmax() for one in training_of(shapes)]] if len(counts) else shapes


def _told(shape: dict) -> str:
    parts = ["one MLP" if shape["groups"] == 1 else f"{shape['groups']:g} MLPs", f"{shape['bits']:g} bits"]
    return ", ".join([*parts, f"blocks of {shape['block']:g}"] if shape["block"] > 1 else parts)


def _lines(axes: Axes, rows: pd.DataFrame, colors: dict[str, str], ranks: bool) -> None:
    for (method, shape), line in rows.groupby(["method", "shape"]):
        line = line.sort_values("step_bytes")
        marker, color = look(method).marker, colors[shape]
        axes.plot(line["step_bytes"] / 1e6, line["value"], color=color, marker=marker)
        for _, row in line.iterrows() if ranks else ():
            axes.annotate(
                f"{row['rank']:g}", (row["step_bytes"] / 1e6, row["value"]), xytext=(3, 3), color=color,
                textcoords="offset points", fontsize=7,
            )  # fmt: skip
