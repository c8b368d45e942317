"""Choosing rows of the final tables: one model's, the main condition, the best predictor of each method.

Without matplotlib, because the terminal and the page choose rows, too.
"""

import math
from collections.abc import Iterable

import pandas as pd

from shadowcore.measure.statistics import interval
from shadowcore.report.looks import METHODS, method_order
from shadowcore.report.outcomes import main_calibration
from shadowcore.report.tables import Tables
from shadowcore.schemas import CONDITION, FINAL_TABLES, MEASURED

UNITS_ORDER = {"neurons": 0, "heads": 1, "both": 2}
MAIN_CRITERION = "plainact"  # ShadowLLM's criterion: shown first, and where there is room for one
NAMES = {"lookahead": "lookahead (not causal)"}  # longer names of values that are not clear alone
# methods that select by a criterion for each input
CONTEXTUAL = ("shadow", "segments", "layerwise", "layerwise_own", "dejavu", "oracle")
MOST_LINES = 7  # in a panel
# methods that are drawn where there are more than MOST_LINES, those that a user has added before them
FIRST = ("dense", "static", "oracle", "shadow", "layerwise", "segments", "threshold")
PAIR = ["method", "predictor"]
# a figure with room for one condition shows the first value of each of these
PLACE = ("calibration", "protocol", "units", "policy", "criterion")
# columns that differ between seeds; how they are joined, if not by their mean
MEASURED_COLUMNS = {"seed", "value", "stderr", "low", "high", "difference", "p_value", "p_holm", "seed_deviation"}
MEASURED_COLUMNS |= {"loss", "loss_constant", "best_epoch", *MEASURED}
# places of a pair of static masks in the table of claims
STATIC_PLACE = ["claim", "model", "data", "units", "sparsity_pct", "policy", "side_winner", "side_loser"]
JOINED = {"seed": "min", "low": "min", "high": "max", "p_value": "max", "p_holm": "max"}


def where(rows: pd.DataFrame, **equal: object) -> pd.DataFrame:
    """Rows whose columns equal the given values."""
    for name, value in equal.items():
        rows = rows[rows[name] == value]
    return rows


def of_model(tables: Tables, name: str, model: str) -> pd.DataFrame:
    """The rows of one model in a table, empty where the table is missing."""
    rows = tables[name] if name in tables else FINAL_TABLES[name].build([]).to_pandas()
    return over_seeds(where(rows, model=model))


