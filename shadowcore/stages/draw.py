"""Draw the figures of one model that have something to show in the final tables."""

from pathlib import Path

from shadowcore import artifacts
from shadowcore.errors import one_of
from shadowcore.report import tables
from shadowcore.report.drawn import SCHEMA
from shadowcore.report.figures import FIGURES, TIMED_FIGURES, save
from shadowcore.stages.base import Frozen, Missing, Outputs, Progress, header


class Spec(Frozen):
    """model: whose rows are drawn; figures: names in FIGURES or TIMED_FIGURES, by default all of FIGURES; missing: jobs
    without results, if the tables are made of a part of the study.
    """

    model: str
    figures: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()


class Inputs(Frozen):
    tables: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    """Write each figure to the folder `figures`, and to `drawn` which were drawn and why others were left out."""
    progress = Progress(f"draw {spec.model}")
    frames = tables.read_files(inputs.tables)
    head = header("draw", spec, inputs)
    hashes = dict(zip((path.stem for path in inputs.tables if path.is_file()), head["inputs"]["tables"], strict=True))
    outputs.figures.mkdir(parents=True, exist_ok=True)
    drawn, left_out, names = [], {}, spec.figures or tuple(FIGURES)
    known = FIGURES | TIMED_FIGURES
    for done, name in enumerate(names, 1):
        recorded = tables.RecordingTables(frames)
        figure = known[one_of(name, known, "--spec.figures")](recorded, spec.model)
        if isinstance(figure, str):
            left_out[name] = figure
        else:
            # only the tables that the figure uses, so that changed times do not change other figures
            read = {table: [sha256] for table, sha256 in hashes.items() if table in recorded.names}
            save(figure, outputs.figures / name, head | {"inputs": read})
            drawn.append(name)
        progress(done, len(names))
    artifacts.write_record(outputs.drawn, SCHEMA, {"drawn": drawn, "left_out": left_out}, head)
