"""Join the measurements of all jobs into the study's final tables, which `check-tables` then checks."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from shadowcore import artifacts, manifests, schemas
from shadowcore.report import tables
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.outcomes import grouped
from shadowcore.stages.base import Frozen, Outputs, header
from shadowcore.stages.base import OfPart as Spec


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
    outcomes = grouped(schemas.OUTCOMES.read(path) for path in manifests.outcomes(inputs.evaluations))
    predictors = joined(inputs.trainings, schemas.PREDICTORS)
    final = {
        "accuracy": schemas.ACCURACY.build(tables.accuracy(outcomes)),
        "perplexity": schemas.PERPLEXITY.build(tables.perplexity(outcomes)),
        "comparisons": schemas.COMPARISONS.build(tables.comparisons(outcomes, predictors.to_pylist())),
        "best_at_bytes": schemas.BEST_AT_BYTES.build(best_at_bytes(outcomes)),
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


def joined(paths: tuple[Path, ...], table: schemas.Table) -> pa.Table:
    """The rows of several files of one schema, in the order of the files."""
    parts = [table.read(path).replace_schema_metadata(None) for path in paths]
    return pa.concat_tables(parts) if parts else table.build([])


def distinct(table: pa.Table) -> pa.Table:
    """The rows without duplicates; the first of equal rows is kept."""
    return pa.Table.from_pandas(table.to_pandas().drop_duplicates(), schema=table.schema, preserve_index=False)
