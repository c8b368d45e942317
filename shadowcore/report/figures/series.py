"""Picking rows for a figure: one model's rows, its panels, and the lines in a panel with their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from shadowcore.report.style import FAINT, ORDER, Axes, Line2D, key, look
from shadowcore.report.tables import Tables
from shadowcore.schemas import CONDITION, FINAL_TABLES, MEASURED

# what can tell two lines of one method apart, beside the policy and the seed
VARIANTS = ["predictor", "calibration", "protocol", "predictor_rank"]
UNITS_ORDER = {"neurons": 0, "heads": 1, "both": 2}
MAIN_CRITERION = "plainact"  # the criterion ShadowLLM settles on: shown first, and where there is room for one
INTERVAL = ("value", "low", "high")
NAMES = {"lookahead": "lookahead (not causal)"}  # what a value says, where its own word says too little
CONTEXTUAL = ("shadow", "segments", "layerwise", "layerwise_own", "oracle")  # choose for the input, by a criterion
MOST_PRESETS = 3  # of a method, where a figure has a line for each
LINES = {"per_layer": "-", "global": "--", "floored": ":"}


# columns that differ from seed to seed, and what stands for all of them, if not the mean
MEASURED_COLUMNS = {"seed", "value", "stderr", "low", "high", "difference", "p_value", "p_holm", "seed_deviation"}
MEASURED_COLUMNS |= {"loss", "loss_constant", "best_epoch", *MEASURED}
TAKEN = {"seed": "min", "low": "min", "high": "max"}


class Series(NamedTuple):
    """One line: its method and policy, its name in the legend, and its rows by rising sparsity."""

    method: str
    policy: str | None
    label: str
    strength: float  # 1 for the first variant of a method by name, less for the next ones
    rows: pd.DataFrame

    def style(self) -> dict[str, object]:
        """How its points and lines are drawn, whatever the policy."""
        style = look(self.method)
        return {"color": style.color, "marker": style.marker, "alpha": self.strength}

    def handle(self) -> Line2D:
        """Its entry in the legend; policies have entries of their own."""
        return key(self.label, **self.style())


def of_model(tables: Tables, name: str, model: str) -> pd.DataFrame:
    """The rows of one model in a table, empty where the table is missing."""
    rows = tables[name] if name in tables else FINAL_TABLES[name].build([]).to_pandas()
    return over_seeds(rows[rows["model"] == model])


def contextual(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of criteria that some method chooses for the input by, all if there are none; `criteria` shows the rest."""
    chosen = set(rows.loc[rows["method"].isin(CONTEXTUAL), "criterion"])
    without = rows["criterion"].isna() | rows["method"].isin(["dense", "random"])
    return rows[without | rows["criterion"].isin(chosen)] if chosen else rows


def leading(rows: pd.DataFrame, low_is_good: bool) -> pd.DataFrame:
    """Rows of at most MOST_PRESETS presets of each method: those measured in most places, of them the best."""
    trained = rows[rows["predictor"].notna()]
    if trained.empty:
        return rows
    names = ("data", "task", "fewshot", "kind", "layer", "units", "criterion", "policy", "protocol", "sparsity_pct")
    place = ["method", *(name for name in names if name in rows)]
    apart = trained["value"] - trained.groupby(place, dropna=False)["value"].transform("mean")
    found = trained.assign(gain=-apart if low_is_good else apart).groupby(["method", "predictor"], as_index=False)
    found = found.agg(places=("gain", "size"), gain=("gain", "mean"))
    found = found.sort_values(["places", "gain"], ascending=False, kind="stable").groupby("method").head(MOST_PRESETS)
    shown = set(zip(found["method"], found["predictor"], strict=True))
    taken = np.array([pair in shown for pair in zip(rows["method"], rows["predictor"], strict=True)])
    return rows[rows["predictor"].isna() | taken]


def ranked(tables: Tables, model: str, **equal: object) -> pd.DataFrame:
    """Rows of one model's ranking quality that equal the given values; of constant predictors the dense model's."""
    rows = where(of_model(tables, "quality", model), **equal)
    return rows[(rows["method"] != "static") | rows["predictor"].isna()]


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for all seeds of a trained predictor: the mean of what was measured, in an interval over all theirs."""
    if not {"seed", "predictor"} <= set(rows) or rows["seed"].nunique() < 2:
        return rows
    trained = rows["predictor"].notna()
    taken = {name: TAKEN.get(name, "mean") for name in rows if name in MEASURED_COLUMNS}
    keys = [name for name in rows if name not in taken]
    joined = rows[trained].groupby(keys, dropna=False, as_index=False, sort=False).agg(taken)[list(rows)]
    return pd.concat([rows[~trained], joined], ignore_index=True)


def where(rows: pd.DataFrame, **equal: object) -> pd.DataFrame:
    """Rows whose columns equal the given values."""
    for name, value in equal.items():
        rows = rows[rows[name] == value]
    return rows


def series(rows: pd.DataFrame, among: pd.DataFrame) -> list[Series]:
    """The lines in `rows`, methods in their fixed order; labels tell what varies in `among`, the figure."""
    # a table without one of the columns has one line where others have several
    columns = [name for name in ("method", "policy", *VARIANTS, "seed") if name in rows]
    lines = []
    for values, line in rows.groupby(columns, dropna=False, sort=True):
        keys = dict(zip(columns, values, strict=True))
        alike = where(among, method=keys["method"])
        told = [name for name in VARIANTS if name in alike and varies(alike[name])]
        labels = sorted({_label(row, told) for row in alike[["method", *told]].drop_duplicates().to_dict("records")})
        label = _label(keys, told)
        strength = 0.6 ** labels.index(label)
        lines.append(Series(keys["method"], keys.get("policy"), label, strength, line.sort_values("sparsity_pct")))
    return sorted(lines, key=lambda line: method_order(line.method))


def varies(column: pd.Series) -> bool:
    """Whether lines must tell a column's values: several, or one that never goes without saying."""
    return column.nunique(dropna=False) > 1 or bool(column.isin(NAMES).any())


