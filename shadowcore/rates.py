"""Measured speeds of jobs, for plans of studies that have not run yet.

Each row of rates.csv is a device, a stage (its rule), a size of model, the multiply-adds that one job made per second,
and the run in which they were measured. Plans are made for the first device, a GPU. On a machine without one, small
jobs are planned for a core of a CPU. `python benchmarks/chain.py ... --rates` writes the rows.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("rates.csv")
CORE = "one core of an AMD EPYC"
COLUMNS = ("device", "stage", "weights_gb", "tflops", "source")


class Rate(NamedTuple):
    """Multiply-adds per second of one job; weights: bytes of the model that it was measured with."""

    device: str
    stage: str
    weights: float
    per_second: float
    source: str


def read(path: Path = FILE, device: str | None = None) -> list[Rate]:
    """The rates of a device, by default of the file's first."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(map(_rate, csv.DictReader(lines)))
    return [row for row in rows if row.device == (device or rows[0].device)]


def _rate(row: Mapping[str, str]) -> Rate:
    weights, per_second = float(row["weights_gb"]) * 1e9, float(row["tflops"]) * 1e12
    return Rate(row["device"], row["stage"], weights, per_second, row["source"])


def serving(gpus: int, model: bool, known: Sequence[Rate], core: Sequence[Rate]) -> Sequence[Rate]:
    """The rates that a job is planned with: those of a GPU (`known`), or of a core, if there is no GPU here.

    gpus: how many the job has for itself; model: whether it loads one. A small job that loads a model has no rate of a
    GPU, which it shares.
    """
    return known if gpus or not (model or core) else core


def of(stage: str, weights: float, rates: Iterable[Rate]) -> Mapping[str, float]:
    """{stage: rate} of the model closest in size, as `Work.seconds` takes it; empty if the stage has no rate."""

    def distance(rate: Rate) -> float:
        return abs(math.log(max(rate.weights, 1) / max(weights, 1)))

    own = [rate for rate in rates if rate.stage == stage]
    return {stage: min(own, key=distance).per_second} if own else {}
