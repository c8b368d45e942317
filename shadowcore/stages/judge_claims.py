"""Compare the published claims with the study's final tables and give each a verdict."""

from pathlib import Path

from shadowcore import artifacts
from shadowcore.report import claims, tables
from shadowcore.report.outcomes import grouped
from shadowcore.schemas import CLAIMS, OUTCOMES
from shadowcore.stages.base import Frozen, Outputs, header
from shadowcore.stages.base import OfPart as Spec


class Inputs(Frozen):
    """tables: all final tables but this one; outcomes: of all documents, or none; published: report/published.csv."""

    tables: tuple[Path, ...]
    outcomes: tuple[Path, ...]
    published: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    documents = grouped(OUTCOMES.read_parts(inputs.outcomes))
    rows = claims.judge(tables.read_files(inputs.tables), documents, inputs.published)
    artifacts.write_table(outputs.claims, CLAIMS.schema, CLAIMS.build(rows), header("judge-claims", spec, inputs))
