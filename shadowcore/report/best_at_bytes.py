"""The best method at a budget of bytes: for every text and task, among the conditions that read at most that share.

Conditions are compared at equal bytes, not at equal sparsity, so the pairs of `comparisons` are not enough: here the
best condition is paired with the best one of another method, document by document.

The best of several draws of the calibration text would win by luck. So all candidates are of one text, the main one:
few conditions are measured with other draws, and means over different texts would not compare methods alone. Seeds have
the same text, so a candidate is the mean over its seeds.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from shadowcore.report.outcomes import Documents, Row, main_calibration
from shadowcore.report.tables import LOG_PERPLEXITIES, SAME_DOCUMENTS, compared, corrected, order, same_run
from shadowcore.schemas import BUDGETS_PCT, CONDITION, RUNNER_UP

SIGNIFICANT = 0.05  # corrected p below which a difference is significant
NO_CANDIDATES = ("dense", "random", "oracle")  # nothing to gain, nothing known, or what a decoder does not know
METRICS = ("nll", "acc", "acc_norm")  # over words and bytes a text's perplexities are in the same order as over tokens
IDENTITY = [name for name in CONDITION if name not in ("seed", "calibration")]


class Candidate(NamedTuple):
    """One condition: its keys; its documents for each seed; its log perplexity or accuracy and bytes, means of them."""

    keys: Row
    seeds: list[Documents]
    value: float
    read_share: float
    runs: list[Documents]  # for each seed and each calibration text, also others than the main one


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
    metric, text = groups[0].keys["metric"], main_calibration(one.keys["calibration"] for one in groups)
    candidates = [one for runs in conditions.values() if (one := _candidate(runs, text))]
    sign = 1 if metric == "nll" else -1
    candidates.sort(key=lambda one: (sign * one.value, one.read_share, order(one.keys, IDENTITY)))
    for budget in BUDGETS_PCT if candidates else ():
        row = {name: groups[0].keys[name] for name in SAME_DOCUMENTS}
        row |= {"metric": LOG_PERPLEXITIES.get(metric, metric), "budget_pct": budget, "p_value": None, "verdict": None}
        yield row | _answer([one for one in candidates if 100 * one.read_share <= budget], dense)


def _candidate(runs: list[Documents], text: str | None) -> Candidate | None:
    """One condition; None if a decoder cannot run it, it has other calibration texts, or its bytes were not counted."""
    keys, seeds = runs[0].keys, [one for one in runs if one.keys["calibration"] in (None, text)]
    shares = [one.keys["read_share"] for one in seeds]
    if not seeds or None in shares or keys["method"] in NO_CANDIDATES or keys["protocol"] == "lookahead":
        return None
    values = [float(one.value.sum() / one.weight.sum()) for one in seeds]
    return Candidate(seeds[0].keys, seeds, float(np.mean(values)), float(np.mean(shares)), runs)


def _answer(candidates: Sequence[Candidate], dense: list[Documents] | None) -> Row:
    """The best of these candidates, which are in order, against dense and against the best one of another method."""
    if not candidates:
        return {"verdict": "none"}
    best = candidates[0]
    row = {name: best.keys[name] for name in (*IDENTITY, "calibration")}
    row |= {"read_share": best.read_share, "value": best.value}
    if dense:
        row |= _joined(_pairs(best.seeds, dense)) | {"p_value": None}
        row["ratio"] = float(np.exp(row["difference"])) if best.keys["metric"] == "nll" else None
    other = next((one for one in candidates if one.keys["method"] != best.keys["method"]), None)
    if other is None:
        return row | {"verdict": "only method"}
    pair, runs = _joined(_pairs(best.seeds, other.seeds)), _pairs(best.runs, other.runs)
    sign, p_value = 1 if best.keys["metric"] == "nll" else -1, pair.pop("p_value")
    following = {name: other.keys[name] for name in RUNNER_UP} | {"read_share": other.read_share} | pair
    following |= {"pairs": len(runs), "pairs_won": sum(sign * run["difference"] <= 0 for run in runs)}
    return row | {f"next_{name}": value for name, value in following.items()} | {"p_value": p_value}


def _pairs(ones: Sequence[Documents], others: Sequence[Documents]) -> list[Row]:
    """Comparisons of runs with the same calibration text and seed, of all where two methods share no seed."""
    every = list(product(ones, others))
    same = [(one, other) for one, other in every if same_run(one.keys, other.keys)]
    return [compared(one.keys, one, other) for one, other in same or every]


def _joined(rows: Sequence[Row]) -> dict[str, Any]:
    """The mean difference of pairs, an interval that covers all of theirs, the largest p."""
    joined = {"difference": np.mean, "low": min, "high": max, "p_value": max}
    known = {name: [row[name] for row in rows if row[name] is not None] for name in joined}
    return {name: float(join(known[name])) if known[name] else None for name, join in joined.items()}
