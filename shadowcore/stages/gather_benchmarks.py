"""Put the documents of all benchmarks into one file, so that thousands of jobs have one input instead of many."""

from dataclasses import dataclass
from pathlib import Path

from shadowcore import artifacts, benchmarks
from shadowcore.stages.base import Nothing as Spec
from shadowcore.stages.base import Outputs, header


@dataclass(frozen=True)
class Inputs:
    """prepared: files <task>.parquet, which `prepare-benchmark` wrote."""

    prepared: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    table = benchmarks.gather(inputs.prepared)
    artifacts.write_table(outputs.benchmarks, benchmarks.GATHERED, table, header("gather-benchmarks", spec, inputs))
