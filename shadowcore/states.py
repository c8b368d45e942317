"""Which jobs of a study are done, run, failed, were interrupted or wait: by their files, then by their logs."""

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
# what a job of each rule writes, below the study's folder; tests/test_workflow.py compares this with the rules
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
SILENT = 600.0  # seconds after which a job that has not even written its log's heading no longer runs
EVALUATIONS = ("evaluate", "evaluate_oracle")
REPORT = ("aggregate", "check_tables", "judge_claims", "draw", "write_page")  # rules that join what others measured


@dataclass(frozen=True)
class Job:
    """One job as it stands: seconds it took or has run so far, and those it may still need."""

    work: Work
    state: str
    seconds: float
    left: float
    log: Path
    said: logs.Log
    silent: float = 0.0
    deleted: bool = False  # it ended well, and its files are gone


def outputs(root: Path, rule: str, name: str) -> list[Path]:
    """The files and folders that a job leaves behind; name: what its rule's wildcards make of it."""
    return [root / path.format(name=name) for path in OUTPUTS[rule]]


def done(jobs: Jobs, rule: str, name: str) -> bool:
    """Whether all files that a job keeps are there, also those of its manifest, and none is of a part of the study."""
    files = outputs(jobs.root, rule, name)
    if jobs.study.one_model_at_a_time and rule in plan.DELETED:
        files = [path for path in files if path.suffix in (".json", ".sha256")]  # of weights: the card
    if not all(map(Path.exists, files)):
        return False
    if rule in EVALUATIONS:
        return not manifests.absent(files[0])
    return not (rule in REPORT and artifacts.missing(files[0]))


def states(jobs: Jobs, now: float) -> list[Job]:
    """Every job of a study as it stands at `now`, seconds since 1970, in the order of the stages."""
    works = plan.work(jobs)
    order = list(MEMORY)
    expected = expectations(jobs.root, works, plan.measured_rates(jobs))
    return [_job(jobs, one, expected[one], now) for one in sorted(works, key=lambda one: order.index(one.rule))]


def expectations(root: Path, works: Sequence[Work], rates: Mapping[str, float]) -> dict[Work, float]:
    """Seconds of every job: as measured of its like, else at the rate of all that was measured, else as planned."""
    measured: dict[str, list[float]] = {}
    for one in works:
        if (seconds := one.measured_seconds(root)) is not None:
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


def _job(jobs: Jobs, work: Work, expected: float, now: float) -> Job:
    log = jobs.root / "logs" / f"{work.place}.log"
    said = logs.read(log) if log.is_file() else logs.Log()
    if done(jobs, work.rule, work.name):
        return Job(work, "done", work.measured_seconds(jobs.root) or 0, 0, log, said)
    if said.finished or not log.is_file():
        return Job(work, "waiting", 0, expected, log, said, deleted=said.finished and work.rule not in REPORT)
    written = log.stat().st_mtime
    ran = now - (said.started or written)
    if said.error:
        return Job(work, "failed", ran, expected, log, said)
    if said.gone or (not said.command and now - written > SILENT):
        return Job(work, "interrupted", ran, expected, log, said)
    left = max(expected - ran, 0) if said.left is None else max(said.left - (now - written), 0)
    return Job(work, "running", ran, left, log, said, now - written)


def counted(jobs: Sequence[Job]) -> dict[str, int]:
    """Jobs in each state."""
    return {state: sum(job.state == state for job in jobs) for state in STATES}


def summary(jobs: Sequence[Job]) -> str:
    """One line: how many jobs are done, and about how long the others take."""
    count, total, left = counted(jobs), len(jobs), sum(job.left for job in jobs)
    words = f"{count['done']} of {total} jobs done"
    if count["running"]:
        return f"{words}; with {count['running']} at a time, as now, about {duration(left / count['running'])} left"
    return (
        words if count["done"] == total else f"{words}; no job runs now; one at a time, about {duration(left)} of work"
    )


def duration(seconds: float) -> str:
    """Seconds in words: "90 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
