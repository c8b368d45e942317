"""Get a benchmark's documents, cut to a seeded subset: the one file that every condition is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from shadowcore import artifacts, benchmarks
from shadowcore.errors import ConfigError, one_of
from shadowcore.paragraphs import mark
from shadowcore.stages.base import Progress, Stage, header


@dataclass(frozen=True)
class Spec:
    """name: the task; offline_dir: folder of <task>/<split>.parquet, or null for the hub; limit: documents kept,
    null for all; fewshot: most examples in a prompt, which come from the training split.
    """

    name: str
    offline_dir: str | None
    limit: int | None
    fewshot: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """A source is not a file of the study."""


@dataclass(frozen=True)
class Outputs:
    documents: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"prepare-benchmark {spec.name}")
    one = benchmarks.BENCHMARKS[one_of(spec.name, benchmarks.BENCHMARKS, "name")]
    found, licence, origin = benchmarks.read(spec.name, one.split, spec.offline_dir)
    evaluated = benchmarks.subset(spec.name, found, spec.limit, spec.seed)
    examples = benchmarks.examples(spec.name, one.split, list(evaluated.values()), evaluated)
    rows = [
        document | {benchmarks.SPLIT: "evaluation", benchmarks.MARK: mark(example)}
        for document, example in zip(evaluated.values(), examples, strict=True)
    ]
    if spec.fewshot:
        if one.train is None:
            raise ConfigError(f"evaluation.fewshot: {spec.name} has no training split to show examples from")
        pool, *_ = benchmarks.read(spec.name, one.train, spec.offline_dir)
        benchmarks.require_pool(spec.name, spec.fewshot, len(pool))
        benchmarks.examples(spec.name, one.train, pool)  # refuses what a prompt could not show
        rows += [document | {benchmarks.SPLIT: "examples"} for document in pool]
    progress.say(f"{len(evaluated)} of {len(found)} documents from {origin}")
    made = header("prepare-benchmark", spec, inputs) | {"origin": origin, "licence": licence}
    artifacts.write_table(outputs.documents, benchmarks.SCHEMA, pa.Table.from_pylist(rows), made)
    progress(1, 1)


STAGE = Stage(Spec, Inputs, Outputs, run)
