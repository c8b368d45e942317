"""Make tables and page of a study in which some jobs failed, from the results of the others.

Snakemake runs a job only when all its inputs exist, so it makes no tables if one job failed. Its `onerror:` calls
`report`, which runs the last stages on the existing files. The header of each output names the missing results with
reasons, and `states.done` does not count it as finished.
"""

import json
import shutil
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shadowcore import artifacts, cli, logs, manifests, plan
from shadowcore.jobs import Files, Jobs, as_json, options
from shadowcore.provenance import fingerprint
from shadowcore.report import PUBLISHED
from shadowcore.report.tables import read_files
from shadowcore.rules import RULES, name_of, outputs
from shadowcore.stages.base import Missing
from shadowcore.work import Work

NOT_RUN = "not run, because a job before it did not succeed"
Named = dict[str, "list[Path]"]
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
        self.missing = [Missing(place, sentence(logs.of(self.jobs.root, place))) for place in sorted(self.failed)]
        others = [work for place, work in self.work.items() if place not in self.failed and not RULES[work.rule].joins]
        for rule, count in Counter(work.rule for work in others).items():
            self.missing.append(Missing(f"{count} {'job' if count == 1 else 'jobs'} of {rule}", NOT_RUN))


def sentence(log: Path) -> str:
    """The error in the log of a failed job."""
    return (logs.read(log).error or logs.NO_MESSAGE) if log.is_file() else NO_LOG


def report(ended: Ended, introduction: Path) -> None:
    """Make what the run did not make of its measurements; a step that fails is added to the missing results."""
    jobs, stale = ended.jobs, set()
    for work in ended.work.values():
        written = outputs(jobs.root, work.rule, work.name)
        stale.update(written)  # an unfinished job would write them again
        for path in written if RULES[work.rule].joins else ():  # as Snakemake does before it runs a job
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def existing(files: Files) -> Named:
        return {option: [path for path in map(Path, paths) if path.exists()] for option, paths in files.items()}

    measured = {
        option: [path for path in paths if path not in stale]
        for option, paths in existing(jobs.inputs("aggregate")).items()
    }
    _step(ended, "aggregate", measured | {"evaluations": [*measured["evaluations"], *_of_failed(ended)]})
    tables = existing(jobs.inputs("check_tables"))
    if tables["tables"]:
        _step(ended, "check_tables", tables)
    shown: Named = {"tables": [], "drawn": []}
    if all(map(Path.exists, outputs(jobs.root, "check_tables", ""))):  # no impossible values are judged, drawn or shown
        _step(ended, "judge_claims", existing(jobs.inputs("judge_claims")) | {"published": PUBLISHED})
        models = set().union(*(frame["model"] for frame in read_files(tables["tables"]).values()))
        for model in (model for model in jobs.study.models if model in models):
            _step(ended, "draw", existing(jobs.inputs("draw", model)), model)
        shown = existing(jobs.inputs("write_page"))
    _step(ended, "write_page", shown | {"introduction": introduction})


def _of_failed(ended: Ended) -> Iterator[Path]:
    """Lists of outcomes that evaluations wrote before they failed, from the present code and specification."""
    jobs = ended.jobs
    for model, data, part in jobs.evaluations:
        path = manifests.unfinished(jobs.root / "outcomes" / model / data / f"{part}.json")
        if f"evaluate/{model}/{data}/{part}" in ended.failed and path.is_file():
            header, rule = artifacts.read_header(path), "evaluate_oracle" if part == manifests.ORACLE else "evaluate"
            wanted = fingerprint(f"shadowcore.stages.{rule}"), json.loads(as_json(jobs.evaluate(model, data, part)))
            if (header["code"], header["spec"]) == wanted:
                yield path


def _step(ended: Ended, rule: str, inputs: Mapping[str, Any], *values: str) -> None:
    """Run a stage of the report like its rule, if it must run; any exception is added to `missing`."""
    jobs, place = ended.jobs, Work(rule, name_of(rule, *values)).place
    if place not in ended.work or place in ended.failed:  # Snakemake made it, or tried to
        return
    spec = json.loads(jobs.spec(rule, *values)) | {"missing": ended.missing}
    words = ["--spec", as_json(spec), *options({**inputs, **jobs.outputs(rule, *values)})]
    log = logs.of(jobs.root, place)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as handle, redirect_stderr(handle):
        try:
            cli.main([rule.replace("_", "-"), *words])
        except Exception:
            traceback.print_exc(file=handle)
    if (error := logs.read(log).error) is not None:
        ended.missing.append(Missing(place, error))


def end_of_run(ended: Ended) -> list[str]:
    """The last lines in the terminal: each failed job with its error and its log, and where the results are."""
    jobs, failed = ended.jobs, sorted(ended.failed)
    lines = [f"{len(failed)} {'job' if len(failed) == 1 else 'jobs'} failed:"] if failed else []
    for place in failed:
        log = logs.of(jobs.root, place)
        lines += [f"  {place}: {sentence(log)}", f"    log: {log}"]
    lines += [f"  {one.job}: {one.reason}" for one in ended.missing if one.job not in ended.failed]
    page = jobs.root / "index.html"
    if "write_page" in ended.work and page.is_file():
        lines.append(f"The tables and the page {page} show the results of the other jobs, and name what is missing.")
    return [*lines, "Fix the cause, then start the same command again: it runs only the missing jobs."]
