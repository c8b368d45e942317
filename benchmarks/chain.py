"""The stages of a study one after the other, without Snakemake, each timed and its memory measured.

    python benchmarks/chain.py benchmarks/chain.yaml opt-30b --results /dev/shm
    python benchmarks/chain.py benchmarks/chain.yaml opt-6.7b --alone 3 --stop-after 500
    python benchmarks/chain.py benchmarks/chain.yaml --show

Jobs get the specifications that the rules give them, and their logs and times are where Snakemake puts them, so
`shadowcore status` and `shadowcore plan --measured` read them. A job that fails stops neither its model's other jobs
nor the next model. The same command again goes on: it runs what has not ended well. A model's weights, traces and
predictors are deleted when all its jobs have ended well, unless `--keep`.

RESULTS/chain/measured/<model>.parquet has a row for every job: see COLUMNS.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from shadowcore import cli, plan, provenance, states
from shadowcore.config import load_study
from shadowcore.jobs import Jobs
from shadowcore.plan import Work

COLUMNS = {
    "model": "name of the model; empty for jobs that all models share",
    "stage": "the command",
    "job": "which of the stage's jobs, as its log is called",
    "seconds": "from the start of its process to its end",
    "gpu_bytes": "most memory that torch had allocated on the GPU at once; 0 without one",
    "host_bytes": "most resident memory of its process, pages of mapped files included",
    "written_bytes": "size of the files that it left behind",
    "conditions": "conditions that it measured",
    "tokens": "tokens of windows, questions and prompts, or of traces, that it read",
    "multiplications": "as `shadowcore plan` counts them",
    "weights_bytes": "size of the model's weights",
    "device": "the GPU, or the processor",
    "commit": "of the code",
    "error": "the last line of its log, where it failed",
}
ALONE = "alone"  # folder of the conditions that are measured once more in a job of their own
LARGE = ("models", "traces", "predictors")  # folders of a study that hold a model's large files
SKIPPED = ("latency", "latency_random", *states.REPORT)


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage's command: its options, and what `plan` knows of it; `outputs`: files and folders it leaves behind."""

    work: Work
    model: str
    options: dict[str, Any]
    outputs: list[Path]
    conditions: int = 0
    tokens: float = 0

    @property
    def stage(self) -> str:
        return self.work.rule.replace("_", "-")

    @property
    def arguments(self) -> list[str]:
        """Words after `shadowcore`."""
        words = [self.stage]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        return words


