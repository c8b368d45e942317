"""Make tables and page of a study in which some jobs failed, from the results of the others.

Snakemake runs a job only when all its inputs exist, so it makes no tables if one job failed. Its `onerror:` calls
`report`, which runs the last stages on the existing files. The header of each output names the missing results with
reasons, and `states.done` does not count it as finished.
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
from shadowcore.report import PUBLISHED
from shadowcore.report.tables import read_files
from shadowcore.schemas import MEASURED_TABLES
from shadowcore.stages import aggregate, check_tables, draw, judge_claims, write_page
from shadowcore.stages.base import Missing, to_json
from shadowcore.states import REPORT, outputs

NOT_RUN = "not run, because a job before it did not succeed"
NO_LOG = "it left no log; see the output of Snakemake"


@dataclass
class Ended:
    """The end of a run of Snakemake: the jobs that failed, and all jobs that did not finish.

    A job is named by its place, such as "evaluate/tiny/words/dense/0" (`Work.place`).
    """

    jobs: Jobs
    failed: Collection[str]
    unfinished: Collection[str]
    missing: list[Missing] = field(init=False)

    def __post_init__(self):
        unfinished = set(self.unfinished)
        self.work = {work.place: work for work in plan.work(self.jobs) if work.place in unfinished}
        self.missing = [Missing(place, sentence(log_of(self.jobs, place))) for place in sorted(self.failed)]
        others = [work for place, work in self.work.items() if place not in self.failed and work.rule not in REPORT]
        for rule, count in Counter(work.rule for work in others).items():
            self.missing.append(Missing(f"{count} {'job' if count == 1 else 'jobs'} of {rule}", NOT_RUN))

    def made_again(self, place: str) -> bool:
        """Whether this step of the report did not run because an input was missing, so that we must run it."""
        return place in self.work and place not in self.failed


def log_of(jobs: Jobs, place: str) -> Path:
    """The log of a job."""
    return jobs.root / "logs" / f"{place}.log"


def sentence(log: Path) -> str:
    """The error in the log of a failed job."""
    return (logs.read(log).error or logs.NO_MESSAGE) if log.is_file() else NO_LOG


def report(ended: Ended, introduction: Path) -> None:
    """Make the tables, figures and page that the run did not make, from its measurements.

    introduction: text of the page. If a step fails, it is added to the missing results, and the others continue.
    """
    jobs = ended.jobs
    stale = {path for work in ended.work.values() for path in outputs(jobs.root, work.rule, work.name)}
    for work in ended.work.values():
        if work.rule in REPORT:  # as Snakemake does before it runs a job
            for path in outputs(jobs.root, work.rule, work.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def there(*paths: str) -> tuple[Path, ...]:
        """The files that exist and that no unfinished job would write again."""
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
    if not record.exists():  # tables with impossible values are not judged, drawn or shown
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
    """The existing inputs of `aggregate`."""
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
    """Lists of outcomes that evaluations wrote before they failed, from the present code and specification."""
    jobs = ended.jobs
    for (model, data, part), conditions in jobs.evaluations.items():
        path = manifests.unfinished(jobs.root / "outcomes" / model / data / f"{part}.json")
        if f"evaluate/{model}/{data}/{part}" in ended.failed and path.is_file():
            header, params = artifacts.read_header(path), jobs.evaluate(conditions)
            if (header["code"], header["spec"]) == (params["code"], json.loads(params["spec"])):
                yield path


def _draw(ended: Ended, measured: tuple[Path, ...]) -> tuple[Path, ...]:
    """Draw the figures of all models with rows; returns the records of all models with figures."""
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
    """Run a stage of the report like its rule, with the same log, if it must run; a failure is added to `missing`.

    Any exception counts as a failure, so that a figure that cannot handle missing rows does not prevent the page.
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
    """The last lines in the terminal: each failed job with its error and its log, and where the results are."""
    jobs, failed = ended.jobs, sorted(ended.failed)
    lines = [f"{len(failed)} {'job' if len(failed) == 1 else 'jobs'} failed:"] if failed else []
    for place in failed:
        log = log_of(jobs, place)
        lines += [f"  {place}: {sentence(log)}", f"    log: {log}"]
    lines += [f"  {one.job}: {one.reason}" for one in ended.missing if one.job not in ended.failed]
    page = jobs.root / "index.html"
    if "write_page" in ended.work and page.is_file():
        lines.append(f"The tables and the page {page} show the results of the other jobs, and name what is missing.")
    return [*lines, "Fix the cause, then start the same command again: it runs only the missing jobs."]
