"""Check that a study does not measure on documents from which its scores and predictors were made."""

from pathlib import Path

import pyarrow.compute as pc

from shadowcore import artifacts, benchmarks
from shadowcore.errors import ConfigError
from shadowcore.paragraphs import mark, paragraphs, visible
from shadowcore.stages.base import Frozen, Outputs, header
from shadowcore.texts.documents import DOCUMENTS

SCHEMA = "disjoint/1"


class Spec(Frozen):
    """Names of the calibration text and of the evaluated text."""

    calibration: str
    data: str


class Inputs(Frozen):
    """calibrated, evaluated: documents of the two texts; benchmarks: files of the benchmarks that are measured, too."""

    calibrated: Path
    evaluated: Path
    benchmarks: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    table = DOCUMENTS.read(inputs.calibrated)
    seen = set()
    for content in table.filter(pc.not_equal(table["split"], "evaluation"))["text"].to_pylist():
        # an evaluated document may be one paragraph or one line of a calibration document
        seen.update(map(mark, [content, *paragraphs(content), *filter(visible, content.splitlines())]))
    table = DOCUMENTS.read(inputs.evaluated)
    evaluated = table.filter(pc.equal(table["split"], "evaluation"))["text"].to_pylist()
    record = {spec.data: _refuse(spec, f"text '{spec.data}'", [*map(mark, evaluated)], seen)}
    for path in inputs.benchmarks:
        table = artifacts.read_table(path, benchmarks.SCHEMA)
        marks = table.filter(pc.equal(table[benchmarks.SPLIT], "evaluation"))[benchmarks.MARK].to_pylist()
        record[path.stem] = _refuse(spec, f"benchmark '{path.stem}'", marks, seen)
    artifacts.write_record(outputs.record, SCHEMA, {"documents": record}, header("check-disjoint", spec, inputs))


def _refuse(spec: Spec, what: str, marks: list[str], seen: set[str]) -> int:
    """The number of evaluated documents; ConfigError if `seen` has one of them."""
    if shared := sum(mark in seen for mark in marks):
        raise ConfigError(
            f"calibration text '{spec.calibration}' contains {shared} of the {len(marks)} documents of {what}; they "
            "must be disjoint; use another calibration text, or another split of this one"
        )
    return len(marks)
