"""Decoders of published sizes: sweeps of the batch and of the context."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from shadowcore.report import style
from shadowcore.report.figures.scaling import DENSE, timed
from shadowcore.report.looks import look
from shadowcore.report.select import where
from shadowcore.report.style import GREY, Drawing

# of rising sparsity: apart in colour, marker and lightness
LEVELS = (("#E69F00", "s"), ("#009E73", "^"), ("#0072B2", "o"), ("#882255", "v"))
MODELS = (("#000000", "D"), (GREY, "P"), ("#D55E00", "X"), ("#56B4E9", "<"))
LENGTHS = ["device", "model", "prompt_tokens", "new_tokens"]


def batches(tables, _: str) -> Drawing:
    """How much several sequences at once still gain, and the sparsity at which skipping begins to pay."""
    rows = timed(tables)
    rows = rows[rows.groupby("model")["batch"].transform("nunique") > 1]
    rows = rows.merge(rows.loc[rows["main"], LENGTHS].drop_duplicates())
    if rows.empty:
        return "no model was timed with several sequences"
    models = sorted(set(rows["model"]))
    figure, axes = style.panels(len(models) + 1, height=3.0)
    points = {}
    for panel, model in zip(axes, models, strict=False):
        gains = gains_of(where(rows, model=model))
        points[model] = break_even(gains).rename_axis("batch").reset_index(name="gain")
        ends = _levels(panel, {f"{pct:g} %": line for pct, line in gains.groupby("sparsity_pct")}, LEVELS)
        panel.axhline(1, color=GREY, linestyle="--", linewidth=0.9)
        _powers(panel, gains["batch"])
        panel.set(title=model, ylabel="times faster than the fastest dense", ylim=(0, None))
        style.end_labels(panel, [(gains["batch"].max(), 1.0, "dense", GREY), *ends])
    _levels(axes[-1], points, MODELS)
    _powers(axes[-1], rows["batch"])
    lowest = where(rows, mode="shadow")["sparsity_pct"].min()
    axes[-1].axhline(lowest, color=GREY, linestyle=":", linewidth=0.9)
    axes[-1].set(title="sparsity at which shadow breaks even", ylabel="heads and neurons removed (%)", ylim=(0, 100))
    bound = f"<= {lowest:g} %\n(lowest\nmeasured)"
    style.end_labels(axes[-1], [(axes[-1].get_xlim()[1], lowest, bound, GREY)])
    style.legend(figure, [style.key(f"right: {model}", *look) for model, look in zip(models, MODELS, strict=False)])
    heading = "Speed-up of shadow against batch size, for each share removed, and the share at which it begins to gain"
    style.title(figure, heading, _facts(rows))
    return figure


def _levels(axes, parts: Mapping[str, pd.DataFrame], looks: tuple[tuple[str, str], ...]) -> list[style.End]:
    """A line for each of at most four parts, `gain` against `batch`; returns the labels of their last points."""
    ends = []
    for (color, marker), (name, line) in zip(looks, parts.items(), strict=False):
        axes.plot(line["batch"], line["gain"], color=color, marker=marker)
        ends += [(row.batch, row.gain, name, color) for row in line.dropna().tail(1).itertuples()]
    return ends


def contexts(tables, _: str) -> Drawing:
    """Time per token against the length of the context: keys and values of all heads are read by kept heads only."""
    rows = timed(tables)
    rows = rows[(rows["batch"] == 1) & rows["new_tokens"].isin(rows["new_tokens"].mode().head(1))]
    rows = rows[rows.groupby("model")["prompt_tokens"].transform("nunique") > 1]
    if rows.empty:
        return "no model was timed with several lengths of the context"
    models = sorted(set(rows["model"]))
    figure, axes = style.panels(len(models), height=3.0)
    for panel, model in zip(axes, models, strict=True):
        shown, ends = where(rows, model=model).sort_values("prompt_tokens"), []
        for mode, pct in (("dense", 0), ("static", 50), ("shadow", 50)):
            line, drawn = _narrowest(where(shown, mode=mode, sparsity_pct=pct)), look(mode)
            if len(line):
                panel.plot(line["prompt_tokens"], line["ms_per_token"], color=drawn.color, marker=drawn.marker or ".")
                panel.plot(line["prompt_tokens"], line["roof_ms"], color=drawn.color, linestyle=":", linewidth=1)
                last = line.iloc[-1]
                label = mode if pct == 0 else f"{mode}, {pct} %"
                ends.append((last["prompt_tokens"], last["ms_per_token"], label, drawn.color))
        panel.set(title=model, xlabel="tokens in the cache", ylabel="ms per token", ylim=(0, None))
        style.end_labels(panel, ends)
    style.legend(figure, [style.key("its bytes at the memory's limit", GREY, line=":")])
    style.title(figure, "Time per token against the length of the context", _facts(rows))
    return figure


def gains_of(rows: pd.DataFrame) -> pd.DataFrame:
    """How many times faster than the fastest dense decoder the smallest predictor is, per batch and sparsity."""
    dense = rows[rows["mode"].isin(DENSE)].groupby("batch")["ms_per_token"].min()
    lines = pd.concat([_narrowest(line) for _, line in where(rows, mode="shadow").groupby("batch")])
    lines = lines.assign(gain=lines["batch"].map(dense) / lines["ms_per_token"])
    return lines[["batch", "sparsity_pct", "gain"]].dropna()


def break_even(gains: pd.DataFrame) -> pd.Series:
    """Per batch the sparsity (%), interpolated, from which on skipping is faster than dense; NaN where none is."""

    def crossing(line: pd.DataFrame) -> float:
        line = line.sort_values("sparsity_pct")
        pct, gain = line["sparsity_pct"].to_numpy(float), line["gain"].to_numpy()
        last = np.flatnonzero(gain < 1).max(initial=-1)  # the last one that is slower
        if last < 0:
            return pct[0]
        return np.interp(1, gain[last : last + 2], pct[last : last + 2]) if last + 1 < len(pct) else np.nan

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
