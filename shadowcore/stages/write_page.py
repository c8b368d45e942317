"""Write a study's page: one HTML file with its tables, figures, configuration and origin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowcore import atomic
from shadowcore.report import drawn, tables
from shadowcore.report.page import page
from shadowcore.stages.base import Missing, Outputs, header


@dataclass(frozen=True)
class Spec:
    """configuration: of the study, without defaults; missing: jobs without results, if a part of it was measured."""

    configuration: dict[str, Any]
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Inputs:
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
