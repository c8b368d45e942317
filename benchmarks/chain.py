"""The stages of a study one after the other, without Snakemake, each timed and its memory measured.

    python benchmarks/chain.py benchmarks/chain.yaml opt-30b --results /dev/shm
    python benchmarks/chain.py benchmarks/chain.yaml opt-6.7b --alone 3 --stop-after 500
    python benchmarks/chain.py benchmarks/chain.yaml opt-30b --gpus 2
    python benchmarks/chain.py benchmarks/chain.yaml --table

Jobs get the specifications that the rules give them, and their logs and times are where Snakemake puts them, so
`shadowcore status` and `shadowcore plan --measured` read them. A job is a fork of a process that has imported torch and
lm-eval, so that its seconds are those of its work; where a fork cannot use the GPU, it is a process of its own.

A job that fails stops neither its model's other jobs nor the next model. The same command again goes on: it runs what
has not ended well. A model's weights, traces and predictors are deleted when all its jobs have ended well.
RESULTS/<study>/measured/<model>.parquet has a row for every job: see COLUMNS.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from markdown_tables import markdown

from shadowcore import cli, manifests, provenance, rates
from shadowcore.config import load_study
from shadowcore.costs import Costs
from shadowcore.jobs import Jobs
from shadowcore.rules import RULES, name_of, outputs
from shadowcore.work import Work

COLUMNS = {
    "model": "name of the model; empty for jobs that all models share",
    "stage": "the command",
    "job": "which of the stage's jobs, as its log is called",
    "seconds": "what it took, without the imports",
    "start_seconds": "what starting Python and importing torch and lm-eval took, as every job of a study does",
    "gpu_bytes": "most memory that torch had allocated on one GPU at once; 0 without one",
    "each_gpu_bytes": "the same of each GPU that it saw",
    "host_bytes": "most resident memory of its process, pages of mapped files included",
    "written_bytes": "size of the files that it left behind",
    "conditions": "conditions that it measured",
    "tokens": "tokens of windows, questions and prompts, or of traces, that it read",
    "multiplications": "as `shadowcore plan` counts them",
    "weights_bytes": "size of the model's weights",
    "device": "the GPU, or the processor",
    "commit": "of the code",
    "attempts": "how often it was started; one that was killed is started again, and an evaluation goes on then",
    "error": "the last line of its log, where it failed",
}
ALONE = "alone"  # folder of the manifests and outcomes of conditions that are measured once more, each in its own job
LARGE = ("models", "traces", "predictors")  # folders of a study that hold a model's large files
# what jobs import of other projects
HEAVY = """
accelerate datasets lm_eval.evaluator lm_eval.models.huggingface lm_eval.tasks pandas pyarrow.parquet safetensors.torch
torch transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
transformers.models.opt.modeling_opt
"""
APART = 2  # the longest job of a stage must have this many times the work of the shortest, to compare the two
SKIPPED = {rule for rule, facts in RULES.items() if facts.timed or facts.joins}


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage's command: its options, and what `plan` knows of it; `outputs`: files and folders it leaves behind;
    `gpus`: those that its model is spread over, None for all that CUDA shows.
    """

    work: Work
    model: str
    options: dict[str, Any]
    outputs: list[Path]
    conditions: int = 0
    tokens: float = 0
    gpus: int | None = None

    @property
    def stage(self) -> str:
        return self.work.rule.replace("_", "-")

    @property
    def arguments(self) -> list[str]:
        """Words after `shadowcore`."""
        words = [self.stage]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        if self.gpus is None or not self.work.flops:
            return words
        return [*words, "--devices", str(self.gpus if self.work.spreads else 1)]