def distinct(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of claims; a pair of static masks, which are the same under every protocol, is there once, without one."""
    fixed = rows["side_winner"].str.startswith("static") & rows["side_loser"].str.startswith("static")
    rows = rows.assign(protocol=rows["protocol"].mask(fixed))
    return rows[~(fixed & rows.duplicated(STATIC_PLACE))]


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of claims, without the pairs that are not comparable where a claim has others."""
    others = rows["verdict"] != "not comparable"
    return rows[others | ~rows["claim"].isin(rows.loc[others, "claim"])]


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for all seeds of a trained predictor: the means, in an interval that covers all of theirs."""
    if not {"seed", "predictor"} <= set(rows) or rows["seed"].nunique() < 2:
        return rows
    trained = rows["predictor"].notna()
    joined = {name: JOINED.get(name, "mean") for name in rows if name in MEASURED_COLUMNS}
    keys = [name for name in rows if name not in joined]
    means = rows[trained].groupby(keys, dropna=False, as_index=False, sort=False).agg(joined)[list(rows)]
    return pd.concat([rows[~trained], means], ignore_index=True)


def text_perplexities(tables: Tables, model: str) -> pd.DataFrame:
    """Token perplexities of whole texts; those of second halves after a dense prompt are left to the table."""
    rows = where(of_model(tables, "perplexity", model), metric="token_perplexity")
    return rows[rows["task"] != "second_half"]


def ranked(tables: Tables, model: str, **equal: object) -> pd.DataFrame:
    """One model's ranking quality; of constant predictors only the one of the dense model's traces."""
    rows = where(of_model(tables, "quality", model), **equal)
    return rows[(rows["method"] != "static") | rows["predictor"].isna()]


def contextual(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of criteria that a contextual method uses, all if none does; `criteria` shows the other criteria."""
    used = set(rows.loc[rows["method"].isin(CONTEXTUAL), "criterion"])
    without = rows["criterion"].isna() | rows["method"].isin(["dense", "random"])
    return rows[without | rows["criterion"].isin(used)] if used else rows


def trained_alike(tables: Tables, model: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without the predictors whose training another method lacks, and with the column `rank` of their predictors.

    A training is how often a predictor was retrained on the sparse model, and whether it was tuned: of those that all
    methods with predictors have, the longest one. Rows stay as they are where there is none. Predictors of rank 0 stay:
    constants and gains can only be tuned.
    """
    every = of_model(tables, "predictors", model)
    rows = _with_rank(rows, every)
    made = every[every["rank"] > 0].drop_duplicates(PAIR, keep="last")
    made = rows[rows["predictor"].notna()].drop_duplicates(PAIR)[PAIR].merge(made[[*PAIR, "rounds", "tuned"]])
    made["training"] = list(zip(made["rounds"], made["tuned"], strict=True))
    shared = [set(trainings) for _, trainings in made.groupby("method")["training"]]
    shared = set.intersection(*shared) if shared else set()
    others = made[made["training"].map(lambda training: shared and training != max(shared)).astype(bool)]
    return rows[~_index(rows, PAIR).isin(_index(others, PAIR))]


def _with_rank(rows: pd.DataFrame, predictors: pd.DataFrame) -> pd.DataFrame:
    """Rows with the `rank` of their predictor for their kind of units; for both kinds that of neurons."""
    kind = rows["kind"] if "kind" in rows else rows["units"].replace("both", "neurons")
    ranks = predictors.drop_duplicates([*PAIR, "kind"], keep="last").set_index([*PAIR, "kind"])["rank"]
    return rows.assign(rank=ranks.reindex(_index(rows.assign(kind=kind), [*PAIR, "kind"])).to_numpy())


def best_predictors(rows: pd.DataFrame, low_is_good: bool, by: tuple[str, ...] = ("method",)) -> pd.DataFrame:
    """Rows of one predictor for each method: of those measured in most places the one with the best values."""
    trained = rows[rows["predictor"].notna()]
    names = ("data", "task", "fewshot", "kind", "layer", "units", "criterion", "policy", "protocol", "sparsity_pct")
    place = ["method", *(name for name in names if name in rows)]
    apart = trained["value"] - trained.groupby(place, dropna=False)["value"].transform("mean")
    ranks = trained.assign(gain=-apart if low_is_good else apart).groupby([*by, "predictor"], as_index=False)
    ranks = ranks.agg(places=("gain", "size"), gain=("gain", "mean"))
    ranks = ranks.sort_values(["places", "gain"], ascending=False, kind="stable").drop_duplicates([*by])
    best = _index(rows, [*by, "predictor"]).isin(_index(ranks, [*by, "predictor"]))
    return rows[rows["predictor"].isna() | best]


def _index(rows: pd.DataFrame, names: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[names].astype(object))


def main_condition(rows: pd.DataFrame, *except_for: str) -> pd.DataFrame:
    """Rows of the first calibration text, protocol, units, policy and criterion, but all values of `except_for`."""
    return first_of(rows, *(name for name in PLACE if name not in except_for))


def first_of(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Rows with the first value of each column named or the main calibration text; those without, and random, stay."""
    calibrated = set(rows["calibration"]) if "calibration" in rows else set()
    orders = ORDERS | {"data": lambda data: (data not in calibrated, data)}  # the text that was calibrated on first
    for name in names:
        if name in rows:
            always = rows[name].isna() | (rows[name] == "random")
            if not always.all():
                values = rows.loc[~always, name]
                first = main_calibration(values) if name == "calibration" else min(values, key=orders.get(name, str))
                rows = rows[always | (rows[name] == first)]
    return rows


def methods(names: Iterable[str]) -> list[str]:
    """At most MOST_LINES of these methods, in their fixed order."""

    def rank(name: str) -> tuple[int, tuple[int, str]]:
        known = FIRST.index(name) if name in FIRST else len(FIRST)
        return (known if name in METHODS else 1), method_order(name)

    return sorted(sorted(names, key=rank)[:MOST_LINES], key=method_order)


def named(rows: pd.DataFrame) -> str:
    """The name of one method's line: the method, and the recipe and rank of its predictor if it has one."""
    first = rows.iloc[0]
    if pd.isna(first.get("predictor")):
        return first["method"]
    rank = f", rank {first['rank']:,.0f}" if first.get("rank", 0) > 0 else ""
    return f"{first['method']}\n{first['predictor']}{rank}"


def by_task(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy rows of one metric a task; `task_label`: the task, its text if there are several, number of examples."""
    first = rows.groupby("task")["metric"].transform("min")  # by name "acc" is before "acc_norm"
    several = rows.groupby("task")["data"].transform("nunique") > 1
    names = rows["task"].where(~several, rows["task"] + ", " + rows["data"])
    shots = rows["fewshot"].fillna(0).astype(int)
    names = names.where(shots == 0, names + ", " + shots.astype(str) + "-shot")
    return rows.assign(task_label=names)[rows["metric"] == first]


def mean_over_tasks(rows: pd.DataFrame, shots: bool = False) -> pd.DataFrame:
    """A condition's accuracy averaged over tasks, with the error of that mean; `shots`: for each number of examples."""
    rows = by_task(rows)
    rows = rows[rows["fewshot"].notna()] if shots else rows[rows["fewshot"].fillna(0) == 0]
    if shots:  # a task without examples would be in one mean and not in another
        rows = rows[rows.groupby("task")["fewshot"].transform("nunique") == rows["fewshot"].nunique()]
    keys = [name for name in CONDITION if name != "data"] + ["fewshot"]
    return averaged(rows, keys, "value", "sparsity_measured")


def averaged(rows: pd.DataFrame, keys: list[str], value: str, *others: str) -> pd.DataFrame:
    """Means over `tasks` rows with independent errors, `stderr`: of `value`, with its interval, and of others."""
    joined = dict.fromkeys((value, *others, "variance"), "mean") | {"tasks": "sum"}
    means = rows.assign(variance=rows["stderr"] ** 2, tasks=1).groupby(keys, dropna=False, as_index=False).agg(joined)
    low, high = interval(means[value], (means["variance"] / means["tasks"]) ** 0.5)
    return means.assign(low=low, high=high)


def as_text(value: object) -> str:
    """A key as text, the same whether pandas made a float of a whole number; nothing for null."""
    if pd.isna(value):
        return ""
    return f"{value:.17g}" if isinstance(value, float) else str(value)


def middle(values: Iterable[float]) -> float:
    """The middle one of several sparsities, the lower one of two; NaN for none."""
    values = sorted(set(values))
    return values[(len(values) - 1) // 2] if values else math.nan


def units_order(units: str | None) -> int:
    """A key to sort by: neurons, heads, both."""
    return UNITS_ORDER.get(units, len(UNITS_ORDER))


def criterion_order(criterion: str) -> tuple[bool, str]:
    """A key to sort by: the main criterion first, others by name."""
    return criterion != MAIN_CRITERION, criterion


# keys to sort by, of columns that have an order
ORDERS = {
    "units": units_order,
    "kind": units_order,
    "criterion": criterion_order,
    "method": method_order,
    "policy": lambda policy: (policy != "per_layer", policy),
    "protocol": lambda protocol: (protocol != "token", protocol),
}
