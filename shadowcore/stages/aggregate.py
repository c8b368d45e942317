"""Join the measurements of all jobs into the study's final tables, which `check-tables` then checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from shadowcore import artifacts, manifests
from shadowcore.report import tables
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.outcomes import grouped
from shadowcore.schemas import (
    ACCURACY,
    BEST_AT_BYTES,
    COMPARISONS,
    CRITERIA,
    FINAL_TABLES,
    LATENCY,
    LATENCY_REPEATS,
    OUTCOMES,
    PERPLEXITY,
    PREDICTORS,
    QUALITY,
    REFUSED,
    TIMED_TABLES,
    Table,
)  # fmt: skip
from shadowcore.stages.base import Missing, Progress, Stage, header


@dataclass(frozen=True)
class Spec:
    """missing: jobs without results, if the tables are made of a part of the study."""

    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """evaluations: manifests; the outcome files that they list are read, too."""

    evaluations: tuple[Path, ...]
    scores: tuple[Path, ...]
    qualities: tuple[Path, ...]
    trainings: tuple[Path, ...]
    latencies: tuple[Path, ...]
    repeats: tuple[Path, ...]
    refusals: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    accuracy: Path
    perplexity: Path
    comparisons: Path
    best_at_bytes: Path
    criteria: Path
    quality: Path
    predictors: Path
    latency: Path
    latency_repeats: Path
    refused: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("aggregate")
    outcomes = grouped(OUTCOMES.read(path) for path in manifests.outcomes(inputs.evaluations))
    predictors = joined(inputs.trainings, PREDICTORS)
    final = {
        "accuracy": ACCURACY.build(tables.accuracy(outcomes)),
        "perplexity": PERPLEXITY.build(tables.perplexity(outcomes)),
        "comparisons": COMPARISONS.build(tables.comparisons(outcomes, predictors.to_pylist())),
        "best_at_bytes": BEST_AT_BYTES.build(best_at_bytes(outcomes)),
        "criteria": joined(inputs.scores, CRITERIA),
        # the jobs of several predictors report the same constant predictor
        "quality": distinct(joined(inputs.qualities, QUALITY)),
        "predictors": predictors,
        "latency": joined(inputs.latencies, LATENCY),
        "latency_repeats": joined(inputs.repeats, LATENCY_REPEATS),
        "refused": joined(inputs.refusals, REFUSED),
    }
    # measured times differ from run to run, so only headers of timed tables have their hashes
    timed = header("aggregate", spec, inputs)
    untimed = header("aggregate", spec, replace(inputs, latencies=(), repeats=(), refusals=()))
    for name, table in final.items():
        head = timed if name in TIMED_TABLES else untimed
        artifacts.write_table(getattr(outputs, name), FINAL_TABLES[name].schema, table, head)
    progress(1, 1)


def joined(paths: tuple[Path, ...], table: Table) -> pa.Table:
    """The rows of several files of one schema, in the order of the files."""
    parts = [table.read(path).replace_schema_metadata(None) for path in paths]
    return pa.concat_tables(parts) if parts else table.build([])


def distinct(table: pa.Table) -> pa.Table:
    """The rows without duplicates; the first of equal rows is kept."""
    return pa.Table.from_pandas(table.to_pandas().drop_duplicates(), schema=table.schema, preserve_index=False)


STAGE = Stage(Spec, Inputs, Outputs, run)