class Chain:
    """The jobs of a study, in an order in which each finds its inputs."""

    def __init__(self, jobs: Jobs, gpus: int | None = None):
        self.gpus = gpus
        self.jobs, self.study, self.root = jobs, jobs.study, jobs.root
        self.costs = Costs(jobs)

    def of(self, model: str) -> Iterator[Job]:
        """A model's jobs; for the empty name those of no model, texts and benchmarks."""
        order = [rule for rule in RULES if rule not in SKIPPED]

        def place(job: Job) -> tuple[int, float]:
            return order.index(job.work.rule.removesuffix("_oracle")), job.work.flops  # of evaluations the longest last

        every = [(rule, values) for rule in order for values in self.jobs.names[rule]]
        of_model = [(rule, values) for rule, values in every if model == self.owner(rule, values)]
        yield from sorted((self.job(rule, *values) for rule, values in of_model), key=place)

    @staticmethod
    def owner(rule: str, values: Sequence[str]) -> str:
        """The model of a job; empty for jobs of no model."""
        return values[0] if "model" in RULES[rule].wildcards else ""

    def alone(self, model: str, count: int) -> Iterator[Job]:
        """Some of a model's conditions, each in a job of its own: what one job for many saves."""
        jobs = Jobs(self.study, self.root.parent)
        several = {key: found for key, found in jobs.evaluations.items() if key[0] == model and len(found) > 1}
        each = [(data, name, one) for (_, data, _), found in several.items() for name, one in found.items()]
        jobs.evaluations = {(model, data, f"{ALONE}/{name}"): {name: one} for data, name, one in each[:count]}
        chain = Chain(jobs, self.gpus)
        for key in jobs.evaluations:
            yield chain.job("evaluate", *key)

    def job(self, rule: str, *values: str) -> Job:
        """A rule's job. values: of the rule's wildcards."""
        jobs, name, plan = self.jobs, name_of(rule, *values), self.study.traces
        read = {option: paths for option, paths in jobs.inputs(rule, *values).items() if option != "after"}
        given = {"spec": jobs.spec(rule, *values), **jobs.batches(rule), **read, **jobs.outputs(rule, *values)}
        conditions, tokens = 0, 0
        if rule.startswith("evaluate"):
            measured = self.costs.measured[values[1]]
            conditions = len(jobs.evaluations[values if rule == "evaluate" else (*values, "oracle")])
            tokens = measured.prompts + conditions * measured.continued
        elif rule == "trace":
            spec = jobs.trace(*values)
            tokens = len(range(spec["shard"], spec["windows"], spec["shards"])) * spec["window_tokens"]
        elif rule == "train_predictor":
            tokens = plan.windows * plan.tokens_per_window
        work = Work(rule, name, **self.costs.of(rule, *values))
        files = outputs(self.root, rule, name)
        return Job(work, self.owner(rule, values), given, files, conditions, tokens, self.gpus)


# ---- running them


def run(root: Path, name: str, jobs: Iterable[Job], deadline: float, start: Callable[..., int]) -> bool:
    """Run those of some jobs that have not ended well, until `deadline` (time.monotonic); whether all have.

    Their rows are in `measured/<name>.parquet`, which is written anew at the start and the end of every job.
    """
    table, whole = root / "measured" / f"{name}.parquet", True
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = {row["job"]: row for row in (pd.read_parquet(table).to_dict("records") if table.is_file() else ())}
    for job in jobs:
        if all(path.exists() for path in job.outputs):
            continue
        if time.monotonic() > deadline:
            return False
        attempts = rows.get(job.work.place, {}).get("attempts", 0) + 1
        for row in (planned(job, attempts), planned(job, attempts) | measured(root, job, table, start)):
            rows[row["job"]] = row
            pd.DataFrame(list(rows.values()), columns=list(COLUMNS)).to_parquet(table)
        print(said(row), flush=True)
        whole = whole and not row["error"]
    return whole


def planned(job: Job, attempts: int) -> dict[str, Any]:
    """A job's row before it has run."""
    return {
        "model": job.model, "stage": job.stage, "job": job.work.place, "conditions": job.conditions,
        "tokens": float(job.tokens), "multiplications": float(job.work.flops), "weights_bytes": float(job.work.weights),
        "attempts": attempts, "error": "killed",
    }  # fmt: skip


def measured(root: Path, job: Job, table: Path, start: Callable[..., int]) -> dict[str, Any]:
    """Run a job; what its row says of it then."""
    log, times = (
        root / folder / f"{job.work.place}.{kind}" for folder, kind in (("logs", "log"), ("benchmarks", "tsv"))
    )
    record = table.with_suffix(".json")
    for path in (log, times, *job.outputs):
        path.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    started = time.perf_counter()
    code = start(record, log, job.arguments)
    seconds = time.perf_counter() - started
    if code == 0:
        times.write_text(f"s\n{seconds + imports_seconds()}\n")
    lines = log.read_text(errors="replace").splitlines()
    used = json.loads(record.read_text()) if record.is_file() else {}
    return used | {
        "seconds": seconds, "start_seconds": imports_seconds(), "written_bytes": sum(map(size, written(job))),
        "error": "" if code == 0 else (lines[-1:] or [f"exit code {code}"])[0],
    }  # fmt: skip


