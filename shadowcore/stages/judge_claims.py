"""Compare the published claims with the study's final tables and give each a verdict."""

from pathlib import Path

from shadowcore import artifacts
from shadowcore.report import claims, tables
from shadowcore.report.outcomes import grouped
from shadowcore.schemas import CLAIMS, OUTCOMES
from shadowcore.stages.base import Frozen, Outputs, header
from shadowcore.stages.base import OfPart as Spec


class Inputs(Frozen):
    """tables: the final tables but this one; outcomes: the file with those of all documents, if there is one;
    published: the published values (shadowcore/report/published.csv).
    """

    tables: tuple[Path, ...]
    outcomes: tuple[Path, ...]
    published: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    documents = grouped(part for path in inputs.outcomes for part in artifacts.read_parts(path, OUTCOMES.schema))
    rows = claims.judge(tables.read_files(inputs.tables), documents, inputs.published)
    artifacts.write_table(outputs.claims, CLAIMS.schema, CLAIMS.build(rows), header("judge-claims", spec, inputs))
