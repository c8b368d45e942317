"""Put the documents of all benchmarks into one file: every condition is measured on it, and a study has thousands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shadowcore import artifacts, benchmarks
from shadowcore.stages.base import Progress, Stage, header


@dataclass(frozen=True)
class Spec:
    """Nothing to choose."""


@dataclass(frozen=True)
class Inputs:
    """prepared: files that `prepare-benchmark` wrote, called <task>.parquet."""

    prepared: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    benchmarks: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("gather-benchmarks")
    table = benchmarks.gather(inputs.prepared)
    artifacts.write_table(outputs.benchmarks, benchmarks.GATHERED, table, header("gather-benchmarks", spec, inputs))
    progress(1, 1)


STAGE = Stage(Spec, Inputs, Outputs, run)
