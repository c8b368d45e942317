"""Write a study's page: one HTML file with its tables, figures, configuration and origin."""

from pathlib import Path
from typing import Any

from shadowcore import atomic
from shadowcore.report import drawn, tables
from shadowcore.report.page import page
from shadowcore.stages.base import Frozen, Missing, Outputs, header


class Spec(Frozen):
    """configuration: of the study, without defaults; missing: jobs without results, if a part of it was measured."""

    configuration: dict[str, Any]
    missing: tuple[Missing, ...] = ()


class Inputs(Frozen):
    """tables: the final tables; drawn: the record of `draw` for each model; introduction: reStructuredText."""

    tables: tuple[Path, ...]
    drawn: tuple[Path, ...]
    introduction: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    frames = tables.read_files(inputs.tables)
    figures = drawn.read(inputs.drawn)
    files = (*inputs.tables, *(path for figure in figures for path in figure.files.values()))
    introduction = inputs.introduction.read_text(encoding="utf-8")
    text = page(spec.configuration, frames, figures, introduction, header("write-page", spec, inputs), files)
    with atomic.replacing(outputs.page) as partial:
        partial.write_text(text, encoding="utf-8")
