"""`shadowcore status`: show the state of a study's jobs and the estimated time left.

Only files, logs and `benchmark:` files are read, so it can be used while Snakemake runs. It does not show whether
finished jobs must run again because code or inputs have changed; `snakemake -n` does.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from shadowcore import logs
from shadowcore.commands import console, new_table, say
from shadowcore.config import load_study
from shadowcore.jobs import Jobs
from shadowcore.states import STATES, Job, counted, duration, states, summary

SILENT = 600.0  # seconds without output after which a running job is shown as silent


def options(parser: argparse.ArgumentParser) -> None:
    default = Path("config/quick.yaml")
    parser.add_argument("config", type=Path, nargs="?", default=default, help=f"configuration (default: {default})")


def run(parsed: argparse.Namespace) -> None:
    jobs = Jobs(load_study(parsed.config))
    print_status(states(jobs, time.time()), time.time(), console())


def print_status(jobs: Sequence[Job], now: float, out: Console) -> None:
    """Print a line per stage with its estimated end, then running jobs, and failed jobs with error and log."""
    count = counted(jobs)
    table = new_table("stage", "jobs", *STATES, "took", "left", "ends about")
    left = 0.0
    for rule in dict.fromkeys(job.work.rule for job in jobs):
        part = [job for job in jobs if job.work.rule == rule]
        numbers = [sum(job.state == state for job in part) for state in STATES]
        waits = sum(job.left for job in part)
        left += waits
        unfinished = numbers[0] < len(part)
        ends = _clock(now + left / count["running"], now) if unfinished and count["running"] else ""
        took = sum(job.seconds for job in part if job.state == "done")
        cells = [*(str(number or "") for number in numbers), duration(took)]
        cells += [duration(waits) if unfinished else "", ends]
        table.add_row(rule, str(len(part)), *cells)
    out.print(table)
    for line in (summary(jobs, count["running"]), *_lines(jobs)):
        say(out, line)


def _lines(jobs: Sequence[Job]) -> Iterator[str]:
    """A line for every running, failed or interrupted job, and one line for jobs whose files are missing."""
    for job in jobs:
        name = job.work.place
        if job.state == "running":
            steps = f", step {job.content.done} of {job.content.total}" if job.content.total else ""
            silent = f", silent for {duration(job.silent)}" if job.silent > SILENT else ""
            yield f"running  {name}: {duration(job.seconds)}{steps}, about {duration(job.left)} left{silent}"
        if job.state == "failed":
            yield f"failed   {name}: {job.content.error} ({job.log})"
        if job.state == "interrupted":
            yield f"interrupted  {name}: {logs.NO_MESSAGE} ({job.log})"
    if deleted := [job.work.place for job in jobs if job.deleted]:
        count = "1 finished job" if len(deleted) == 1 else f"{len(deleted)} finished jobs"
        yield f"{count} must run again, because files are missing: {_some(deleted)}"


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _clock(then: float, now: float) -> str:
    """The time of day, with the date if it is on another day."""
    form = "%H:%M" if time.localtime(then)[:3] == time.localtime(now)[:3] else "%d %b %H:%M"
    return time.strftime(form, time.localtime(then))
