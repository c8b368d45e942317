"""Decoders of published sizes under other settings: several sequences at once, and longer contexts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadowcore.report.figures.scaling import DENSE, fastest_dense, timed
from shadowcore.report.figures.series import where
from shadowcore.report.style import Figure, empty, key, legend, look, panels, styled, title

SHADES = ("#A6CEE3", "#56B4E9", "#0072B2", "#003B5C")  # of rising sparsity
LENGTHS = ["device", "model", "prompt_tokens", "new_tokens"]


@styled
def batches(tables, _: str) -> Figure:
    """How much several sequences at once still gain, and the sparsity at which skipping begins to pay."""
    rows = timed(tables)
    rows = rows[rows.groupby("model")["batch"].transform("nunique") > 1]
    rows = rows.merge(rows.loc[rows["main"], LENGTHS].drop_duplicates())
    if rows.empty:
        return empty("no model was timed with several sequences")
    models = sorted(set(rows["model"]))
    figure, axes = panels(len(models) + 1, size=(3.8, 3.2))
    handles = [key("as fast as dense", "#666666", line="--")]
    for panel, model in zip(axes, models, strict=False):
        gains = gains_of(where(rows, model=model), "batch")
        for color, (pct, line) in zip(SHADES, gains.groupby("sparsity_pct"), strict=False):
            panel.plot(line["batch"], line["gain"], color=color, marker="o")
            handles.append(key(f"shadow, {pct:g} % removed for each sequence", color, "o"))
        panel.axhline(1, color="#666666", linestyle="--", linewidth=0.9)
        _powers(panel, gains["batch"])
        panel.set(title=model, ylabel="times faster than the fastest dense", ylim=(0, None))
    for marker, model in zip("osD^v", models, strict=False):
        points = break_even(gains_of(where(rows, model=model), "batch"))
        axes[-1].plot(points.index, points, color=look("shadow").color, marker=marker)
        handles.append(key(f"break-even, {model}", look("shadow").color, marker))
    _powers(axes[-1], rows["batch"])
    axes[-1].set(title="break-even", ylabel="heads and neurons to remove, at most (%)", ylim=(0, 100))
    legend(figure, handles)
    title(figure, "Several sequences at once: what any of them keeps is read", _facts(rows))
    return figure


@styled
def contexts(tables, _: str) -> Figure:
    """Time per token against the length of the context: keys and values of all heads are read by kept heads only."""
    rows = timed(tables)
    rows = rows[(rows["batch"] == 1) & (rows["new_tokens"] == rows["new_tokens"].mode().iloc[0])]
    rows = rows[rows.groupby("model")["prompt_tokens"].transform("nunique") > 1]
    if rows.empty:
        return empty("no model was timed with several lengths of the context")
    models = sorted(set(rows["model"]))
    figure, axes = panels(len(models), size=(4.2, 3.2))
    handles = []
    for panel, model in zip(axes, models, strict=True):
        lines = where(rows, model=model).sort_values("prompt_tokens")
        for mode, pct in (("dense", 0), ("static", 50), ("shadow", 50)):
            line = _narrowest(where(lines, mode=mode, sparsity_pct=pct))
            style = look(mode)
            label = style.label if pct == 0 else f"{style.label}, {pct} %"
            panel.plot(line["prompt_tokens"], line["ms_per_token"], color=style.color, marker=style.marker or ".")
            panel.plot(line["prompt_tokens"], line["roof_ms"], color=style.color, linestyle=":")
            handles.append(key(label, style.color, style.marker or "."))
        panel.set(title=model, xlabel="tokens in the cache", ylabel="ms per token", ylim=(0, None))
    handles.append(key("its bytes at the memory's limit", "#666666", line=":"))
    legend(figure, handles)
    title(figure, "Longer contexts", _facts(rows))
    return figure


def gains_of(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """How many times faster than the fastest dense decoder the first predictor's mode is, per `by` and sparsity."""
    found = []
    for value, alike in rows.groupby(by):
        if alike["mode"].isin(DENSE).any():
            dense = fastest_dense(alike)["ms_per_token"]
            lines = _narrowest(where(alike, mode="shadow"))
            found += [
                {by: value, "sparsity_pct": row.sparsity_pct, "gain": dense / row.ms_per_token}
                for row in lines.itertuples()
            ]
    return pd.DataFrame(found)


def break_even(gains: pd.DataFrame) -> pd.Series:
    """Per batch the sparsity (%) from which on skipping is faster than dense, between measured ones on a line.

    The lowest measured one where all are faster; NaN where none is.
    """

    def crossing(line: pd.DataFrame) -> float:
        line = line.sort_values("sparsity_pct")
        pct, gain = line["sparsity_pct"].to_numpy(float), line["gain"].to_numpy()
        slower = np.flatnonzero(gain < 1)
        if not len(slower):
            return pct[0]
        last = slower[-1]
        if last + 1 == len(pct):
            return np.nan
        return pct[last] + (pct[last + 1] - pct[last]) * (1 - gain[last]) / (gain[last + 1] - gain[last])

    return gains.groupby("batch")[["sparsity_pct", "gain"]].apply(crossing)


def _narrowest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of predictors the smallest one of 16 bits, which is timed under every setting."""
    if rows["predictor_rank"].isna().all():
        return rows
    rows = rows[rows["predictor_bits"] == 16]
    return rows[rows["predictor_rank"] == rows["predictor_rank"].min()].sort_values("sparsity_pct")


def _powers(panel, batches: pd.Series) -> None:
    values = sorted(set(batches))
    panel.set_xscale("log", base=2)
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.set_xlabel("sequences")


def _facts(rows: pd.DataFrame) -> list[str]:
    rank = rows["predictor_rank"].min()
    return [rows["device"].iloc[0], rows["dtype"].iloc[0], "random weights", f"predictor of rank {rank:g}"]
