"""Time per token against sparsity, and what it costs in perplexity."""

from typing import NamedTuple

import pandas as pd

from shadowcore.report import select, style
from shadowcore.report.figures.lines import INTERVAL, curves, intervals, lines, method_key
from shadowcore.report.looks import look
from shadowcore.report.select import where
from shadowcore.report.style import Axes, Drawing
from shadowcore.report.tables import Tables

TIMES = ("ms_per_token", "ms_p10", "ms_p90")
DENSE = ("dense", "huggingface")
SETTING = ["device", "threads", "backend", "weights", "dtype", "batch", "prompt_tokens", "new_tokens"]
PLACE = ["method", "units", "sparsity_pct"]
MOST_SETTINGS = 6


class Setting(NamedTuple):
    """One panel: what was timed, the sparse modes of one kind of unit, and the fastest dense mode (a row or none)."""

    name: str
    units: str | None
    sparse: pd.DataFrame
    dense: pd.DataFrame


def latency(tables: Tables, model: str) -> Drawing:
    """Milliseconds per token with the 10th to 90th percentile of repeats, and the fastest dense decoder."""
    rows = select.of_model(tables, "latency", model).rename(columns={"mode": "method"})
    settings = [setting for setting in _settings(rows) if len(setting.sparse)]
    if not settings:
        return "no decoding time of a sparse model in the tables"
    figure, axes = style.panels(len(settings), height=3.0)
    for panel, setting in zip(axes, settings, strict=True):
        ends = curves(panel, setting.sparse, "sparsity_pct", TIMES)
        for _, row in setting.dense.iterrows():
            style.level(panel, *row[list(TIMES)])
            ends.append((ends[-1][0], row["ms_per_token"], _fastest(row["method"]), look("dense").color))
        panel.set_ylim(0, _reach(pd.concat([setting.dense, setting.sparse])))
        panel.margins(x=0.06)
        units = "heads and neurons" if setting.units == "both" else setting.units or "units"
        panel.set(title=setting.name, xlabel=f"{units} removed per layer (%)", ylabel="ms per token")
        style.whole_ticks(panel)
        style.end_labels(panel, ends)
    heading = "Time per token: median and 10th to 90th percentile of repeats"
    style.title(figure, heading, [model, *_lengths(rows)])
    return figure


def pareto(tables: Tables, model: str) -> Drawing:
    """Perplexity, log scale, against milliseconds per token: what a method gains and what it costs."""
    timed = select.of_model(tables, "latency", model).rename(columns={"mode": "method"})
    scored = select.first_of(select.text_perplexities(tables, model), "data", "calibration")
    dense = where(scored, method="dense")
    scored = select.best_predictors(_as_decoded(scored), low_is_good=True)
    settings = [(one, scored.merge(one.sparse[[*PLACE, *TIMES]], on=PLACE)) for one in _settings(timed)]
    settings = [(setting, points) for setting, points in settings if len(points)]
    if not settings:
        return "no condition has both a perplexity and a decoding time"
    figure, axes = style.panels(len(settings), height=3.6)
    handles, black = [], look("dense").color
    for panel, (setting, points) in zip(axes, settings, strict=True):
        for line in lines(points):
            _tradeoff(panel, line.rows, line.style())
            handles.append(method_key(line.method, "-"))
        for _, row in setting.dense.merge(dense, how="cross").iterrows():
            panel.axhline(row["value"], color=black, linewidth=0.8, linestyle=":")
            panel.axvline(row["ms_per_token"], color=black, linewidth=0.8, linestyle=":")
            panel.plot(row["ms_per_token"], row["value"], color=black, marker="*", markersize=10)
            handles.append(style.key(_fastest(row["method_x"]), black, "*", ":"))
        panel.margins(0.12)
        times = pd.concat([setting.dense, points])
        panel.set_xlim(0.85 * times["ms_per_token"].min(), _reach(times))
        style.log_axis(panel, "token perplexity")
        panel.set(title=f"{setting.name}, {setting.units}", xlabel="ms per token")
    style.legend(figure, handles)
    place = f"{scored['data'].iloc[0]}, {scored['criterion'].dropna().iloc[0]}, labels: % removed"
    style.title(figure, "Perplexity against time per token", [model, place, *_lengths(timed)])
    return figure


def _as_decoded(rows: pd.DataFrame) -> pd.DataFrame:
    """Conditions as the decoder runs them: units kept per layer, a mask for each token, the main criterion."""
    rows = where(rows[rows["protocol"].isna() | (rows["protocol"] == "token")], policy="per_layer")
    rows = rows[~rows["method"].isin(["dense", "random"])]
    return select.first_of(rows[rows["criterion"].notna()], "criterion")


def _reach(rows: pd.DataFrame) -> float:
    """The end of an axis of times: all medians, and intervals unless a repeat was far slower than the others."""
    return 1.08 * min(rows[["ms_per_token", "ms_p90"]].max(axis=None), 1.4 * rows["ms_per_token"].max())


def _tradeoff(axes: Axes, rows: pd.DataFrame, drawn: dict[str, str]) -> None:
    """The points of one method joined by rising sparsity, each labelled with it."""
    value, low, high = (rows[name] for name in TIMES)
    axes.hlines(rows["value"], low.fillna(value), high.fillna(value), color=drawn["color"], linewidth=1)
    intervals(axes, value, rows, INTERVAL, **drawn)
    for _, row in rows.iterrows():
        axes.annotate(
            f"{row['sparsity_pct']:g}", (row["ms_per_token"], row["value"]), xytext=(5, 3),
            textcoords="offset points", color=drawn["color"], fontsize=8, bbox=style.HALO,
        )  # fmt: skip


def _settings(rows: pd.DataFrame) -> list[Setting]:
    """One setting per machine, format, batch and kind of unit; of predictors the smallest, in the most bits."""
    settings = []
    for values, group in rows.groupby(SETTING, dropna=False):
        timed = dict(zip(SETTING, values, strict=True))
        threads = "" if pd.isna(timed["threads"]) else f", {timed['threads']:g} threads"
        name = f"{timed['device']}{threads}\n{timed['backend']}, {timed['dtype']}, batch {timed['batch']}"
        if timed["weights"] != "pretrained":
            name += f", {timed['weights']} weights"
        dense = group["method"].isin(DENSE)
        sparse = group[~dense].sort_values(
            ["predictor_rank", "predictor_bits"], ascending=[True, False], kind="stable"
        )  # fmt: skip
        sparse = sparse.drop_duplicates(PLACE)
        for units in sorted(set(sparse["units"].dropna()), key=select.units_order) or [None]:
            of_units = where(sparse, units=units) if units else sparse
            settings.append(Setting(name, units, of_units, group[dense].nsmallest(1, "ms_per_token")))
    return settings[:MOST_SETTINGS]


def _fastest(method: str) -> str:
    return f"dense ({'Hugging Face' if method == 'huggingface' else 'ours'})"


def _lengths(rows: pd.DataFrame) -> list[str]:
    """Tokens and repeats, when all rows share them."""
    facts = {"prompt_tokens": "prompt tokens", "new_tokens": "new tokens", "repeats": "repeats"}
    return [f"{rows[name].iloc[0]:,} {words}" for name, words in facts.items() if rows[name].nunique() == 1]
