"""Draw the figures of one model that have something to show in the final tables."""

from dataclasses import dataclass
from pathlib import Path

from shadowcore import artifacts
from shadowcore.errors import one_of
from shadowcore.report import tables
from shadowcore.report.drawn import SCHEMA
from shadowcore.report.figures import FIGURES, TIMED_FIGURES, save
from shadowcore.stages.base import Missing, Progress, header


@dataclass(frozen=True)
class Spec:
    """model: whose rows are drawn; missing: jobs without results, if the tables are made of a part of the study."""

    model: str
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Inputs:
    tables: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    """drawn: record of the drawn figures, and of the reasons why others were left out (schema figures/1).

    figures: <name>.pdf and <name>.png for names in report.figures.FIGURES or TIMED_FIGURES, all in one folder; those
    with nothing to show are not written.
    """

    drawn: Path
    figures: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"draw {spec.model}")
    frames = tables.read_files(inputs.tables)
    head = header("draw", spec, inputs)
    hashes = dict(zip((path.stem for path in inputs.tables if path.is_file()), head["inputs"]["tables"], strict=True))
    stems = list(dict.fromkeys(path.with_suffix("") for path in outputs.figures))
    known = FIGURES | TIMED_FIGURES
    names = [one_of(stem.name, known, "--figures") for stem in stems]
    drawn, left_out = [], {}
    for done, (name, stem) in enumerate(zip(names, stems, strict=True), 1):
        asked = tables.Asked(frames)
        figure = known[name](asked, spec.model)
        stem.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(figure, str):
            left_out[name] = figure
        else:
            # only the tables that the figure uses, so that changed times do not change other figures
            read = {table: [sha256] for table, sha256 in hashes.items() if table in asked.names}
            save(figure, stem, head | {"inputs": read})
            drawn.append(name)
        progress(done, len(stems))
    artifacts.write_record(outputs.drawn, SCHEMA, {"drawn": drawn, "left_out": left_out}, head)
