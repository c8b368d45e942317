"""Read a benchmark's documents from its source, cut to a seeded subset, so that all conditions use the same ones."""

import pyarrow as pa

from shadowcore import artifacts, benchmarks
from shadowcore.errors import ConfigError, one_of
from shadowcore.paragraphs import mark
from shadowcore.stages.base import Frozen, Outputs, Progress, header
from shadowcore.stages.base import Nothing as Inputs


class Spec(Frozen):
    """name: of the task; offline_dir: folder of <task>/<split>.parquet, null for the hub; limit: number of documents,
    null for all; fewshot: largest number of examples in a prompt, which come from the training split.
    """

    name: str
    offline_dir: str | None
    limit: int | None
    fewshot: int
    seed: int


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"prepare-benchmark {spec.name}")
    benchmark = benchmarks.BENCHMARKS[one_of(spec.name, benchmarks.BENCHMARKS, "name")]
    documents, licence, origin = benchmarks.read(spec.name, benchmark.split, spec.offline_dir)
    evaluated = benchmarks.subset(spec.name, documents, spec.limit, spec.seed)
    examples = benchmarks.examples(spec.name, benchmark.split, list(evaluated.values()), evaluated)
    rows = [
        document | {benchmarks.SPLIT: "evaluation", benchmarks.MARK: mark(example)}
        for document, example in zip(evaluated.values(), examples, strict=True)
    ]
    if spec.fewshot:
        if benchmark.train is None:
            raise ConfigError(f"evaluation.fewshot: {spec.name} has no training split with examples; leave it out")
        pool, *_ = benchmarks.read(spec.name, benchmark.train, spec.offline_dir)
        benchmarks.require_pool(spec.name, spec.fewshot, len(pool))
        benchmarks.examples(spec.name, benchmark.train, pool)  # raises an error for a document without a prompt
        rows += [document | {benchmarks.SPLIT: "examples"} for document in pool]
    progress.say(f"{len(evaluated)} of {len(documents)} documents from {origin}")
    head = header("prepare-benchmark", spec, inputs) | {"origin": origin, "licence": licence}
    artifacts.write_table(outputs.documents, benchmarks.SCHEMA, pa.Table.from_pylist(rows), head)
