"""The answer of a study: the best method at each sparsity, for every text, task and criterion, and how sure it is.

Methods that need what a decoder does not have are left out: true scores (oracle) and later tokens (lookahead).
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from shadowcore.report.best_at_bytes import NO_CANDIDATES
from shadowcore.report.select import (
    as_text,
    by_task,
    contextual,
    criterion_order,
    first_of,
    middle,
    over_seeds,
    units_order,
    where,
)
from shadowcore.report.tables import Tables

MOST = 50  # answers that are read
PLACE = ["model", "data", "task", "policy", "protocol", "units", "sparsity_pct"]
METHOD = ["method", "criterion", "predictor"]
QUESTION = ["data", "task", "units", "policy", "criterion", "sparsity_pct"]  # one best method for each


class Best(NamedTuple):
    """The best method in its place, the next best one, and rows of `comparisons`: with dense, static and the next.

    Each comparison is that of the best method minus the other, None where there is none.
    """

    row: dict[str, Any]
    runner_up: dict[str, Any] | None
    dense: dict[str, Any] | None
    static: dict[str, Any] | None
    against_next: dict[str, Any] | None


def best(found: Tables, model: str, name: str) -> Iterator[Best]:
    """The best method for every question to a table, "perplexity" or "accuracy", in the order of the questions."""
    # the best of several draws of the calibration text would be the luckiest one
    rows = first_of(over_seeds(where(found[name], model=model)), "calibration")
    compared = over_seeds(where(found["comparisons"], model=model))
    if name == "perplexity":
        rows, compared = where(rows, metric="token_perplexity"), where(compared, metric="log_perplexity")
    else:
        rows, compared = (by_task(part[part["fewshot"].fillna(0) == 0]) for part in (rows, compared))
        compared = compared[compared["metric"].isin(rows["metric"])]
    rows = contextual(rows[~rows["method"].isin(NO_CANDIDATES) & (rows["protocol"] != "lookahead")])
    pairs = _pairs(compared[compared["calibration"].isin(rows["calibration"])])
    for _, alike in rows.groupby(QUESTION, dropna=False):
        order = alike.sort_values("value", ascending=name == "perplexity", kind="stable").to_dict("records")
        first, second = order[0], order[1] if len(order) > 1 else None
        place = [as_text(first[name]) for name in PLACE]
        static = where(rows, method="static").to_dict("records")
        static = [row for row in static if [as_text(row[name]) for name in PLACE] == place]
        static = [row for row in static if as_text(row["criterion"]) == as_text(first["criterion"])] or static
        static.sort(key=lambda row: criterion_order(row["criterion"]))
        yield Best(
            first, second, _pair(pairs, first, None),
            _pair(pairs, first, static[0]) if static and first["method"] != "static" else None,
            _pair(pairs, first, second) if second else None,
        )  # fmt: skip


def ordered(answers: Iterable[Best]) -> list[Best]:
    """Answers in the order of texts, units, policies, sparsities and criteria."""

    def order(one: Best) -> tuple:
        row = one.row
        criterion, policy = as_text(row["criterion"]), as_text(row["policy"])
        text = (row["data"] != row["calibration"], row["data"])  # the text that was calibrated on first
        place = (*text, row["task"], units_order(row["units"]), policy != "per_layer", policy)
        return *place, row["sparsity_pct"], criterion == "", criterion_order(criterion)

    return sorted(answers, key=order)


def leading(answers: list[Best]) -> list[Best]:
    """Those of whole texts, the first units and the first policy; of more than MOST those at the middle sparsity."""
    first = min(
        answers, key=lambda one: (units_order(one.row["units"]), one.row["policy"] != "per_layer"), default=None
    )
    chosen = [one for one in answers if all(one.row[name] == first.row[name] for name in ("units", "policy"))]
    chosen = [one for one in chosen if one.row["task"] != "second_half"] or chosen
    if len(chosen) <= MOST:
        return chosen
    half = middle(one.row["sparsity_pct"] for one in chosen)
    return [one for one in chosen if one.row["sparsity_pct"] == half]


def _pairs(compared: pd.DataFrame) -> dict[tuple, dict[str, Any]]:
    """Rows of `comparisons` by both of their sides."""
    found = {}
    for row in compared.to_dict("records"):
        sides = [row["reference"], row["reference_criterion"], row["reference_predictor"]]
        found[_key(row, [row[name] for name in METHOD], sides)] = row
    return found


def _key(row: dict[str, Any], method: list, reference: list) -> tuple:
    return tuple(map(as_text, [*(row[name] for name in PLACE), *method, *reference]))


def _pair(pairs: dict[tuple, dict], one: dict[str, Any], other: dict[str, Any] | None) -> dict[str, Any] | None:
    """The comparison of one row minus the other, whichever of them is the reference; other: None is dense."""
    if other is None:
        return pairs.get(_key(one, [one[name] for name in METHOD], ["dense", None, None]))
    for sign, (row, reference) in ((1, (one, other)), (-1, (other, one))):
        # what the row lacks it has from the reference
        method = [row[name] if pd.notna(row[name]) else reference[name] for name in METHOD]
        pair = pairs.get(_key(one, method, [reference[name] for name in METHOD]))
        if pair is not None and sign < 0:
            pair = pair | {"difference": -pair["difference"], "low": -pair["high"], "high": -pair["low"]}
        if pair is not None:
            return pair
    return None


def change(pair: dict[str, Any] | None, log: bool) -> str:
    """A difference with its interval: of logarithms in percent, of accuracies in points; and its corrected p."""
    if pair is None:
        return "-"
    values = np.array([pair[name] for name in ("difference", "low", "high")], float)
    value, low, high = 100 * (np.expm1(values) if log else values)
    digits = 0 if abs(value) >= 100 else 1
    return f"{value:+.{digits}f}{' %' if log else ''} [{low:.{digits}f}, {high:.{digits}f}] {p_value(pair['p_holm'])}"


def p_value(value: float) -> str:
    """A p-value as a table shows it."""
    return "" if pd.isna(value) else "p<.001" if value < 0.001 else f"p={value:.3f}".replace("0.", ".", 1)
