"""Put the documents of all benchmarks into one file, so that thousands of jobs have one input instead of many."""

from pathlib import Path

from shadowcore import artifacts, benchmarks
from shadowcore.stages.base import Frozen, Outputs, header
from shadowcore.stages.base import Nothing as Spec


class Inputs(Frozen):
    """prepared: files <task>.parquet, which `prepare-benchmark` wrote."""

    prepared: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    table = benchmarks.gather(inputs.prepared)
    artifacts.write_table(outputs.benchmarks, benchmarks.GATHERED, table, header("gather-benchmarks", spec, inputs))
