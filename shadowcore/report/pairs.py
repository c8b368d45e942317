"""Pairs of measurements that differ in one thing, with the errors of their paired differences.

A published claim says that a winner is better than a loser by a quantity. The same function pairs rows of our tables
and rows of the published values.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from shadowcore.report.select import as_text
from shadowcore.report.tables import Tables
from shadowcore.schemas import MEASURED_TABLES

Side = Mapping[str, str | tuple[str, ...]]


class Claim(NamedTuple):
    """A published claim: the winner has a better value of a quantity than the loser.

    margin: added to the effect (how much worse still counts as equally good). opponent: the published loser's method,
    where ours may have another. published: the published sides, where the paper only has another pair.
    """

    statement: str
    quantity: str
    winner: Side
    loser: Side
    margin: float = 0.0
    opponent: str | None = None
    published: tuple[Side, Side] | None = None


# both sides of a pair agree in these; equal ceilings are one run of a benchmark
PLACE = ["model", "data", "calibration", "protocol", "units", "sparsity_pct", "task", "fewshot", "metric", "device"]
PLACE += ["dtype", "batch", "prompt_tokens", "new_tokens", "predictor_bits", "ceiling_gb_s"]
RANKS = ["predictor_rank", "predictor_rank_heads"]
PLACE += RANKS
SIDE = ["method", "criterion", "predictor"]
OF_SIDES = [*SIDE, "policy", "seed"]  # columns that each side has for itself
Errors = dict[tuple, float]  # standard error of a paired difference, by the pair's place and its two sides


# ---- our measurements: rows with a value and its standard error, and the standard errors of paired differences


def _key(row: Mapping[str, Any], names: list[str]) -> tuple[str, ...]:
    return tuple(as_text(row.get(name)) for name in names)


SAME_DOCUMENTS = [name for name in PLACE if name in MEASURED_TABLES["comparisons"].columns] + ["policy", "seed"]
SAME_REPEATS = [name for name in PLACE if name in MEASURED_TABLES["latency_repeats"].columns]


def _compared(tables: Tables, name: str, metrics: Mapping[str, str]) -> tuple[pd.DataFrame, Errors]:
    """Values with the error of their difference to dense, and the errors of `comparisons` between methods."""
    rows = tables["comparisons"]
    rows = rows[rows["metric"].isin(list(metrics))].assign(metric=lambda found: found["metric"].map(metrics))
    dense = rows["reference"] == "dense"
    keys = [*SAME_DOCUMENTS, *SIDE]
    to_dense = {_key(row, keys): row["stderr"] for row in rows[dense].to_dict("records")}
    reference = ["reference", "reference_criterion", "reference_predictor"]
    errors = {
        (_key(row, SAME_DOCUMENTS), frozenset({_key(row, SIDE), _key(row, reference)})): row["stderr"]
        for row in rows[~dense].to_dict("records")
    }
    values = tables[name]
    stderr = [to_dense.get(_key(row, keys), np.nan) for row in values.to_dict("records")]
    return values.assign(stderr=stderr).dropna(subset="stderr"), errors


def _perplexities(tables: Tables) -> tuple[pd.DataFrame, Errors]:
    """Perplexity of every text: of WikiText-2 over words, as published, of windows of other texts over tokens.

    A second half votes only where the whole text was not scored.
    """
    metrics = {"log_word_perplexity": "word_perplexity", "log_perplexity": "token_perplexity"}
    rows, errors = _compared(tables, "perplexity", metrics)
    words = (rows["task"] == "wikitext") & (rows["metric"] == "word_perplexity")
    half = (rows["task"] == "second_half") & (rows["protocol"] == "prompt")
    return rows[words | half | (rows["task"] == "perplexity")], errors


def _accuracies(tables: Tables) -> tuple[pd.DataFrame, Errors]:
    """Zero-shot accuracy of every benchmark; continuations are our own task, on which nothing was published."""
    rows, errors = _compared(tables, "accuracy", {"acc": "acc"})
    return rows[(rows["fewshot"] == 0) & (rows["task"] != "true_continuation")], errors


def _rank_correlations(tables: Tables) -> tuple[pd.DataFrame, Errors]:
    """Spearman of held-out tokens, mean over layers, of predictors that learned from the dense model."""
    rows = tables["quality"].rename(columns={"kind": "units"})
    rows = rows[rows["metric"].str.startswith("spearman") & (rows["method"] != "static")]
    identity = ["model", "calibration", *SIDE]
    rounds = tables["predictors"].query("rounds == 0")[identity].drop_duplicates()
    rows = rows.merge(rounds, on=identity)
    keys = [name for name in (*PLACE, *OF_SIDES) if name in rows and name != "sparsity_pct"]
    return rows.groupby(keys, dropna=False, as_index=False)[["value", "stderr"]].mean().assign(sparsity_pct=np.nan), {}


def _latencies(tables: Tables) -> tuple[pd.DataFrame, Errors]:
    """Median time per token at batch 1; designs take turns in a repeat, so their ratio is paired by repeat."""
    rows = tables["latency"].rename(columns={"mode": "method", "ms_per_token": "value"}).query("batch == 1")
    spread = np.log(rows["ms_p90"] / rows["ms_p10"]) / 2.563  # 10th to 90th percentile of a normal, in deviations
    repeats = tables["latency_repeats"]
    repeats = repeats[repeats["mode"].isin(["shadow", "layerwise"])]
    errors = {}
    for _, group in repeats.groupby(SAME_REPEATS, dropna=False):
        times = group.pivot_table(index="repeat", columns="mode", values="ms_per_token")
        if {"shadow", "layerwise"} <= set(times) and len(times.dropna()) > 1:
            ratio = np.log(times["layerwise"] / times["shadow"]).dropna()
            sides = frozenset({("shadow", "", ""), ("layerwise", "", "")})
            errors[_key(group.iloc[0], SAME_REPEATS), sides] = ratio.std() / len(ratio) ** 0.5
    return rows.assign(stderr=spread, metric="ms_per_token"), errors


class Quantity(NamedTuple):
    """How a quantity is read, what pairs agree in, and its effect."""

    measured: Callable[[Tables], tuple[pd.DataFrame, Errors]]
    paired_in: list[str]
    effect: Callable[[pd.Series, pd.Series], pd.Series]


QUANTITIES = {
    "perplexity": Quantity(_perplexities, SAME_DOCUMENTS, lambda winner, loser: np.log(loser / winner)),
    "accuracy": Quantity(_accuracies, SAME_DOCUMENTS, lambda winner, loser: np.log(winner / loser)),
    "rank_correlation": Quantity(_rank_correlations, [], lambda winner, loser: winner - loser),
    "latency": Quantity(_latencies, SAME_REPEATS, lambda winner, loser: np.log(loser / winner)),
}


# ---- pairs: the same for what was published and for what we measured


def _same(left: pd.Series, right: pd.Series) -> pd.Series:
    return (left == right) | (left.isna() & right.isna())


def pairs_of(rows: pd.DataFrame, claim: Claim, winner: Side, loser: Side) -> pd.DataFrame:
    """Pairs of rows that differ in what the sides of the claim name, and in nothing else."""
    rows = rows.reindex(columns=list(dict.fromkeys([*rows, *OF_SIDES])))
    keys = [key for key in PLACE if key in rows]
    sides = []
    for side in (winner, loser):
        part = rows
        for key, allowed in side.items():
            part = part[part[key].isin([allowed] if isinstance(allowed, str) else allowed)]
        words = [" ".join(row) for row in part[list(side)].itertuples(index=False)]
        sides.append(part.assign(side=words)[[*keys, *OF_SIDES, "side", "value", "stderr"]])
    pairs = sides[0].merge(sides[1], on=keys, suffixes=("_winner", "_loser"))
    # only trained methods have a predictor and its seed
    one_trained = pairs[["predictor_winner", "predictor_loser"]].notna().sum(axis=1) == 1
    agree = pd.Series(True, pairs.index)
    for name in OF_SIDES[1:]:
        if not (name in winner and name in loser):
            free = one_trained if name in ("predictor", "seed") else False
            agree &= _same(pairs[f"{name}_winner"], pairs[f"{name}_loser"]) | free
    pairs = pairs[agree]
    shared = {"predictor": pairs["predictor_winner"].combine_first(pairs["predictor_loser"])}
    for name in ("criterion", "policy"):
        left, right = pairs[f"{name}_winner"], pairs[f"{name}_loser"]
        shared[name] = left.where(_same(left, right))
    trained = pairs["predictor_winner"].isna() & pairs["predictor_loser"].notna()
    shared["seed"] = pairs["seed_loser"].where(trained, pairs["seed_winner"])
    effect = QUANTITIES[claim.quantity].effect(pairs["value_winner"], pairs["value_loser"])
    return pairs.assign(**shared, effect=effect + claim.margin)


def effects(tables: Tables, claim: Claim) -> pd.DataFrame:
    """Our pairs, a row a place and text; where nothing is paired, the error is the sum of both sides' errors."""
    quantity = QUANTITIES[claim.quantity]
    rows, errors = quantity.measured(tables)
    pairs = pairs_of(rows, claim, claim.winner, claim.loser)
    sides = [[f"{name}_{side}" for name in SIDE] for side in ("winner", "loser")]
    paired = [
        errors.get((_key(row, quantity.paired_in), frozenset(_key(row, side) for side in sides)), np.nan)
        for row in pairs.to_dict("records")
    ]
    bound = pairs["stderr_winner"] + pairs["stderr_loser"]
    pairs = pairs.assign(paired=pd.Series(paired, pairs.index, float).notna())
    pairs = pairs.assign(stderr=pd.Series(paired, pairs.index, float).fillna(bound), count=1)
    keys = [name for name in [*PLACE, *OF_SIDES[1:], "method_loser", "side_winner", "side_loser"] if name in pairs]
    if claim.quantity == "accuracy":
        pairs = pairs.assign(variance=pairs["stderr"] ** 2, data=None)
        keys = [name for name in keys if name != "task"]
        pairs = pairs.groupby(keys, dropna=False, as_index=False).agg(
            {"value_winner": "mean", "value_loser": "mean", "variance": "sum", "count": "sum", "paired": "all"}
        )
        stderr = pairs["variance"] ** 0.5 / pairs["count"] / pairs["value_loser"]
        effect = quantity.effect(pairs["value_winner"], pairs["value_loser"]) + claim.margin
        pairs = pairs.assign(stderr=stderr, effect=effect)
    pairs = pairs.assign(variance=pairs["stderr"] ** 2, spread=pairs["effect"])
    means = {"value_winner": "mean", "value_loser": "mean", "effect": "mean", "variance": "mean", "spread": "sem"}
    keys = [name for name in keys if name != "seed"]
    pairs = pairs.groupby(keys, dropna=False, as_index=False).agg(means | {"paired": "all"})
    stderr = np.hypot(pairs["variance"] ** 0.5, pairs["spread"].fillna(0))
    return pairs.assign(low=pairs["effect"] - 1.96 * stderr, high=pairs["effect"] + 1.96 * stderr)
