"""A model on two GPUs: does it compute the same as on one, what does it cost, and do two jobs have a GPU each?

    python benchmarks/two_gpus.py --results /dev/shm --stop-after 560

RESULTS/two-gpus/ then has, for the dimensions in benchmarks/two_gpus.yaml and random weights:

    jobs.parquet               traces of the smallest model: one that needs a GPU too many, one alone, and two at once
    compared.parquet           the middle model on one GPU and on all: logits, kept units, losses, and seconds of each
    measured/opt-66b.parquet   every stage with the largest model on all GPUs: seconds and memory, see chain.COLUMNS

The same command again goes on with what is not there yet; no job starts after `--stop-after`. The largest model needs
135 GB in RESULTS, and a GPU of 140 GB to draw its weights on.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import chain
import pandas as pd
import torch

from shadowcore import logs
from shadowcore.config import load_study
from shadowcore.devices import devices
from shadowcore.jobs import Jobs
from shadowcore.measure.group import Group
from shadowcore.measure.oracle import OracleMasks, OraclePass
from shadowcore.measure.perplexity import window_losses
from shadowcore.measure.sparsity import FixedMasks, PredictedMasks, SparseModel, random_scores
from shadowcore.method.policies import kept_units, lowest_kept, per_layer
from shadowcore.method.predictors import PREDICTORS, Predictor
from shadowcore.models import folders
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.models.recording import visiting

WINDOWS, TOKENS, SCORED, PCT, RANK = 4, 256, 64, 50, 64  # of the comparison


def jobs(made: chain.Chain, model: str) -> list[dict[str, Any]]:
    """What came of traces side by side: exit code, last line of the log, GPUs that it saw, seconds since the start.

    Each has one thread, as in a study: with a thread a core, two jobs wait for each other's threads.
    """
    (one,) = [job for job in made.of(model) if job.work.name.endswith("train-0")]
    rows = []
    for count, gpus in ((1, len(devices()) + 1), (1, 1), (2, 1)):
        running, started = [], time.monotonic()
        for number in range(count):
            output = made.root / "jobs" / f"{count}-{gpus}-{number}.safetensors"
            output.parent.mkdir(exist_ok=True)
            own = one.options | {"trace": output, "threads": 1}
            words = dataclasses.replace(one, options=own, gpus=gpus).arguments
            with output.with_suffix(".log").open("w") as log:
                command = [sys.executable, "-m", "shadowcore", *words]
                running.append((subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), Path(log.name)))
        for job, log in running:
            row = {"model": model, "at_once": count, "needed_gpus": gpus, "exit_code": job.wait()}
            row |= {"seconds": time.monotonic() - started, "message": log.read_text().splitlines()[-1]}
            rows.append(row | {"gpus": logs.read(log).environment.get("CUDA_VISIBLE_DEVICES", "")})
    return rows


def compared(made: chain.Chain, model: str) -> list[dict[str, Any]]:
    """A row a measurement, of the model on one device and on all GPUs.

    apart: the largest difference, as a share of the largest number; of kept units that differ, how far their scores are
    from the lowest kept one, as a share of the layer's range.
    """
    folder, dtype = made.root / "models" / model / "weights", made.study.models[model].dtype
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    alone, spread = (measured(folder, dtype, count) for count in (min(gpus, 1), gpus))
    rows = []
    for what, (one, seconds) in alone.items():
        other, longer = spread[what]
        row = {"model": model, "gpus": gpus, "what": what, "seconds_one": seconds, "seconds_spread": longer}
        if what == "kept units":
            changed = per_layer(one, PCT) != per_layer(other, PCT)
            lowest = lowest_kept(one, kept_units(one.shape[-1], PCT))
            away = (one - lowest).abs() / (one.amax(-1, keepdim=True) - one.amin(-1, keepdim=True))
            row |= {"apart": float((away * changed).max()), "differ": int(changed.sum()), "units": changed.numel()}
        else:
            row |= {"apart": float((one - other).abs().max() / one.abs().max()), "mean": float(one.mean())}
        rows.append(row)
    return rows


def measured(folder: Path, dtype: str, gpus: int) -> dict[str, tuple[torch.Tensor, float]]:
    """Logits, magnitudes of neurons, and losses under each method, with the seconds of each; gpus: 0 is the CPU."""
    model = folders.load_model(folder, dtype, gpus if gpus > 1 else 0)
    model = model.to("cuda") if gpus == 1 else model
    vocabulary, positions = model.config.vocab_size, model.config.max_position_embeddings
    ids = torch.randint(vocabulary, (WINDOWS, min(TOKENS, positions)), generator=torch.Generator().manual_seed(0))
    works = {"logits": partial(logits, model, ids), "kept units": partial(magnitudes, model, ids[:1, :SCORED])}
    for name in ("dense", "static", "shadow", "layerwise", "oracle"):
        works[f"loss, {name}"] = partial(losses, name, model, ids)
    found = {}
    for what, work in works.items():
        work()  # the first run allocates memory and compiles kernels
        started = time.perf_counter()
        found[what] = work(), time.perf_counter() - started
    return found


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids.to(model.device)).logits.float().cpu()


def magnitudes(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Magnitudes (L, T, U) of all neurons."""
    found = []
    with visiting(model, lambda site, x: found.append(x.cpu()) if site.what == "neurons" else None):
        logits(model, ids)
    return torch.stack(found)[:, 0, ..., 0].float().abs()


def losses(name: str, model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Losses (N,) of windows under a method whose mean scores or predictor are random."""
    sizes, masks = dimensions_of(model.config), None
    if name == "static":
        masks = FixedMasks(random_scores(sizes, KINDS, 0), "per_layer", PCT)
    elif name == "oracle":
        masks = OracleMasks(OraclePass(model), "plainact", KINDS, "per_layer", PCT)
    elif name in PREDICTORS:
        torch.manual_seed(0)
        predictor = Predictor(name, sizes, dict.fromkeys(KINDS, RANK))
        for parameter in predictor.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        masks = PredictedMasks(predictor.put_on(model), KINDS, "per_layer", PCT)
    group = Group({name: SparseModel(model, masks)})
    found = window_losses(group, ids, 2)
    for error in group.failed.values():
        raise error
    return found[name]


def write(table: Path, work: Callable, made: chain.Chain, model: str) -> None:
    pd.DataFrame(work(made, model)).to_parquet(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS")
    parsed = parser.parse_args()
    deadline = time.monotonic() + parsed.stop_after
    made = chain.Chain(Jobs(load_study(parsed.config), parsed.results), len(devices()))
    large, middle, small = made.study.models
    chain.imports_seconds()
    start = chain.fork if chain.forks_work() else chain.process
    whole = chain.run(made.root, "shared", made.of(""), deadline, start)
    for model, work in ((small, jobs), (middle, compared)) if whole else ():
        table = made.root / f"{work.__name__}.parquet"
        own = [job for job in made.of(model) if job.stage == "fetch-model"]
        if not table.exists() and chain.run(made.root, model, own, deadline, start):
            # in a process that gives its GPU memory back
            chain.forked(partial(write, table, work, made, model)).join()
            shutil.rmtree(made.root / "models" / model)  # a disk in memory has no room for two models
        if not table.exists():
            return 1
        print(pd.read_parquet(table).to_string(), flush=True)
    whole = whole and chain.run(made.root, large, made.of(large), deadline, start)
    chain.print_table([row for row in chain.read(made.root) if row["model"] == large])
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
