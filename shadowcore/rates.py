"""Measured speeds of jobs, for plans of studies that have not run yet.

Each row of rates.csv is a device, a stage (its rule), a size of model, the multiply-adds that one job made per second,
and the run in which they were measured. Plans are made for the first device. `python benchmarks/chain.py ... --rates`
writes the rows.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("rates.csv")
COLUMNS = ("device", "stage", "weights_gb", "tflops", "source")
APART = 2  # the longest job of a stage must have this many times the work of the shortest, to compare the two


class Rate(NamedTuple):
    """Multiply-adds per second of one job; weights: bytes of the model that it was measured with."""

    device: str
    stage: str
    weights: float
    per_second: float
    source: str


def read(path: Path = FILE) -> list[Rate]:
    """The rates of the file's first device."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(map(_rate, csv.DictReader(lines)))
    return [row for row in rows if row.device == rows[0].device]


def _rate(row: Mapping[str, str]) -> Rate:
    weights, per_second = float(row["weights_gb"]) * 1e9, float(row["tflops"]) * 1e12
    return Rate(row["device"], row["stage"], weights, per_second, row["source"])


def of(stage: str, weights: float, rates: Iterable[Rate]) -> Mapping[str, float]:
    """{stage: rate} of the model closest in size, as `Work.seconds` takes it; empty if the stage has no rate."""

    def distance(rate: Rate) -> float:
        return abs(math.log(max(rate.weights, 1) / max(weights, 1)))

    own = [rate for rate in rates if rate.stage == stage]
    return {stage: min(own, key=distance).per_second} if own else {}


def rows(jobs: Iterable[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Rows of rates.csv from measured jobs with the keys device, stage, weights_bytes, multiplications and seconds.

    Between a stage's shortest and longest job with one model the loading of the model cancels. Where they differ too
    little, or no model is loaded, the rate is that of all jobs together, with everything else that they did; an
    evaluation of the dense model alone has none.
    """
    alike: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
    for job in jobs:
        if job["multiplications"]:
            key = job["device"], job["stage"].replace("-", "_"), job["weights_bytes"]
            alike.setdefault(key, []).append((job["multiplications"], job["seconds"]))
    rows = []
    for (device, stage, weights), pairs in sorted(alike.items()):
        (few, short), (many, long) = min(pairs), max(pairs)
        if weights and many > APART * few and long > short:
            per_second = (many - few) / (long - short)
        elif stage == "evaluate":  # the dense model alone, whose long prompts say nothing of other conditions
            continue
        else:
            per_second = sum(count for count, _ in pairs) / sum(seconds for _, seconds in pairs)
        values = device, stage, f"{weights / 1e9:.1f}", f"{per_second / 1e12:.3g}", source
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows
