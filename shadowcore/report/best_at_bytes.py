"""The best method at a budget of bytes: for every text and task, among the conditions that read at most that share.

Conditions are compared at equal bytes, not at equal sparsity, so the pairs of `comparisons` are not enough: here the
best condition is paired with the best one of another method, document by document.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from shadowcore.report.outcomes import Documents, Row
from shadowcore.report.tables import LOG_PERPLEXITIES, SAME_DOCUMENTS, compared, corrected, order
from shadowcore.schemas import BUDGETS_PCT, CONDITION, RUNNER_UP

SIGNIFICANT = 0.05  # corrected p below which a difference is significant
NO_CANDIDATES = ("dense", "random", "oracle")  # nothing to gain, nothing known, or what a decoder does not know
METRICS = ("nll", "acc", "acc_norm")  # over words and bytes a text's perplexities are in the same order as over tokens
IDENTITY = [name for name in CONDITION if name != "seed"]


class Candidate(NamedTuple):
    """One condition: its keys; its documents for each seed; its log perplexity or accuracy and bytes, means of them."""

    keys: Row
    seeds: list[Documents]
    value: float
    read_share: float


def best_at_bytes(outcomes: Iterable[Documents]) -> list[Row]:
    """Rows of BEST_AT_BYTES: one for each budget and each text or task of which sparse conditions have their bytes."""
    questions: dict[tuple, list[Documents]] = {}
    for one in outcomes:
        if one.keys["metric"] in METRICS:
            questions.setdefault(tuple(one.keys[name] for name in SAME_DOCUMENTS), []).append(one)
    alike = sorted(questions.values(), key=lambda groups: order(groups[0].keys, SAME_DOCUMENTS))
    rows = corrected([row for groups in alike for row in _answers(groups)], ("model", "metric"))
    for row in rows:
        decided = row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT
        row["verdict"] = row["verdict"] or ("significant" if decided else "undecided")
    return rows


def _answers(groups: Sequence[Documents]) -> Iterator[Row]:
    """A row for each budget, from all conditions of one question; none where no sparse one has its bytes."""
    conditions: dict[tuple, list[Documents]] = {}
    for one in groups:
        conditions.setdefault(tuple(one.keys[name] for name in IDENTITY), []).append(one)
    dense = next((seeds for seeds in conditions.values() if seeds[0].keys["method"] == "dense"), None)
    metric = groups[0].keys["metric"]
    candidates = list(filter(None, map(_candidate, conditions.values())))
    sign = 1 if metric == "nll" else -1
    candidates.sort(key=lambda one: (sign * one.value, one.read_share, order(one.keys, IDENTITY)))
    for budget in BUDGETS_PCT if candidates else ():
        row = {name: groups[0].keys[name] for name in SAME_DOCUMENTS}
        row |= {"metric": LOG_PERPLEXITIES.get(metric, metric), "budget_pct": budget, "p_value": None, "verdict": None}
        yield row | _answer([one for one in candidates if 100 * one.read_share <= budget], dense)


def _candidate(seeds: list[Documents]) -> Candidate | None:
    """One condition; None if a decoder cannot run it, or its bytes were not counted."""
    keys, shares = seeds[0].keys, [one.keys["read_share"] for one in seeds]
    if None in shares or keys["method"] in NO_CANDIDATES or keys["protocol"] == "lookahead":
        return None
    values = [float(one.value.sum() / one.weight.sum()) for one in seeds]
    return Candidate(keys, seeds, float(np.mean(values)), float(np.mean(shares)))


def _answer(candidates: Sequence[Candidate], dense: list[Documents] | None) -> Row:
    """The best of these candidates, which are in order, against dense and against the best one of another method."""
    if not candidates:
        return {"verdict": "none"}
    best = candidates[0]
    row = {name: best.keys[name] for name in IDENTITY} | {"read_share": best.read_share, "value": best.value}
    if dense:
        row |= {name: value for name, value in _paired(best.seeds, dense).items() if name != "p_value"}
        row["ratio"] = float(np.exp(row["difference"])) if best.keys["metric"] == "nll" else None
    other = next((one for one in candidates if one.keys["method"] != best.keys["method"]), None)
    if other is None:
        return row | {"verdict": "only method"}
    pair = _paired(best.seeds, other.seeds)
    following = {name: other.keys[name] for name in RUNNER_UP} | {"read_share": other.read_share}
    following |= {name: pair[name] for name in ("difference", "low", "high")}
    return row | {f"next_{name}": value for name, value in following.items()} | {"p_value": pair["p_value"]}


def _paired(ones: Sequence[Documents], others: Sequence[Documents]) -> dict[str, Any]:
    """Their mean difference over pairs of seeds, an interval that covers all pairs, the largest p."""
    pairs = list(product(ones, others))
    if min(len(ones), len(others)) > 1:  # else the one seed is paired with each of the others
        pairs = [(one, other) for one, other in pairs if one.keys["seed"] == other.keys["seed"]] or pairs
    rows = [compared(one.keys, one, other) for one, other in pairs]
    joined = {"difference": np.mean, "low": min, "high": max, "p_value": max}
    known = {name: [row[name] for row in rows if row[name] is not None] for name in joined}
    return {name: float(join(known[name])) if known[name] else None for name, join in joined.items()}