class Chain:
    """The jobs of a study, in an order in which each finds its inputs."""

    def __init__(self, jobs: Jobs):
        self.jobs, self.study, self.root = jobs, jobs.study, jobs.root
        self.measured_on = plan.Costs(jobs).measured_on

    def shared(self) -> Iterator[Job]:
        """The jobs of no model: texts and benchmarks."""
        yield from self.of("")

    def of(self, model: str) -> Iterator[Job]:
        """A model's jobs, by the names of rules and by what their wildcards make of a job's name."""
        order = list(plan.MEMORY)
        for work in sorted(plan.work(self.jobs), key=lambda one: order.index(one.rule)):
            parts = work.name.split("/")
            owner = parts[0] if parts[0] in self.study.models else ""
            if owner == model and work.rule not in SKIPPED:
                made = getattr(self, work.rule)(*parts)
                yield Job(work, model, made.pop("options"), states.outputs(self.root, work.rule, work.name), **made)

    # ---- what the rules say, one method each

    def fetch_model(self, model: str) -> dict[str, Any]:
        return {"options": {**self.spec(self.jobs.fetch_model(model)), **self.model(model)}}

    def prepare_text(self, text: str) -> dict[str, Any]:
        return {"options": {**self.spec(self.jobs.prepare_text(text)), **self.text(text, "documents", "tasks")}}

    def prepare_benchmark(self, task: str) -> dict[str, Any]:
        spec = self.spec(self.jobs.prepare_benchmark(task))
        return {"options": {**spec, "documents": f"{self.root}/tasks/{task}.parquet"}}

    def gather_benchmarks(self, name: str) -> dict[str, Any]:
        text = self.study.evaluation.texts[0]
        return {
            "options": {"prepared": self.jobs.benchmarks(text), "benchmarks": f"{self.root}/tasks/benchmarks.parquet"}
        }

    def check_disjoint(self, pair: str) -> dict[str, Any]:
        calibration, text = pair.split("+")
        options = {
            **self.spec(self.jobs.check_disjoint(calibration, text)),
            "calibrated": f"{self.root}/texts/{calibration}/documents.parquet",
            "evaluated": f"{self.root}/texts/{text}/documents.parquet",
            "benchmarks": self.jobs.benchmarks(text),
            "record": f"{self.root}/checks/disjoint/{pair}.json",
        }
        return {"options": options}

    def trace(self, model: str, calibration: str, part: str) -> dict[str, Any]:
        params = self.jobs.trace(model, *part.split("-"))
        spec = json.loads(params["spec"])
        options = {
            **self.spec(params), "batch": self.study.traces.batch, **self.model(model),
            **self.text(calibration, "documents"),
            "trace": f"{self.root}/traces/{model}/{calibration}/{part}.safetensors",
        }  # fmt: skip
        windows = len(range(spec["shard"], spec["windows"], spec["shards"]))
        return {"options": options, "tokens": windows * spec["window_tokens"]}

    def average(self, model: str, calibration: str) -> dict[str, Any]:
        options = {
            **self.spec(self.jobs.average(model, calibration)),
            "traces": self.jobs.dense_traces(model, calibration),
            "scores": f"{self.root}/scores/{model}/{calibration}.parquet",
        }
        return {"options": options}

    def train_predictor(self, model: str, calibration: str, name: str) -> dict[str, Any]:
        method, criterion, predictor = name.split("+")
        stem = self.jobs.predictor(model, calibration, method, criterion, predictor)
        design = f"{method}+{criterion}"
        options = {
            **self.spec(self.jobs.train_predictor(model, calibration, method, criterion, predictor)),
            "card": self.model(model)["card"],
            "traces": self.jobs.traces(model, calibration, design, predictor, "train"),
            "heldout": self.jobs.traces(model, calibration, design, predictor, "heldout"),
            "predictor": f"{stem}.safetensors",
            "quality": f"{stem}.quality.parquet",
            "training": f"{stem}.training.parquet",
        }
        plan = self.study.traces
        return {"options": options, "tokens": plan.windows * plan.tokens_per_window}

    def evaluate(self, model: str, data: str, setup: str, pct: str) -> dict[str, Any]:
        key = model, data, setup, int(pct)
        return self.evaluation("evaluate", key, f"{self.root}/outcomes/{'/'.join(map(str, key))}.parquet")

    def evaluate_oracle(self, model: str, data: str, setup: str, pct: str) -> dict[str, Any]:
        key = model, data, setup, int(pct)
        return self.evaluation("evaluate-oracle", key, f"{self.root}/outcomes/{'/'.join(map(str, key))}.parquet")

    def evaluation(self, stage: str, key: tuple[str, str, str, int], outcomes: str) -> dict[str, Any]:
        model, data = key[:2]
        one, sizes = self.jobs.conditions[key], self.study.evaluation
        stem = self.jobs.predictor_of(one)
        scores = [f"{self.root}/scores/{model}/{one.calibration}.parquet"] if one.method == "static" else []
        own = {"scores": scores, "predictor": [f"{stem}.safetensors"] if stem else []}
        options = {
            **self.spec(self.jobs.evaluate(stage, key)),
            "window_batch": sizes.window_batch, "request_batch": sizes.request_batch, **self.model(model),
            **self.text(data, "documents", "tasks"), "benchmarks": self.jobs.gathered(data),
            **(own if stage == "evaluate" else {}), "outcomes": outcomes,
        }  # fmt: skip
        return {"options": options, "conditions": 1, "tokens": self.measured_on[data][1]}

    def alone(self, model: str, count: int) -> Iterator[Job]:
        """Some of a model's sparse conditions, each in a job of its own: what a job with many saves."""
        sparse = [key for key, one in self.jobs.conditions.items() if key[0] == model and one.sparsity_pct]
        for key in [key for key in sparse if self.jobs.conditions[key].method != "oracle"][:count]:
            work = plan.Costs(self.jobs).evaluated(key)
            outcomes = self.root / ALONE / f"{work.name}.parquet"
            made = self.evaluation("evaluate", key, str(outcomes))
            yield Job(dataclasses.replace(work, name=f"{ALONE}/{work.name}"), model, made.pop("options"), [outcomes], **made)

    # ---- options that several stages have

    def spec(self, params: dict[str, str]) -> dict[str, str]:
        return {"spec": params["spec"]}

    def model(self, model: str) -> dict[str, str]:
        return {name: f"{self.root}/models/{model}/{file}" for name, file in (("card", "card.json"), ("weights", "weights"))}

    def text(self, text: str, *names: str) -> dict[str, str]:
        files = {"documents": "documents", "tasks": "true_continuation"}
        return {name: f"{self.root}/texts/{text}/{files[name]}.parquet" for name in names}


