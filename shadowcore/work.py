"""One job of a study and what it takes: time, memory, GPUs, and what a rule asks a scheduler for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shadowcore import logs

START = 8.0  # seconds until a job has imported what it needs
LOADED = 1e9  # bytes of weights read in a second
TFLOPS = 100.0  # assumed of one job where none was measured, 10^12 multiplications and additions a second, ...
DECODING = {"latency": 2.0, "latency_random": 2.0}  # ... and of one that reads every weight for every token
GPU_BYTES = 80e9
OWN_GPU = 4e9  # bytes of weights, ...
MUCH = 1e15  # ... and multiplications, from which a job has a GPU for itself
# MB of memory beside the model's weights, and how many times the weights are held at once
MEMORY = {
    "fetch_model": (1800, 4), "relufy": (3000, 1.5), "prepare_text": (2000, 0), "prepare_benchmark": (2000, 0),
    "gather_benchmarks": (1000, 0), "check_disjoint": (1000, 0),
    "trace": (1400, 3), "trace_on_policy": (1400, 3), "average": (2000, 0), "calibrate_thresholds": (1400, 3),
    "train_predictor": (2500, 0), "tune_predictor": (1800, 4), "evaluate": (1400, 2), "evaluate_oracle": (1400, 3),
    "latency": (2800, 4), "latency_random": (5000, 0), "aggregate": (2000, 0), "check_tables": (1000, 0),
    "judge_claims": (1000, 0), "draw": (1000, 0), "write_page": (1000, 0),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One job: its rule, what its wildcards make of its name, and what it takes.

    flops: multiplications and additions; written, weights, read: bytes it leaves behind, of the model it holds, and
    of what else it holds; activations: bytes that a batch's pass keeps; alone: nothing else may run on its GPU.
    """

    rule: str
    name: str
    flops: float = 0
    written: float = 0
    weights: float = 0
    read: float = 0
    activations: float = 0
    alone: bool = False

    @property
    def place(self) -> str:
        """Where its log and its times are, below `logs/` and `benchmarks/` and without their endings."""
        return self.rule if self.name == self.rule else f"{self.rule.removesuffix('_oracle')}/{self.name}"

    @property
    def gpus(self) -> int:
        """GPUs of 80 GB it needs for itself; 0 for what multiplies little, and shares one where there is one."""
        if self.alone:
            return 1
        return max(1, math.ceil(self.gpu_bytes / GPU_BYTES)) if self.large else 0

    @property
    def large(self) -> bool:
        """Whether it would take days without a GPU."""
        return bool(self.flops) and (self.weights > OWN_GPU or self.flops > MUCH)

    @property
    def gpu_bytes(self) -> float:
        """Memory it needs on GPUs."""
        return self.weights + self.activations

    @property
    def memory(self) -> float:
        """Bytes of main memory; large weights are only held once, and a little, on their way to a GPU or a disk."""
        beside, times = MEMORY[self.rule]
        return 1e6 * beside + self.weights * (min(times, 1.2) if self.weights > OWN_GPU else times) + self.read

    def seconds(self, rates: Mapping[str, float]) -> float:
        """Time on one machine; `rates`: multiplications a second by rule, assumed where there is none."""
        assumed = 1e12 * DECODING.get(self.rule, TFLOPS)
        return START + self.weights / LOADED + self.flops / rates.get(self.rule, assumed)

    def measured_seconds(self, root: Path) -> float | None:
        """Time it took when it last ended well, by its `benchmark:` file in a study's folder; None without one."""
        seconds = logs.times(root / "benchmarks" / f"{self.place}.tsv").get("s")
        return None if seconds is None else float(seconds)

    def resources(self, attempt: int = 1) -> dict[str, int | str]:
        """As a rule asks for them; three times the assumed time, half an hour at least.

        A job that ran out of memory or of time has twice, three times as much at its next attempts. The GPUs go by
        two names of clusters, `gpu` (a number) and `gres` (text, empty for none), and one of ours, `devices`.
        """
        minutes = math.ceil(max(30, 3 * self.seconds({}) / 60))
        return {
            "mem_mb": math.ceil(self.memory / 1e6) * attempt, "runtime": minutes * attempt, "devices": self.gpus,
            "gpu": self.gpus, "gres": f"gpu:{self.gpus}" if self.gpus else "",
        }  # fmt: skip
