"""Two runs of a study compared: which numbers moved beyond noise, which appeared, and which are gone.

A number is noise unless the difference of its two values is large against its standard error. Where both runs kept
the outcomes of the same documents the difference is paired by document: what makes a document hard cancels out, and
small changes show. Else the two estimates are taken as independent, which is cautious where they are not. Of all
numbers of a table some would differ by chance: p-values are corrected (Holm 1979) among them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from shadowcore.errors import ArtifactError
from shadowcore.measure import statistics
from shadowcore.report.blocks import CLAIMED
from shadowcore.report.outcomes import ACCURACY_METRICS, PERPLEXITIES, TASK_KEYS, Documents, grouped
from shadowcore.report.select import as_text
from shadowcore.report.tables import compared, of_study
from shadowcore.schemas import CONDITION, OUTCOMES

MOVED = 0.05  # corrected p from which on a number is not said to have moved
DECILES = 2.563  # from the 10th to the 90th percentile of a normal, in deviations: the error of a median of repeats

Key = tuple[str, ...]


class Measure(NamedTuple):
    """A table's number: its column, its standard error (of the logarithm if `log`), and the columns that name a row."""

    value: str
    error: Callable[[pd.DataFrame], pd.Series]
    keys: list[str]
    log: bool = False


_ESTIMATE = [*CONDITION, *TASK_KEYS]
_LATENCY = ["model", "device", "backend", "weights", "dtype", "threads", "mode", "units", "sparsity_pct", "kv", "batch"]
_LATENCY += ["prompt_tokens", "new_tokens", "predictor_rank", "predictor_rank_heads", "predictor_bits"]
_LATENCY += ["predictor_groups"]
_QUALITY = ["model", "calibration", "method", "criterion", "predictor", "seed", "kind"]
MEASURES = {
    "perplexity": Measure("value", lambda rows: rows["stderr"] / rows["value"], _ESTIMATE, log=True),
    "accuracy": Measure("value", lambda rows: rows["stderr"], _ESTIMATE),
    "quality": Measure("value", lambda rows: rows["stderr"], [*_QUALITY, "layer", "sparsity_pct", "policy", "metric"]),
    "predictors": Measure("loss", lambda rows: rows["loss"] * math.nan, _QUALITY),
    "criteria": Measure(
        "mean", lambda rows: rows["deviation"] / rows["n"] ** 0.5,
        ["model", "calibration", "criterion", "kind", "layer", "unit"],
    ),
    "latency": Measure(
        "ms_per_token", lambda rows: np.log(rows["ms_p90"] / rows["ms_p10"]) / DECILES, _LATENCY, log=True,
    ),
}  # fmt: skip
# numbers of `comparisons` are differences of those above
CLAIM_KEYS = ["claim", *CLAIMED]


class Moved(NamedTuple):
    """A number that moved: what it is of, both values, their difference (of logarithms if `log`), corrected p."""

    what: str
    old: float
    new: float
    difference: float
    p_value: float
    paired: bool


class Compared(NamedTuple):
    """One table of two runs: how many numbers are equal, differ within noise or without a known error; what moved.

    named: key columns with one value in each run, another in each: they say what the runs are, not what rows are.
    """

    table: str
    named: dict[str, tuple[str, str]]
    equal: int
    within: int
    unknown: int
    paired: int
    log: bool
    moved: list[Moved]
    appeared: list[str]
    vanished: list[str]


def compare(old: Path, new: Path) -> Iterator[Compared]:
    """Every table of two results folders compared; ArtifactError if one of them is none."""
    found = [of_study(folder) for folder in (old, new)]
    kept = [sorted(Path(folder).glob("tables/outcomes.parquet")) for folder in (old, new)]
    numbers: dict[str, int] = {}
    outcomes = [grouped(OUTCOMES.read_parts(paths), numbers) for paths in kept]
    for name, measure in MEASURES.items():
        if any(len(tables[name]) for tables in found):
            yield _compared(name, measure, *(tables[name] for tables in found), outcomes)


