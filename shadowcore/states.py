"""Find the state of every job of a study (done, running, failed, interrupted or waiting) from its files and its log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowcore import artifacts, logs, manifests, plan
from shadowcore.jobs import Jobs
from shadowcore.rules import RULES, outputs
from shadowcore.work import Work

STATES = ("done", "running", "failed", "interrupted", "waiting")
SILENT = 600.0  # seconds after which a job whose log has no heading counts as interrupted


@dataclass(frozen=True)
class Job:
    """The state of one job. seconds: its time, or how long it has run; left: estimated seconds left.

    content: of its log; silent: seconds since the last line of the log of a running job.
    """

    work: Work
    state: str
    seconds: float
    left: float
    log: Path
    content: logs.Log
    silent: float = 0.0
    deleted: bool = False  # it finished, but its files are missing


def done(jobs: Jobs, rule: str, name: str) -> bool:
    """Whether all outputs of a job exist, also those in its manifest, and contain the whole study."""
    files = outputs(jobs.root, rule, name)
    if jobs.study.one_model_at_a_time and RULES[rule].temporary:
        files = [path for path in files if path.suffix in (".json", ".sha256")]  # the large files may be deleted
    if not all(map(Path.exists, files)):
        return False
    if "manifest" in RULES[rule].outputs:
        return not manifests.absent(files[0])
    return not (RULES[rule].joins and artifacts.missing(files[0]))


def states(jobs: Jobs, now: float) -> list[Job]:
    """All jobs of a study in the order of the stages. now: seconds since 1970."""
    planned = plan.work(jobs)
    expected = expectations(jobs.root, planned, plan.measured_rates(jobs))
    return [_job(jobs, work, expected[work], now) for work in planned]


def expectations(root: Path, planned: Sequence[Work], rates: Mapping[str, float]) -> dict[Work, float]:
    """Estimated seconds of every job: as its rule's jobs took, or by `rates`, the slowest for others, or as planned."""
    measured: dict[str, list[float]] = {}
    for work in planned:
        if (seconds := work.measured_seconds(root)) is not None:
            measured.setdefault(work.rule, []).append(seconds)
    if rates:
        slowest = min(rates.values())
        rates = {work.rule: slowest for work in planned} | dict(rates)
    return {
        work: sum(measured[work.rule]) / len(measured[work.rule])
        if work.rule in measured and not work.flops
        else work.seconds(rates)
        for work in planned
    }


def _job(jobs: Jobs, work: Work, expected: float, now: float) -> Job:
    log = logs.of(jobs.root, work.place)
    content = logs.read(log) if log.is_file() else logs.Log()
    if done(jobs, work.rule, work.name):
        return Job(work, "done", work.measured_seconds(jobs.root) or 0, 0, log, content)
    if content.finished or not log.is_file():
        return Job(work, "waiting", 0, expected, log, content, deleted=content.finished and not RULES[work.rule].joins)
    written = log.stat().st_mtime
    ran = now - (content.started or written)
    if content.error:
        return Job(work, "failed", ran, expected, log, content)
    if content.gone or (not content.command and now - written > SILENT):
        return Job(work, "interrupted", ran, expected, log, content)
    left = max(expected - ran, 0) if content.left is None else max(content.left - (now - written), 0)
    return Job(work, "running", ran, left, log, content, now - written)


def counted(jobs: Sequence[Job]) -> dict[str, int]:
    """Number of jobs in each state."""
    return {state: sum(job.state == state for job in jobs) for state in STATES}


def summary(jobs: Sequence[Job], together: int) -> str:
    """One line with the number of finished jobs and the estimated time of the others, with `together` at a time."""
    done, left = counted(jobs)["done"], sum(job.left for job in jobs)
    words = f"{done} of {len(jobs)} jobs done"
    if done == len(jobs):
        return words
    count = f"{together} job{'s' * (together > 1)}"
    pace = f"with {count} at a time" if together else "no job is running; with one at a time"
    return f"{words}; {pace}, about {duration(left / max(together, 1))} left"


def duration(seconds: float) -> str:
    """Seconds in words: "90 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
