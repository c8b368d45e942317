"""Time per token against sparsity, and what it costs in perplexity."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from shadowcore.report.figures.series import (
    INTERVAL,
    Series,
    criterion_order,
    intervals,
    level,
    of_model,
    series,
    units_order,
    where,
)
from shadowcore.report.style import (
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
    whole_ticks,
)
from shadowcore.report.tables import Tables

TIMES = ("ms_per_token", "ms_p10", "ms_p90")
DENSE = ("dense", "huggingface")
HALO = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5}  # behind labels that cross lines
SETTING = ["device", "threads", "backend", "weights", "dtype", "batch", "prompt_tokens", "new_tokens"]


class Setting(NamedTuple):
    """One panel: what was timed, the sparse modes of one kind of unit, and the fastest dense mode (a row or none)."""

    name: str
    units: str | None
    sparse: pd.DataFrame
    dense: pd.DataFrame


@styled
def latency(tables: Tables, model: str) -> Figure:
    """Milliseconds per token with the 10th to 90th percentile of repeats, over the fastest dense decoder."""
    rows = of_model(tables, "latency", model).rename(columns={"mode": "method"})
    if rows.empty:
        return empty(f"{model}: no latencies in the tables")
    settings = _settings(rows)
    figure, axes = panels(len(settings), size=(4.4, 3.2))
    handles = []
    for panel, setting in zip(axes, settings, strict=True):
        for _, row in setting.dense.iterrows():
            level(panel, *row[list(TIMES)])
            handles.append(_fastest(row["method"]))
        for line in series(setting.sparse, among=rows):
            intervals(panel, line.rows["sparsity_pct"], line.rows, TIMES, **line.style())
            handles.append(line.handle())
        panel.set_ylim(0, 1.08 * pd.concat([setting.dense, setting.sparse])[["ms_per_token", "ms_p90"]].max(axis=None))
        panel.set(title=setting.name, xlabel=_removed(setting.units), ylabel="ms per token")
        whole_ticks(panel)
    legend(figure, handles)
    heading = "Time per token: median and 10th to 90th percentile"
    title(figure, heading, [model, *_lengths(rows)])
    return figure


@styled
def pareto(tables: Tables, model: str) -> Figure:
    """Perplexity, log scale, against milliseconds per token: what a method gains and what it costs."""
    timed = of_model(tables, "latency", model).rename(columns={"mode": "method"})
    scored = of_model(tables, "perplexity", model)
    dense, scored = where(scored, method="dense"), _as_decoded(scored)
    joined = scored.merge(timed, on=["method", "units", "sparsity_pct"])
    if joined.empty:
        return empty(f"{model}: no condition has both a perplexity and a latency in the tables")
    # the settings that have something to show, a panel each, for every text
    settings = [s for s in _settings(timed) if len(_points(s, scored))]
    keys = [(setting, data) for setting in settings for data in sorted(set(_points(setting, scored)["data"]))]
    figure, axes = panels(len(keys), size=(4.4, 3.6))
    handles = []
    for panel, (setting, data) in zip(axes, keys, strict=True):
        for line in series(where(_points(setting, scored), data=data), among=joined):
            _tradeoff(panel, line)
            handles.append(line.handle())
        for _, row in setting.dense.merge(where(dense, data=data), how="cross").iterrows():
            panel.axhline(row["value"], color=look("dense").color, linewidth=0.8, linestyle=":")
            panel.axvline(row["ms_per_token"], color=look("dense").color, linewidth=0.8, linestyle=":")
            panel.plot(row["ms_per_token"], row["value"], color=look("dense").color, marker="*", markersize=10)
            handles.append(_fastest(row["method_x"], marker="*", line=":"))
        panel.margins(0.12)
        log_axis(panel)
        panel.set(title=f"{setting.name}, {setting.units}, {data}", xlabel="ms per token", ylabel="token perplexity")
    legend(figure, handles)
    criterion = scored["criterion"].iloc[0]
    heading = f"Perplexity against time per token at rising sparsity ({criterion})"
    title(figure, heading, [model, *_lengths(timed)])
    return figure


def _as_decoded(rows: pd.DataFrame) -> pd.DataFrame:
    """Conditions as the decoder runs them: units kept per layer, a mask for each token, one criterion."""
    rows = where(rows[rows["protocol"].isna() | (rows["protocol"] == "token")], policy="per_layer")
    criteria = set(rows.loc[~rows["method"].isin(["dense", "random"]), "criterion"].dropna())
    return where(rows, criterion=min(criteria, key=criterion_order)) if criteria else rows.iloc[:0]


def _points(setting: Setting, scored: pd.DataFrame) -> pd.DataFrame:
    times = setting.sparse[["method", "units", "sparsity_pct", "predictor_rank", *TIMES]]
    return scored.merge(times, on=["method", "units", "sparsity_pct"])


def _tradeoff(axes: Axes, line: Series) -> None:
    """The points of one method joined by rising sparsity, each labelled with it."""
    color = look(line.method).color
    value, low, high = (line.rows[name] for name in TIMES)
    axes.hlines(
        line.rows["value"], low.fillna(value), high.fillna(value), color=color, alpha=line.strength, linewidth=1
    )
    intervals(axes, value, line.rows, INTERVAL, **line.style())
    for _, row in line.rows.iterrows():
        axes.annotate(
            f"{row['sparsity_pct']:g} %", (row["ms_per_token"], row["value"]), xytext=(6, 3),
            textcoords="offset points", color=color, fontsize=8, bbox=HALO,
        )  # fmt: skip


def _settings(rows: pd.DataFrame) -> list[Setting]:
    """One setting per machine, number format, batch and kind of unit."""
    settings = []
    for values, group in rows.groupby(SETTING, dropna=False):
        timed = dict(zip(SETTING, values, strict=True))
        threads = "" if pd.isna(timed["threads"]) else f", {timed['threads']:g} threads"
        name = f"{timed['device']}{threads}\n{timed['backend']}, {timed['dtype']}, batch {timed['batch']}"
        if timed["weights"] != "pretrained":
            name += f", {timed['weights']} weights"
        dense = group["method"].isin(DENSE)
        fastest, sparse = group[dense].nsmallest(1, "ms_per_token"), group[~dense]
        for units in sorted(set(sparse["units"].dropna()), key=units_order) or [None]:
            settings.append(Setting(name, units, where(sparse, units=units) if units else sparse, fastest))
    return settings


def _fastest(method: str, marker: str = "", line: str = "-") -> Line2D:
    whose = "Hugging Face" if method == "huggingface" else "our decoder"
    return key(f"fastest dense ({whose})", look("dense").color, marker, line)


def _removed(units: str | None) -> str:
    return f"{units or 'units'} removed per layer (%)" if units != "both" else "heads and neurons removed per layer (%)"


def _lengths(rows: pd.DataFrame) -> list[str]:
    """Tokens and repeats, when all rows share them."""
    facts = {"prompt_tokens": "prompt tokens", "new_tokens": "new tokens", "repeats": "repeats"}
    return [f"{rows[name].iloc[0]:,} {words}" for name, words in facts.items() if rows[name].nunique() == 1]