def verdicts(old: Path, new: Path) -> list[tuple[str, str, str]]:
    """Published claims whose verdict is another: what was compared, the old and the new verdict."""
    rows = [of_study(folder)["claims"] for folder in (old, new)]
    before, after = (dict(zip(_keyed(one, CLAIM_KEYS), one["verdict"], strict=True)) for one in rows)
    names = _names([key for key in before if key in after])
    return [(names[key], before[key], after[key]) for key in names if before[key] != after[key]]


def _compared(
    name: str, measure: Measure, old: pd.DataFrame, new: pd.DataFrame, outcomes: Sequence[list[Documents]]
) -> Compared:
    values = {key: [sorted(map(as_text, rows[key].unique())) for rows in (old, new)] for key in measure.keys}
    single = {key: (one[0], other[0]) for key, (one, other) in values.items() if len(one) == len(other) == 1}
    named = {key: pair for key, pair in single.items() if pair[0] != pair[1]}
    keys = [key for key in measure.keys if key not in named]
    before, after = (
        dict(zip(_keyed(rows, keys), zip(rows[measure.value], measure.error(rows), strict=True), strict=True))
        for rows in (old, new)
    )
    both = [key for key in before if key in after]
    differing = [key for key in both if before[key][0] != after[key][0]]
    metrics = {"perplexity": PERPLEXITIES, "accuracy": ACCURACY_METRICS}.get(name, ())
    measured = ([one for one in side if one.keys["metric"] in metrics] for side in outcomes)
    pairs = _pairs(keys, *measured) if differing else {}
    tests = {key: pairs.get(key) or _unpaired(before[key], after[key], measure.log) for key in differing}
    known = [key for key, (_, p_value) in tests.items() if not math.isnan(p_value)]
    corrected = dict(zip(known, statistics.holm([tests[key][1] for key in known]), strict=True)) if known else {}
    words = _names([*before, *(key for key in after if key not in before)])
    moved = [
        Moved(words[key], before[key][0], after[key][0], tests[key][0], corrected[key], key in pairs)
        for key in sorted(known, key=corrected.get)
        if corrected[key] < MOVED
    ]
    return Compared(
        name, named, len(both) - len(differing), len(known) - len(moved), len(differing) - len(known),
        len(tests.keys() & pairs.keys()), measure.log, moved,
        [words[key] for key in after if key not in before], [words[key] for key in before if key not in after],
    )  # fmt: skip


def _unpaired(old: tuple[float, float], new: tuple[float, float], log: bool) -> tuple[float, float]:
    """Difference of two independent estimates, each a value and its error, and its p."""
    difference = math.log(new[0] / old[0]) if log else new[0] - old[0]
    return difference, statistics.two_sided_p(difference, math.hypot(old[1], new[1]))


def _pairs(keys: list[str], old: Sequence[Documents], new: Sequence[Documents]) -> dict[Key, tuple[float, float]]:
    """Paired difference and its p, by key, of what was measured on the same documents in both runs."""

    def key(one: Documents) -> Key:
        named = one.keys | {"metric": PERPLEXITIES.get(one.keys["metric"], one.keys["metric"])}  # as the tables call it
        return tuple(as_text(named[name]) for name in keys)

    before, found = {key(one): one for one in old}, {}
    for one in new:
        if key(one) in before:
            with suppress(ArtifactError):  # of other documents
                row = compared(one.keys, one, before[key(one)])
                if row["p_value"] is not None:
                    found[key(one)] = row["difference"], row["p_value"]
    return found


def _keyed(rows: pd.DataFrame, keys: list[str]) -> list[Key]:
    return list(zip(*(map(as_text, rows[key]) for key in keys), strict=True))


def _names(keys: list[Key]) -> dict[Key, str]:
    """What each key is about, in the words that are not the same in all."""
    varies = [len(set(words)) > 1 for words in zip(*keys, strict=True)]
    return {
        key: " ".join(word for word, tell in zip(key, varies, strict=True) if tell and word) or "it" for key in keys
    }
