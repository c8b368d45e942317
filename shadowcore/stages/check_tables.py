"""Check the final tables for impossible values; figures are only drawn if there are none."""

from pathlib import Path

from shadowcore import artifacts
from shadowcore.errors import ArtifactError
from shadowcore.report import checks
from shadowcore.schemas import FINAL_TABLES, TIMED_TABLES
from shadowcore.stages.base import Frozen, Outputs, Progress, header
from shadowcore.stages.base import OfPart as Spec

SCHEMA = "checked/1"


class Inputs(Frozen):
    """tables: the final tables, <name>.parquet."""

    tables: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("check-tables")
    rows, warnings = {}, []
    for path in inputs.tables:
        table = FINAL_TABLES[path.stem].read(path)
        try:
            warnings += checks.check({path.stem: table})
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
        rows[path.stem] = len(table)
    for warning in warnings:
        progress.say(f"warning: {warning}")
    # measured times differ from run to run, so the header does not have the hashes of their tables
    untimed = Inputs(tuple(path for path in inputs.tables if path.stem not in TIMED_TABLES))
    record = {"rows": rows, "warnings": warnings}
    artifacts.write_record(outputs.record, SCHEMA, record, header("check-tables", spec, untimed))
