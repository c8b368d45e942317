"""`shadowcore status`: which jobs of a study are done, run, failed or wait, and when the rest may end.

Read from the study's logs and `benchmark:` files alone: nothing is locked, and no running Snakemake is disturbed.
Whether a finished job will have to run again, as its code or its inputs are others now, `snakemake -n` tells.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from shadowcore import logs, plan
from shadowcore.commands import console
from shadowcore.config import load_study
from shadowcore.jobs import Jobs

STATES = ("done", "running", "failed", "waiting")
SILENT = 600.0  # seconds after which a running job that says nothing is told


@dataclass(frozen=True)
class Job:
    """One job as it stands: seconds it took or has run so far, and those it may still need."""

    work: plan.Work
    state: str
    seconds: float
    left: float
    log: Path
    said: logs.Log
    silent: float = 0.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="the configuration that runs, such as config/quick.yaml")


def run(parsed: argparse.Namespace) -> None:
    jobs = Jobs(load_study(parsed.config))
    print_status(status(jobs, time.time()), time.time(), console())


def status(jobs: Jobs, now: float) -> list[Job]:
    """Every job of a study as it stands at `now`, seconds since 1970, in the order of the stages."""
    works = plan.work(jobs)
    order = list(plan.MEMORY)
    expected = expectations(jobs.root, works, plan.measured_rates(jobs))
    return [_job(jobs.root, one, expected[one], now) for one in sorted(works, key=lambda one: order.index(one.rule))]


def expectations(root: Path, works: Sequence[plan.Work], rates: Mapping[str, float]) -> dict[plan.Work, float]:
    """Seconds of every job: as measured of its like, else at the rate of all that was measured, else as planned."""
    measured: dict[str, list[float]] = {}
    for one in works:
        if (seconds := plan.measured_seconds(root, one)) is not None:
            measured.setdefault(one.rule, []).append(seconds)
    if rates:
        slowest = min(rates.values())  # of what this machine is known to make
        rates = {one.rule: slowest for one in works} | dict(rates)
    return {
        one: sum(measured[one.rule]) / len(measured[one.rule])
        if one.rule in measured and not one.flops
        else one.seconds(rates)
        for one in works
    }


def _job(root: Path, work: plan.Work, expected: float, now: float) -> Job:
    log = root / "logs" / f"{work.place}.log"
    took = plan.measured_seconds(root, work)
    if not log.is_file():
        return Job(work, "waiting" if took is None else "done", took or 0, 0 if took else expected, log, logs.Log())
    said, written = logs.read(log), log.stat().st_mtime
    if said.finished or (took is not None and not said.command):  # a log of before there were headings
        return Job(work, "done", took or 0, 0, log, said)
    ran = now - (said.started or written)
    if said.error or said.gone:
        return Job(work, "failed", ran, expected, log, said)
    left = max(expected - ran, 0) if said.left is None else max(said.left - (now - written), 0)
    return Job(work, "running", ran, left, log, said, now - written)


def print_status(jobs: Sequence[Job], now: float, out: Console) -> None:
    """A line per stage with its estimated end, what runs, and what failed with its error and its log."""
    count = {state: sum(job.state == state for job in jobs) for state in STATES}
    together = max(count["running"], 1)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("stage")
    for name in ("jobs", *STATES, "took", "left", "ends about"):
        table.add_column(name, justify="right")
    left = 0.0
    for rule in dict.fromkeys(job.work.rule for job in jobs):
        part = [job for job in jobs if job.work.rule == rule]
        numbers = [sum(job.state == state for job in part) for state in STATES]
        waits = sum(job.left for job in part)
        left += waits
        unfinished = numbers[0] < len(part)
        ends = [_time(waits), _clock(now + left / together, now)] if unfinished else ["", ""]
        took = sum(job.seconds for job in part if job.state == "done")
        table.add_row(rule, str(len(part)), *(str(one or "") for one in numbers), _time(took), *ends)
    out.print(table)
    words = f"{count['done']} of {len(jobs)} jobs done"
    if count["done"] < len(jobs):
        words += f"; with {together} at a time, as now, " if count["running"] else "; one at a time, "
        words += f"about {_time(left / together)} left"
    out.print(words, highlight=False)
    for job in jobs:
        name = job.work.place
        if job.state == "running":
            steps = f", step {job.said.done} of {job.said.total}" if job.said.total else ""
            silent = f", silent for {_time(job.silent)}" if job.silent > SILENT else ""
            line = f"running  {name}: {_time(job.seconds)}{steps}, about {_time(job.left)} left{silent}"
            out.print(line, highlight=False, markup=False, soft_wrap=True)
        if job.state == "failed":
            why = job.said.error or "its process ended without a word"
            out.print(f"failed   {name}: {why} ({job.log})", highlight=False, markup=False, soft_wrap=True)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _clock(then: float, now: float) -> str:
    """The time of day, with the date where it is another day's."""
    form = "%H:%M" if time.localtime(then)[:3] == time.localtime(now)[:3] else "%d %b %H:%M"
    return time.strftime(form, time.localtime(then))