# ---- running them


def run(root: Path, name: str, jobs: Iterable[Job], deadline: float) -> bool:
    """Run those of some jobs that have not ended well, until `deadline` (time.monotonic); whether all have.

    Their rows are in `measured/<name>.parquet`, which is written anew after every job.
    """
    table, whole = root / "measured" / f"{name}.parquet", True
    rows = {row["job"]: row for row in (pd.read_parquet(table).to_dict("records") if table.is_file() else ())}
    for job in jobs:
        if all(path.exists() for path in job.outputs):
            continue
        if time.monotonic() > deadline:
            return False
        row = measured(root, job, table.with_suffix(".json"))
        rows[row["job"]] = row
        pd.DataFrame(list(rows.values()), columns=list(COLUMNS)).to_parquet(table)
        print(said(row), flush=True)
        whole = whole and not row["error"]
    return whole


def measured(root: Path, job: Job, record: Path) -> dict[str, Any]:
    """Run a job in a process of its own, which writes down its memory in `record`; its row of the table."""
    log, times = (root / folder / f"{job.work.place}.{kind}" for folder, kind in (("logs", "log"), ("benchmarks", "tsv")))
    for path in (log, times, record, *job.outputs):
        path.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    started = time.perf_counter()
    with log.open("w") as handle:
        command = [sys.executable, __file__, "--job", str(record), *job.arguments]
        code = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, check=False).returncode
    seconds = time.perf_counter() - started
    if code == 0:
        times.write_text(f"s\n{seconds}\n")
    lines = log.read_text(errors="replace").splitlines()
    used = json.loads(record.read_text()) if record.is_file() else {}
    return {
        "model": job.model, "stage": job.stage, "job": job.work.place, "seconds": seconds,
        "gpu_bytes": used.get("gpu_bytes"), "host_bytes": used.get("host_bytes"),
        "written_bytes": sum(map(size, job.outputs)), "conditions": job.conditions, "tokens": float(job.tokens),
        "multiplications": float(job.work.flops), "weights_bytes": float(job.work.weights),
        "device": used.get("device"), "commit": used.get("commit"),
        "error": "" if code == 0 else (lines[-1:] or [f"exit code {code}"])[0],
    }  # fmt: skip


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
        gpu = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
        run = provenance.run_information()
        used = {"gpu_bytes": gpu, "host_bytes": host, "device": run["device"], "commit": run["commit"]}
        record.write_text(json.dumps(used))


def said(row: dict[str, Any]) -> str:
    """A row as a line."""
    sizes = "".join(
        f" {(row[name] or 0) / 1e9:8.2f} GB {what}"
        for name, what in (("gpu_bytes", "GPU"), ("host_bytes", "host"), ("written_bytes", "written"))
    )
    return f"{row['seconds']:8.1f} s{sizes}  {row['job']} {row['error']}".rstrip()


def show(chain: Chain) -> None:
    """The rows of all models, and the rates that they make, as rows of shadowcore/rates.csv."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted((chain.root / "measured").glob("*.parquet"))])
    for row in rows.to_dict("records"):
        print(said(row))


def main() -> int:
    if sys.argv[1:2] == ["--job"]:
        return run_job(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("models", nargs="*", help="which, one after the other; all unless given")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--prepare", action="store_true", help="only texts and benchmarks, which all models share")
    parser.add_argument("--alone", type=int, default=0, metavar="N", help="conditions to measure once more, a job each")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS", help="start no job later")
    parser.add_argument("--keep", action="store_true", help="keep weights, traces and predictors")
    parser.add_argument("--show", action="store_true", help="print what was measured, and run nothing")
    parsed = parser.parse_args()
    chain = Chain(Jobs(load_study(parsed.config), parsed.results))
    if parsed.show:
        show(chain)
        return 0
    deadline = time.monotonic() + parsed.stop_after
    whole = [run(chain.root, "shared", chain.shared(), deadline)]
    for model in () if parsed.prepare else parsed.models or chain.study.models:
        jobs = itertools.chain(chain.of(model), chain.alone(model, parsed.alone))
        whole.append(run(chain.root, model, jobs, deadline))
        for folder in LARGE if whole[-1] and not parsed.keep else ():
            shutil.rmtree(chain.root / folder / model, ignore_errors=True)
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
