"""Pairs of measurements that differ in one thing, with intervals of their paired differences.

A published claim says that a winner is better than a loser by a quantity. The same function pairs rows of our tables
and rows of the published values. Intervals are those of `statistics`, as in all other tables.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from shadowcore.measure.statistics import Estimate, interval, paired_difference
from shadowcore.report.outcomes import ACCURACY_METRICS, KEYS, PERPLEXITIES, Documents, Row
from shadowcore.report.select import averaged
from shadowcore.report.tables import Tables, compared

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
ENDS = ["effect", "low", "high"]


# ---- our measurements: rows with a value and with `measured`, from which the difference of two rows is computed


def _of_documents(documents: Sequence[Documents], chosen: Callable[[Row], bool]) -> pd.DataFrame:
    """A row for each condition, text and metric; value: the mean of its documents, per token or word."""
    rows = [one.keys | {"value": one.value.sum() / one.weight.sum(), "measured": one}
            for one in documents if chosen(one.keys)]  # fmt: skip
    return pd.DataFrame(rows, columns=[*KEYS, "value", "measured"])


def _by_document(winner: Documents, loser: Documents) -> Estimate:
    """The effect, which is above 0 where the winner has the higher accuracy or the lower perplexity."""
    high_is_good = winner.keys["metric"] in ACCURACY_METRICS
    row = compared(winner.keys, *((winner, loser) if high_is_good else (loser, winner)))
    return Estimate(*(row[name] for name in ("difference", "stderr", "low", "high", "n")))


def _perplexities(_: Tables, documents: Sequence[Documents]) -> pd.DataFrame:
    """Perplexity of every text: of WikiText-2 over words, as published, of windows of other texts over tokens.

    A second half votes only where the whole text was not scored.
    """

    def votes(keys: Row) -> bool:
        if keys["task"] == "wikitext":
            return keys["metric"] == "word_nll"
        half = keys["task"] == "second_half" and keys["protocol"] == "prompt"
        return keys["metric"] == "nll" and (half or keys["task"] == "perplexity")

    rows = _of_documents(documents, votes)
    return rows.assign(value=np.exp(rows["value"].astype(float)), metric=rows["metric"].map(PERPLEXITIES))


def _accuracies(_: Tables, documents: Sequence[Documents]) -> pd.DataFrame:
    """Zero-shot accuracy of every benchmark; continuations are our own task, on which nothing was published."""
    wanted = {"metric": "acc", "fewshot": 0}
    return _of_documents(documents, lambda keys: wanted.items() <= keys.items() and keys["task"] != "true_continuation")


def _rank_correlations(tables: Tables, _: Sequence[Documents]) -> pd.DataFrame:
    """Spearman of held-out tokens, mean over layers, of predictors that learned from the dense model."""
    rows = tables["quality"].rename(columns={"kind": "units"})
    rows = rows[rows["metric"].str.startswith("spearman") & (rows["method"] != "static")]
    identity = ["model", "calibration", *SIDE]
    rounds = tables["predictors"].query("rounds == 0")[identity].drop_duplicates()
    rows = rows.merge(rounds, on=identity)
    keys = [name for name in (*PLACE, *OF_SIDES) if name in rows and name != "sparsity_pct"]
    rows = rows.groupby(keys, dropna=False, as_index=False)[["value", "stderr", "n"]].mean()
    measured = [Estimate(row["value"], row["stderr"], None, None, row["n"]) for row in rows.to_dict("records")]
    return rows.assign(sparsity_pct=np.nan, measured=pd.Series(measured, rows.index, object))


def _unpaired(winner: Estimate, loser: Estimate) -> Estimate:
    """The errors are added: values of single tokens are not kept, so the difference cannot be paired."""
    difference, stderr, n = winner.value - loser.value, winner.stderr + loser.stderr, min(winner.n, loser.n)
    return Estimate(difference, stderr, *interval(difference, stderr, n - 1), n)


def _latencies(tables: Tables, _: Sequence[Documents]) -> pd.DataFrame:
    """Time per token at batch 1; designs take turns in a repeat, so their ratio is paired by repeat."""
    repeats = tables["latency_repeats"]
    keys = ["mode", *(name for name in PLACE if name in repeats)]
    times = np.log(repeats.groupby([*keys, "repeat"], dropna=False)["ms_per_token"].mean()).unstack()
    measured = pd.Series(list(times.to_numpy()), times.index, object, name="measured").reset_index()
    rows = tables["latency"].query("batch == 1").merge(measured, on=keys).assign(metric="ms_per_token")
    return rows.rename(columns={"mode": "method", "ms_per_token": "value"})


def _by_repeat(winner: np.ndarray, loser: np.ndarray) -> Estimate:
    """winner, loser (repeats,): logarithms of milliseconds; nan where a mode has fewer repeats than others."""
    both = ~np.isnan(loser - winner)
    return paired_difference(loser[both], winner[both], np.ones(both.sum()))[0]


class Quantity(NamedTuple):
    """How a quantity is read, the effect of two values, and the effect of two measurements with its interval."""

    measured: Callable[[Tables, Sequence[Documents]], pd.DataFrame]
    effect: Callable[[pd.Series, pd.Series], pd.Series]
    difference: Callable[[Any, Any], Estimate]


QUANTITIES = {
    "perplexity": Quantity(_perplexities, lambda winner, loser: np.log(loser / winner), _by_document),
    "accuracy": Quantity(_accuracies, lambda winner, loser: np.log(winner / loser), _by_document),
    "rank_correlation": Quantity(_rank_correlations, lambda winner, loser: winner - loser, _unpaired),
    "latency": Quantity(_latencies, lambda winner, loser: np.log(loser / winner), _by_repeat),
}


# ---- pairs: the same for what was published and for what we measured


def _same(left: pd.Series, right: pd.Series) -> pd.Series:
    return (left == right) | (left.isna() & right.isna())


def pairs_of(rows: pd.DataFrame, claim: Claim, winner: Side, loser: Side) -> pd.DataFrame:
    """Pairs of rows that differ in what the sides of the claim name, and in nothing else."""
    rows = rows.reindex(columns=list(dict.fromkeys([*rows, *OF_SIDES, "measured"])))
    keys = [key for key in PLACE if key in rows]
    sides = []
    for side in (winner, loser):
        part = rows
        for key, allowed in side.items():
            part = part[part[key].isin([allowed] if isinstance(allowed, str) else allowed)]
        words = [" ".join(row) for row in part[list(side)].itertuples(index=False)]
        sides.append(part.assign(side=words)[[*keys, *OF_SIDES, "side", "value", "measured"]])
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
    shared["seed"] = pairs["seed_winner"].where(pairs["predictor_loser"].isna(), pairs["seed_loser"])
    effect = QUANTITIES[claim.quantity].effect(pairs["value_winner"], pairs["value_loser"])
    return pairs.assign(**shared, effect=effect + claim.margin)


def effects(tables: Tables, documents: Sequence[Documents], claim: Claim) -> pd.DataFrame:
    """Our pairs, a row a place and text; those of several seeds are one, in an interval that covers all of theirs."""
    quantity = QUANTITIES[claim.quantity]
    pairs = pairs_of(quantity.measured(tables, documents), claim, claim.winner, claim.loser)
    sides = zip(pairs["measured_winner"], pairs["measured_loser"], strict=True)
    estimates = [quantity.difference(*both)._asdict() for both in sides]
    estimates = pd.DataFrame(estimates, pairs.index, ["value", "stderr", "low", "high"]).astype(float)
    if claim.quantity == "accuracy":  # differences are averaged over tasks, and not ratios
        pairs["effect"] = estimates["value"]
    shift = pairs["effect"] - estimates["value"]  # the effect is of median times, the estimate of mean ones
    pairs = pairs.assign(stderr=estimates["stderr"], low=estimates["low"] + shift, high=estimates["high"] + shift)
    keys = [name for name in [*PLACE, *OF_SIDES[1:], "method_loser", "side_winner", "side_loser"] if name in pairs]
    if claim.quantity == "accuracy":
        keys.remove("task")
        pairs = averaged(pairs.assign(data=None), keys, "effect", "value_winner", "value_loser")
        pairs[ENDS] = np.log1p(pairs[ENDS].div(pairs["value_loser"], axis=0)) + claim.margin
    keys.remove("seed")
    joined = {"value_winner": "mean", "value_loser": "mean", "effect": "mean", "low": "min", "high": "max"}
    pairs = pairs.groupby(keys, dropna=False, as_index=False).agg(joined)
    return pairs.assign(paired=quantity.difference is not _unpaired)
