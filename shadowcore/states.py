"""Find the state of every job of a study (done, running, failed, interrupted or waiting) from its files and its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowcore import artifacts, logs, manifests, plan
from shadowcore.jobs import Jobs
from shadowcore.schemas import MEASURED_TABLES
from shadowcore.work import MEMORY, Work

STATES = ("done", "running", "failed", "interrupted", "waiting")
PREDICTOR = ("safetensors", "safetensors.sha256", "quality.parquet", "training.parquet")
TIMED = ("", ".repeats", ".refused")
TRACE = ("safetensors", "safetensors.sha256")
# outputs of a job of each rule, below the study's folder; tests/test_workflow.py compares them with the rules
OUTPUTS = {
    "fetch_model": ("models/{name}/card.json", "models/{name}/weights"),
    "relufy": ("models/{name}/card.json", "models/{name}/weights"),
    "prepare_text": ("texts/{name}/documents.parquet", "texts/{name}/true_continuation.parquet"),
    "prepare_benchmark": ("tasks/{name}.parquet",),
    "gather_benchmarks": ("tasks/benchmarks.parquet",),
    "check_disjoint": ("checks/disjoint/{name}.json",),
    "trace": tuple(f"traces/{{name}}.{kind}" for kind in TRACE),
    "trace_on_policy": tuple(f"traces/{{name}}.{kind}" for kind in TRACE),
    "average": ("scores/{name}.parquet",),
    "calibrate_thresholds": ("thresholds/{name}.parquet",),
    "train_predictor": tuple(f"predictors/{{name}}.{kind}" for kind in PREDICTOR),
    "tune_predictor": tuple(f"predictors/{{name}}.{kind}" for kind in PREDICTOR),
    "evaluate": ("outcomes/{name}.json",),
    "evaluate_oracle": ("outcomes/{name}.json",),
    "latency": tuple(f"latency/{{name}}{kind}.parquet" for kind in TIMED),
    "latency_random": tuple(f"latency/random/{{name}}{kind}.parquet" for kind in TIMED),
    "aggregate": tuple(f"tables/{name}.parquet" for name in MEASURED_TABLES),
    "check_tables": ("checks/tables.json",),
    "judge_claims": ("tables/claims.parquet",),
    "draw": ("figures/{name}.json", "figures/{name}"),
    "write_page": ("index.html",),
}
SILENT = 600.0  # seconds after which a job whose log has no heading counts as interrupted
EVALUATIONS = ("evaluate", "evaluate_oracle")
REPORT = ("aggregate", "check_tables", "judge_claims", "draw", "write_page")  # rules that join the measurements


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


def outputs(root: Path, rule: str, name: str) -> list[Path]:
    """The files and folders that a job writes. name: the job's name, made from its rule's wildcards."""
    return [root / path.format(name=name) for path in OUTPUTS[rule]]


def done(jobs: Jobs, rule: str, name: str) -> bool:
    """Whether all outputs of a job exist, also those in its manifest, and contain the whole study."""
    files = outputs(jobs.root, rule, name)
    if jobs.study.one_model_at_a_time and rule in plan.DELETED:
        files = [path for path in files if path.suffix in (".json", ".sha256")]  # the large files may be deleted
    if not all(map(Path.exists, files)):
        return False
    if rule in EVALUATIONS:
        return not manifests.absent(files[0])
    return not (rule in REPORT and artifacts.missing(files[0]))


def states(jobs: Jobs, now: float) -> list[Job]:
    """All jobs of a study in the order of the stages. now: seconds since 1970."""
    order = list(MEMORY)
    planned = sorted(plan.work(jobs), key=lambda work: order.index(work.rule))
    expected = expectations(jobs.root, planned, plan.measured_rates(jobs))
    return [_job(jobs, work, expected[work], now) for work in planned]


def expectations(root: Path, planned: Sequence[Work], rates: Mapping[str, float]) -> dict[Work, float]:
    """Estimated seconds of every job: from jobs of its rule, or else the slowest rate of other rules, or else planned.

    rates: measured multiply-adds per second by rule.
    """
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
    log = jobs.root / "logs" / f"{work.place}.log"
    content = logs.read(log) if log.is_file() else logs.Log()
    if done(jobs, work.rule, work.name):
        return Job(work, "done", work.measured_seconds(jobs.root) or 0, 0, log, content)
    if content.finished or not log.is_file():
        return Job(work, "waiting", 0, expected, log, content, deleted=content.finished and work.rule not in REPORT)
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


def summary(jobs: Sequence[Job]) -> str:
    """One line with the number of finished jobs and the estimated time of the others."""
    count, total, left = counted(jobs), len(jobs), sum(job.left for job in jobs)
    words = f"{count['done']} of {total} jobs done"
    if count["running"]:
        return f"{words}; with {count['running']} jobs at a time, about {duration(left / count['running'])} left"
    return (
        words if count["done"] == total else f"{words}; no job is running; about {duration(left)} left, one at a time"
    )


def duration(seconds: float) -> str:
    """Seconds in words: "90 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
