"""From one predictor to one per layer, on traces of the dense model and of the sparse one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report.figures.series import first_of, of_model, ranked, where
from shadowcore.report.style import (
    ROUNDS,
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
)
from shadowcore.report.tables import Tables

IDENTITY = ["method", "criterion", "predictor"]
TRAINING = ["rounds", "tuned"]
BOUNDS = ("static", "oracle")


@styled
def designs(tables: Tables, model: str) -> Figure:
    """Perplexity, and recall of the kept units, against the number of predictors; a line per round of training."""
    chosen = ("calibration", "seed", "criterion")
    sizes = of_model(tables, "predictors", model)[[*IDENTITY, "groups", *TRAINING]]
    sizes = sizes.drop_duplicates()
    rows = where(of_model(tables, "perplexity", model), metric="token_perplexity")
    rows = first_of(rows, "data", "protocol", "units", "policy", *chosen)
    trained = rows.merge(sizes, on=IDENTITY)
    if trained.empty:
        return empty(f"{model}: no trained predictor was evaluated in the tables")
    kind = "heads" if trained["units"].iloc[0] == "heads" else "neurons"
    recall = first_of(ranked(tables, model, metric="recall", kind=kind), *chosen, "policy")
    keys = [*IDENTITY, "sparsity_pct"]
    recall = recall.groupby(keys, dropna=False, as_index=False)["value"].mean()  # over layers
    recall = recall.merge(trained[["method", "predictor", "groups", *TRAINING]].drop_duplicates(), how="left")
    sparsities = sorted(set(trained["sparsity_pct"]))
    rounds = sorted(set(training_of(trained)))
    colors = {training: ROUNDS[number % len(ROUNDS)] for number, training in enumerate(rounds)}
    figure, axes = panels(2 * len(sparsities), columns=len(sparsities), size=(3.1, 2.5), sharex=True, sharey="row")
    handles = [key(_told(*training), color) for training, color in colors.items()]
    for row, (name, found) in zip(
        np.reshape(axes, (2, -1)), (("token perplexity", rows), ("recall of kept units", recall)), strict=True
    ):
        points = trained if name == "token perplexity" else recall
        for panel, pct in zip(row, sparsities, strict=True):
            for _, bound in where(found[found["method"].isin(BOUNDS)], sparsity_pct=pct).iterrows():
                style = look(bound["method"])
                panel.axhline(bound["value"], color=style.color, linestyle="--", linewidth=1.2)
                handles.append(key(style.label, style.color, line="--"))
            here = points[(points["sparsity_pct"] == pct) & points["groups"].notna()]
            handles += _lines(panel, here, colors, best=min if name == "token perplexity" else max)
            panel.set(title=f"{pct} % removed", xlabel="predictors in the model", ylabel=name)
            panel.set_xscale("log")
            counts = sorted(set(trained["groups"]))
            panel.set_xticks(counts, [f"{count:g}" for count in counts], minor=False)
            panel.set_xticks([], minor=True)
            if name == "token perplexity":
                log_axis(panel)
            panel.label_outer()
    legend(figure, handles)
    facts = trained.iloc[0]
    place = f"{facts['data']}: {facts['n']:,} windows"
    removed = f"{facts['units']} by {facts['criterion']}, {facts['policy']}"
    title(figure, "From one predictor to one per layer, and rounds on the sparse model", [model, place, removed])
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, colors: dict[tuple[int, bool], str], best) -> list[Line2D]:
    """A point per predictor, the best ones of a round joined; returns the entries of its methods."""
    for training, color in colors.items():
        same = rows[[one == training for one in training_of(rows)]]
        line = same.groupby("groups")["value"].agg(best)
        axes.plot(line.index, line, color=color, linewidth=1)
        for _, row in same.iterrows():
            axes.plot(row["groups"], row["value"], color=color, marker=look(row["method"]).marker, linestyle="")
    return [key(look(name).label, "#444444", look(name).marker, "") for name in sorted(set(rows["method"]))]


def training_of(rows: pd.DataFrame) -> list[tuple[int, bool]]:
    """How the predictor of each row was trained on the sparse model: rounds, and whether it was tuned."""
    return [(int(rounds), bool(tuned)) for rounds, tuned in zip(rows["rounds"], rows["tuned"], strict=True)]


def _told(rounds: int, tuned: bool) -> str:
    parts = [f"on-policy round {rounds}"] if rounds else []
    return " and ".join([*parts, *(["tuned"] if tuned else [])]) or "traces of the dense model"
