"""Join the measurements of all jobs into the study's final tables, which `check-tables` then checks.

The outcomes of all documents are kept in one file, from which every estimate and interval can be computed again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from shadowcore import artifacts, manifests, schemas
from shadowcore.report import tables
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.outcomes import grouped
from shadowcore.stages.base import Frozen, Outputs, header
from shadowcore.stages.base import OfPart as Spec

AT_ONCE = 2**18  # outcomes in a part of their file: few enough for the memory, many enough to compress well


class Inputs(Frozen):
    """evaluations: manifests; the outcome files that they list are read, too."""

    evaluations: tuple[Path, ...]
    scores: tuple[Path, ...]
    qualities: tuple[Path, ...]
    trainings: tuple[Path, ...]
    latencies: tuple[Path, ...]
    repeats: tuple[Path, ...]
    refusals: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    files = manifests.outcomes(inputs.evaluations)
    predictors = joined(inputs.trainings, schemas.PREDICTORS)
    final = estimates(map(schemas.OUTCOMES.read, files), predictors) | {
        "criteria": joined(inputs.scores, schemas.CRITERIA),
        # the jobs of several predictors report the same constant predictor
        "quality": distinct(joined(inputs.qualities, schemas.QUALITY)),
        "predictors": predictors,
        "latency": joined(inputs.latencies, schemas.LATENCY),
        "latency_repeats": joined(inputs.repeats, schemas.LATENCY_REPEATS),
        "refused": joined(inputs.refusals, schemas.REFUSED),
    }
    # measured times differ from run to run, so only headers of timed tables have their hashes
    timed = header("aggregate", spec, inputs)
    untimed = header("aggregate", spec, replace(inputs, latencies=(), repeats=(), refusals=()))
    for name, table in final.items():
        head = timed if name in schemas.TIMED_TABLES else untimed
        artifacts.write_table(getattr(outputs, name), schemas.FINAL_TABLES[name].schema, table, head)
    documents = schemas.OUTCOMES
    artifacts.write_parts(outputs.outcomes, documents.schema, documents.arrow, in_parts(files), untimed)


def estimates(outcomes: Iterable[pa.Table], predictors: pa.Table) -> dict[str, pa.Table]:
    """The tables that are made of outcomes, such as those in a study's `outcomes.parquet`, and of PREDICTORS."""
    documents = grouped(outcomes)
    rows = {
        "accuracy": tables.accuracy(documents),
        "perplexity": tables.perplexity(documents),
        "comparisons": tables.comparisons(documents, predictors.to_pylist()),
        "best_at_bytes": best_at_bytes(documents),
    }
    return {name: schemas.FINAL_TABLES[name].build(made) for name, made in rows.items()}


def in_parts(files: Iterable[Path]) -> Iterator[pa.Table]:
    """The outcomes of all files, those of several files at a time."""
    part = []
    for path in files:
        part.append(schemas.OUTCOMES.read(path).replace_schema_metadata(None))
        if sum(map(len, part)) >= AT_ONCE:
            yield pa.concat_tables(part)
            part = []
    if part:
        yield pa.concat_tables(part)


def joined(paths: tuple[Path, ...], table: schemas.Table) -> pa.Table:
    """The rows of several files of one schema, in the order of the files."""
    parts = [table.read(path).replace_schema_metadata(None) for path in paths]
    return pa.concat_tables(parts) if parts else table.build([])


def distinct(table: pa.Table) -> pa.Table:
    """The rows without duplicates; the first of equal rows is kept."""
    return pa.Table.from_pandas(table.to_pandas().drop_duplicates(), schema=table.schema, preserve_index=False)
