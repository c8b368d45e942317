"""Compare the published claims with the study's final tables and give each a verdict."""

from pathlib import Path

from shadowcore import artifacts
from shadowcore.report import claims, tables
from shadowcore.schemas import CLAIMS
from shadowcore.stages.base import Frozen, Outputs, header
from shadowcore.stages.base import OfPart as Spec


class Inputs(Frozen):
    """tables: the final tables but this one; published: the published values (shadowcore/report/published.csv)."""

    tables: tuple[Path, ...]
    published: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    rows = claims.judge(tables.read_files(inputs.tables), inputs.published)
    artifacts.write_table(outputs.claims, CLAIMS.schema, CLAIMS.build(rows), header("judge-claims", spec, inputs))