@cache
def imports_seconds() -> float:
    """Import what jobs import of other projects; seconds since this process started."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to ask whether there is a GPU does not use it
    for name in HEAVY.split():
        import_module(name)
    return time.time() - psutil.Process().create_time()


def fork(record: Path, log: Path, arguments: list[str]) -> int:
    """Run a job in a fork of this process; its exit code."""

    def work() -> None:
        with log.open("w") as handle:
            for number in (1, 2):
                os.dup2(handle.fileno(), number)
        sys.exit(run_job(record, arguments))

    child = forked(work)
    try:
        child.join()
    finally:  # also where this process is interrupted, or killed by a time limit
        child.kill()
    return child.exitcode


def forked(work: Callable[[], Any]) -> multiprocessing.Process:
    """A fork of this process that does some work; its exit code is 0 if there is no error."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def process(record: Path, log: Path, arguments: list[str]) -> int:
    """Run a job in a process of its own, which imports everything itself; its exit code."""
    with log.open("w") as handle:
        command = [sys.executable, __file__, "--job", str(record), *arguments]
        return subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, check=False).returncode


def forks_work() -> bool:
    """Whether a fork can use the GPU, if there is one."""
    import torch

    if not torch.cuda.is_available():
        return True
    child = forked(lambda: torch.zeros(1, device="cuda").item())
    child.join()
    return child.exitcode == 0


def written(job: Job) -> list[Path]:
    """Files and folders that a job left behind, the outcome files that its manifest lists included."""
    listing = [path for path in job.outputs if "manifest" in RULES[job.work.rule].outputs and path.is_file()]
    return [path for path in (*job.outputs, *manifests.outcomes(listing)) if path.exists()]


def size(path: Path) -> int:
    """Bytes of a file or of a folder's files."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def run_job(record: Path, arguments: list[str]) -> int:
    """Run a stage in this process, and write down the memory it took; its exit code."""
    try:
        return cli.main(arguments)
    finally:
        torch = sys.modules.get("torch")
        used = torch is not None and torch.cuda.is_initialized()  # the GPUs that CUDA found when it was first used:
        each = list(map(torch.cuda.max_memory_allocated, range(torch._C._cuda_getDeviceCount()))) if used else []
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
        run = provenance.run_information()
        memory = {"gpu_bytes": max(each, default=0), "each_gpu_bytes": each, "host_bytes": host}
        record.write_text(json.dumps(memory | {"device": run["device"], "commit": run["commit"]}))


def said(row: dict[str, Any]) -> str:
    """A row as a line."""
    sizes = "".join(
        f" {row.get(name, 0) / 1e9:8.2f} GB {what}"
        for name, what in (("gpu_bytes", "GPU"), ("host_bytes", "host"), ("written_bytes", "written"))
    )
    return f"{row['seconds']:8.1f} s{sizes}  {row['job']} {row['error']}".rstrip()


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of all models of a study's folder, or of a folder of their tables."""
    tables = sorted((folder / "measured").glob("*.parquet")) or sorted(folder.glob("*.parquet"))
    return [row for path in tables for row in pd.read_parquet(path).to_dict("records")]


