"""Tables and page of a study of which some jobs failed: made of what there is, and saying what is missing and why.

Snakemake runs a job only when all of its inputs are there, so it makes no table of a study that lost one condition.
Its `onerror:` calls `report`, which runs the last stages over the files that exist. The header of each file that they
write names what is missing, and `states.done` takes no such file for a finished one.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from shadowcore import artifacts, logs, manifests, plan
from shadowcore.errors import ShadowcoreError
from shadowcore.jobs import Jobs
from shadowcore.report.claims import PUBLISHED
from shadowcore.report.tables import read_files
from shadowcore.schemas import MEASURED_TABLES
from shadowcore.stages import aggregate, check_tables, draw, judge_claims, write_page
from shadowcore.stages.base import Missing, to_json
from shadowcore.states import REPORT, outputs

NOT_RUN = "not run, because a job before it did not succeed"
NO_LOG = "it left no log; what Snakemake printed about it says more"


@dataclass
class Ended:
    """How a run of Snakemake ended: the jobs that failed, and all jobs that it should have done and did not.

    A job is named by its place, such as "evaluate/tiny/words/dense/0" (`Work.place`).
    """

    jobs: Jobs
    failed: Collection[str]
    unfinished: Collection[str]
    missing: list[Missing] = field(init=False)

    def __post_init__(self):
        self.works = {work.place: work for work in plan.work(self.jobs) if work.place in set(self.unfinished)}
        self.missing = [Missing(place, sentence(log_of(self.jobs, place))) for place in sorted(self.failed)]
        others = [work for place, work in self.works.items() if place not in self.failed and work.rule not in REPORT]
        for rule, count in Counter(work.rule for work in others).items():
            self.missing.append(Missing(f"{count} {'job' if count == 1 else 'jobs'} of {rule}", NOT_RUN))

    def made_again(self, place: str) -> bool:
        """Whether this step of the report is ours to make: it did not run, because an input was missing."""
        return place in self.works and place not in self.failed


def log_of(jobs: Jobs, place: str) -> Path:
    """The log of a job."""
    return jobs.root / "logs" / f"{place}.log"


def sentence(log: Path) -> str:
    """Why a job failed, by its log."""
    return (logs.read(log).error or logs.NO_MESSAGE) if log.is_file() else NO_LOG


def report(ended: Ended, introduction: Path) -> None:
    """Make those tables, figures and pages that the run left out, of what it measured.

    introduction: of the page. A step that fails, too, costs only what needs it, and is added to what is missing.
    """
    jobs = ended.jobs
    stale = {path for work in ended.works.values() for path in outputs(jobs.root, work.rule, work.name)}
    for work in ended.works.values():
        if work.rule in REPORT:  # as Snakemake does before it makes a file again
            for path in outputs(jobs.root, work.rule, work.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def there(*paths: str) -> tuple[Path, ...]:
        """Those files that exist and that no unfinished job would write anew."""
        return tuple(path for path in map(Path, paths) if path not in stale and path.exists())

    tables = [Path(path) for path in jobs.tables(MEASURED_TABLES)]
    _step(
        ended, "aggregate", aggregate, aggregate.Spec(tuple(ended.missing)), _measurements(ended, there),
        aggregate.Outputs(**{path.stem: path for path in tables}),
    )  # fmt: skip
    measured, record = tuple(filter(Path.exists, tables)), jobs.root / "checks" / "tables.json"
    if measured:
        _step(
            ended, "check_tables", check_tables, check_tables.Spec(tuple(ended.missing)),
            check_tables.Inputs(measured), check_tables.Outputs(record),
        )  # fmt: skip
    if not record.exists():  # nothing is judged, drawn or shown of tables that no measurement can have made
        measured = ()
    claims = Path(*jobs.tables(["claims"]))
    if measured:
        _step(
            ended, "judge_claims", judge_claims, judge_claims.Spec(tuple(ended.missing)),
            judge_claims.Inputs(measured, PUBLISHED), judge_claims.Outputs(claims),
        )  # fmt: skip
    drawn = _draw(ended, measured)
    shown = (*measured, claims) if measured and claims.exists() else measured
    spec = json.loads(jobs.write_page()["spec"]) | {"missing": tuple(ended.missing)}
    _step(
        ended, "write_page", write_page, write_page.Spec(**spec),
        write_page.Inputs(shown, drawn, introduction),
        write_page.Outputs(jobs.root / "index.html"),
    )  # fmt: skip


def _measurements(ended: Ended, there: Callable[..., tuple[Path, ...]]) -> aggregate.Inputs:
    """What `aggregate` reads, as far as it is there."""
    jobs = ended.jobs
    predictors, latencies = jobs.predictors(), jobs.latencies()
    return aggregate.Inputs(
        evaluations=there(*jobs.manifests()) + tuple(_of_failed(ended)),
        scores=there(*jobs.scores()),
        qualities=there(*(f"{stem}.quality.parquet" for stem in predictors)),
        trainings=there(*(f"{stem}.training.parquet" for stem in predictors)),
        latencies=there(*(f"{stem}.parquet" for stem in latencies)),
        repeats=there(*(f"{stem}.repeats.parquet" for stem in latencies)),
        refusals=there(*(f"{stem}.refused.parquet" for stem in latencies)),
    )


def _of_failed(ended: Ended) -> Iterator[Path]:
    """Lists of the conditions that failed evaluations measured before they failed, as they were to measure them."""
    jobs = ended.jobs
    for (model, data, part), conditions in jobs.evaluations.items():
        path = manifests.unfinished(jobs.root / "outcomes" / model / data / f"{part}.json")
        if f"evaluate/{model}/{data}/{part}" in ended.failed and path.is_file():
            made, wanted = artifacts.read_header(path), jobs.evaluate(conditions)
            if (made["code"], made["spec"]) == (wanted["code"], json.loads(wanted["spec"])):
                yield path


def _draw(ended: Ended, measured: tuple[Path, ...]) -> tuple[Path, ...]:
    """Draw the figures of every model that has rows; returns the records of all models that have figures."""
    if not measured:
        return ()
    frames, drawn = read_files(measured), []
    models = set().union(*(frame["model"] for frame in frames.values()))
    for model in ended.jobs.study.models:
        record = outputs(ended.jobs.root, "draw", model)[0]
        spec = draw.Spec(model, tuple(ended.missing))
        if model in models:
            files = draw.Outputs(record, tuple(map(Path, ended.jobs.figure_files(model))))
            _step(ended, f"draw/{model}", draw, spec, draw.Inputs(measured), files)
        drawn += [record] if record.exists() else []
    return tuple(drawn)


def _step(ended: Ended, place: str, module: ModuleType, spec: Any, inputs: Any, results: Any) -> None:
    """Run a stage as its rule would, with the same log, if it is ours to run. Its failure is added to what is missing.

    Any exception: half a study may be something that a figure was never drawn of, and the page is made all the same.
    """
    if not ended.made_again(place):
        return
    log = log_of(ended.jobs, place)
    log.parent.mkdir(parents=True, exist_ok=True)
    stage = module.__name__.rpartition(".")[2].replace("_", "-")
    with open(log, "w", encoding="utf-8") as handle, redirect_stderr(handle):
        started = time.time()
        print(logs.heading([stage, "--spec", to_json(spec), *_words(inputs), *_words(results)], started), file=handle)
        try:
            module.run(spec, inputs, results)
            print(logs.ending(started), file=handle)
        except ShadowcoreError as error:
            print(f"shadowcore {stage}: {error}", file=handle)
        except Exception:
            traceback.print_exc(file=handle)
    if (error := logs.read(log).error) is not None:
        ended.missing.append(Missing(place, error))


def _words(files: Any) -> Iterable[str]:
    """The options that name a stage's files on the command line."""
    for name, paths in vars(files).items():
        yield f"--{name.replace('_', '-')}"
        yield from map(str, paths if isinstance(paths, tuple) else [paths])


def end_of_run(ended: Ended) -> list[str]:
    """What the terminal shows last: each failed job with its own sentence and its log, and where the rest is."""
    jobs, failed = ended.jobs, sorted(ended.failed)
    lines = [f"{len(failed)} {'job' if len(failed) == 1 else 'jobs'} failed:"] if failed else []
    for place in failed:
        log = log_of(jobs, place)
        lines += [f"  {place}: {sentence(log)}", f"    log: {log}"]
    others = [one for one in ended.missing if one.job not in ended.failed]
    lines += [f"  {one.job}: {one.reason}" for one in others]
    page = jobs.root / "index.html"
    if "write_page" in ended.works and page.is_file():
        lines.append(f"The tables and the page, {page}, are made of the other jobs, and name what is missing.")
    return [*lines, "Start the same command again when the cause is mended: it runs only what is missing."]
