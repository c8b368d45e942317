"""Write a study's page: one HTML file with its tables, figures, configuration and origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowcore import artifacts
from shadowcore.report import tables
from shadowcore.report.page import Drawn, page
from shadowcore.stages.base import Missing, Progress, Stage, header


@dataclass(frozen=True)
class Spec:
    """configuration: the study's, as it was written; missing: what the page lacks, where a part of it was measured."""

    configuration: dict[str, Any]
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """tables: the final tables; figures: PNG files that `draw` wrote; captions: <figure>.rst, and workflow.rst."""

    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    captions: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    page: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress("write-page")
    found = tables.read_files(inputs.tables)
    captions = {path.stem: path.read_text(encoding="utf-8") for path in inputs.captions}
    figures = []
    for path in inputs.figures:
        made = artifacts.read_header(path)
        figures.append(Drawn(made["spec"]["model"], path.stem, path, made["empty"]))
    made_of = header("write-page", spec, inputs)
    text = page(spec.configuration, found, figures, captions, made_of, (*inputs.tables, *inputs.figures))
    with artifacts.replacing(outputs.page) as partial:
        partial.write_text(text, encoding="utf-8")
    progress(1, 1)


STAGE = Stage(Spec, Inputs, Outputs, run)