def rates_of(jobs: Iterable[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Rows of rates.csv from measured jobs with the keys device, stage, weights_bytes, multiplications and seconds.

    Between a stage's shortest and longest job with one model the loading of the model cancels. Where they differ too
    little, or no model is loaded, the rate is that of all jobs together, with everything else that they did; an
    evaluation of the dense model alone has none.
    """
    alike: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
    for job in jobs:
        if job["multiplications"]:
            key = job["device"], job["stage"].replace("-", "_"), job["weights_bytes"]
            alike.setdefault(key, []).append((job["multiplications"], job["seconds"]))
    rows = []
    for (device, stage, weights), pairs in sorted(alike.items()):
        (few, short), (many, long) = min(pairs), max(pairs)
        if weights and many > APART * few and long > short:
            per_second = (many - few) / (long - short)
        elif stage == "evaluate":  # only the dense model was measured: most of its time is prompts, which others share
            continue
        else:
            per_second = sum(count for count, _ in pairs) / sum(seconds for _, seconds in pairs)
        values = device, stage, f"{weights / 1e9:.1f}", f"{per_second / 1e12:.3g}", source
        rows.append(dict(zip(rates.COLUMNS, values, strict=True)))
    return rows


def print_rates(rows: list[dict[str, Any]]) -> None:
    """Print shadowcore/rates.csv from jobs that ended well at their first attempt."""
    good = [row for row in rows if not row["error"] and row["attempts"] == 1]
    commits = ", ".join(sorted({row["commit"] for row in good}))
    writer = csv.DictWriter(sys.stdout, rates.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rates_of(good, f"benchmarks/chain.py at commit {commits}"))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table of stages in docs/cluster.md: a row a model and stage, its jobs together."""
    lines = []
    found = pd.DataFrame([row for row in rows if row["model"] and f"/{ALONE}/" not in row["job"]])
    found = found.iloc[found.groupby("model")["weights_bytes"].transform("max").argsort(kind="stable")]
    for (model, stage), jobs in found.groupby(["model", "stage"], sort=False):
        gpus = [of for of in jobs.get("each_gpu_bytes", ()) if np.ndim(of) and len(of)] or [[jobs["gpu_bytes"].max()]]
        most = [max(of) for of in itertools.zip_longest(*gpus, fillvalue=0)]  # of each GPU
        peaks = [" + ".join(f"{of / 1e9:.1f}" for of in most), f"{jobs['host_bytes'].max() / 1e9:.1f}"]
        failed = f" ({(jobs['error'] != '').sum()} failed)" if jobs["error"].any() else ""
        written = f"{jobs['written_bytes'].sum() / 1e9:.1f}"
        lines.append((model, f"{stage}{failed}", len(jobs), f"{jobs['seconds'].sum():.0f}", *peaks, written))
    memory = ("GPU memory, GB", "host memory, GB", "written, GB")
    return markdown(["model", "stage", "jobs", "seconds", *memory], lines)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the table of stages, and conditions per GPU-hour: of a job with all of them, and of jobs of one each."""
    print(*table(rows), sep="\n")
    for model in dict.fromkeys(row["model"] for row in rows if f"/{ALONE}/" in row["job"]):
        jobs = [row for row in rows if row["model"] == model and row["stage"] == "evaluate" and not row["error"]]
        for name, part in (
            ("a job each", [row for row in jobs if f"/{ALONE}/" in row["job"]]),
            ("one job", [row for row in jobs if row["conditions"] > 1]),
        ):
            count = sum(row["conditions"] for row in part)
            seconds = sum(row["seconds"] + row["start_seconds"] for row in part)
            if count:
                print(f"{model}: {name}: {count} conditions in {seconds:.0f} s, {3600 * count / seconds:.1f} an hour")


def main() -> int:
    if sys.argv[1:2] == ["--job"]:
        return run_job(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("models", nargs="*", help="which, one after the other; all unless given")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--alone", type=int, default=0, metavar="N", help="conditions to measure once more, a job each")
    parser.add_argument("--gpus", type=int, help="those that a model is spread over (default: all that CUDA shows)")
    parser.add_argument("--short", action="store_true", help="trace little, where only evaluations are to be timed")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS", help="start no job later")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--table", action="store_true", help="run nothing; print it as the table of docs/cluster.md")
    shown.add_argument("--rates", action="store_true", help="run nothing; print it as shadowcore/rates.csv")
    parsed = parser.parse_args()
    study = load_study(parsed.config)
    if parsed.short:
        traces = study.traces.model_copy(update={"criteria": ["plainact"], "windows": 24})
        study = study.model_copy(update={"traces": traces})
    chain = Chain(Jobs(study, parsed.results), parsed.gpus)
    if parsed.table or parsed.rates:
        rows = read(chain.root if (chain.root / "measured").is_dir() else parsed.results)
        (print_table if parsed.table else print_rates)(rows)
        return 0
    deadline = time.monotonic() + parsed.stop_after
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    imports_seconds()
    start = fork if forks_work() else process
    print(f"a start takes {imports_seconds():.1f} s; a job is a {start.__name__}", flush=True)
    whole = [run(chain.root, "shared", chain.of(""), deadline, start)]
    for model in parsed.models or chain.study.models:
        jobs = itertools.chain(chain.of(model), chain.alone(model, parsed.alone))
        whole.append(run(chain.root, model, jobs, deadline, start))
        for folder in LARGE if whole[-1] else ():
            shutil.rmtree(chain.root / folder / model, ignore_errors=True)
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