def _label(keys: Mapping[str, Any], told: list[str]) -> str:
    parts = [keys[name] for name in told if pd.notna(keys[name])]
    named = [NAMES.get(part, part) if isinstance(part, str) else f"rank {part:g}" for part in parts]
    return ", ".join([look(keys["method"]).label, *named])


def asked(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy rows of one metric a task, with a column `asked`: the task, its text where there are several, shots."""
    first = rows.groupby("task")["metric"].transform("min")  # by name "acc" is before "acc_norm"
    several = rows.groupby("task")["data"].transform("nunique") > 1
    names = rows["task"].where(~several, rows["task"] + ", " + rows["data"])
    shots = rows["fewshot"].fillna(0).astype(int)
    names = names.where(shots == 0, names + ", " + shots.astype(str) + "-shot")
    return rows.assign(asked=names)[rows["metric"] == first]


def mean_over_tasks(rows: pd.DataFrame, shots: bool = False) -> pd.DataFrame:
    """A condition's accuracy averaged over tasks, with the error of that mean; `shots`: for each number of examples."""
    rows = asked(rows)
    rows = rows[rows["fewshot"].notna()] if shots else rows[rows["fewshot"].fillna(0) == 0]
    if shots:  # a task without examples would be in one mean and not in another
        rows = rows[rows.groupby("task")["fewshot"].transform("nunique") == rows["fewshot"].nunique()]
    keys = [name for name in CONDITION if name != "data"] + ["fewshot"]
    averaged = ["value", "variance", "sparsity_measured"]
    rows = rows.assign(variance=rows["stderr"] ** 2, tasks=1)
    means = rows.groupby(keys, dropna=False, as_index=False)[[*averaged, "tasks"]].sum()
    means[averaged] = means[averaged].div(means["tasks"], axis=0)
    reach = 1.96 * (means["variance"] / means["tasks"]) ** 0.5
    return means.assign(low=means["value"] - reach, high=means["value"] + reach)


def first_of(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Rows that have the first value of each column named: a figure with no room for more shows that one.

    Rows without a value stay, as dense and random have none of most; random is a criterion of its own.
    """
    calibrated = set(rows["calibration"]) if "calibration" in rows else set()
    orders = ORDERS | {"data": lambda data: (data not in calibrated, data)}  # the text that was calibrated on first
    for name in names:
        if name in rows:
            always = rows[name].isna() | (rows[name] == "random")
            if not always.all():
                first = min(rows.loc[~always, name], key=orders.get(name, str))
                rows = rows[always | (rows[name] == first)]
    return rows


def method_order(method: str) -> tuple[int, str]:
    """A key to sort by: methods in the order of their looks, others after them by name."""
    return ORDER.get(method, len(ORDER)), method


def units_order(units: str | None) -> int:
    """A key to sort by: neurons, heads, both."""
    return UNITS_ORDER.get(units, len(UNITS_ORDER))


def criterion_order(criterion: str) -> tuple[bool, str]:
    """A key to sort by: the main criterion first, others by name."""
    return criterion != MAIN_CRITERION, criterion


def intervals(axes: Axes, x: pd.Series, rows: pd.DataFrame, columns: tuple[str, str, str], **style: object) -> None:
    """Points joined by a line, each with a bar over its interval; `columns` name the value, low and high."""
    value, low, high = (rows[name] for name in columns)
    # no interval, no bar
    reach = np.stack([(value - low).fillna(0), (high - value).fillna(0)]).clip(0)
    axes.errorbar(x, value, yerr=reach, elinewidth=1, capsize=2, **style)


def level(axes: Axes, value: float, low: float, high: float) -> None:
    """The dense model: a horizontal line with its interval as a band."""
    if pd.notna(low):
        axes.axhspan(low, high, color=FAINT, alpha=0.6, linewidth=0, zorder=0)
    axes.axhline(value, color=look("dense").color, linewidth=1.2)


# keys to sort by, of columns that have an order
ORDERS = {
    "units": units_order,
    "kind": units_order,
    "criterion": criterion_order,
    "method": method_order,
    "policy": lambda policy: (policy != "per_layer", policy),
    "protocol": lambda protocol: (protocol != "token", protocol),
}
