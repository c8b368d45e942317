"""The cost of one job of a study: time, memory, GPUs, and the resources that its rule requests."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowcore import logs
from shadowcore.rules import RULES

START = 8.0  # seconds in which a job imports its packages
LOADED = 1e9  # bytes of weights read per second
TFLOPS = 100.0  # assumed speed of a job without a measured one, 10^12 multiply-adds per second, ...
DECODING = 2.0  # ... and of a job that reads all weights for every token
GPU_BYTES = 80e9
OWN_GPU = 4e9  # bytes of weights, ...
MUCH = 1e15  # ... and multiply-adds, above which a job needs a GPU of its own
USABLE = 0.85  # share of a known GPU's memory that a job is planned to fill


@dataclass(frozen=True)
class Work:
    """One job: its rule, its name (made from the wildcards), and its cost.

    flops: multiply-adds; written: bytes of its outputs; weights: bytes of its model; read: bytes of other data in
    memory; activations: bytes that a pass of one batch keeps; alone: no other job may use its GPU.
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
        """Path of its log below `logs/`, and of its times below `benchmarks/`, without suffix."""
        return self.rule if self.name == self.rule else f"{self.rule.removesuffix('_oracle')}/{self.name}"

    @property
    def gpus(self) -> int:
        """Number of GPUs of 80 GB that it needs for itself; 0 for a small job, which can share a GPU."""
        return self.gpus_of(GPU_BYTES)

    def gpus_of(self, size: float) -> int:
        """Like `gpus`, of GPUs of `size` bytes."""
        several = max(1, math.ceil(self.gpu_bytes / size)) if self.spreads else 1
        return several if self.alone or self.needs_gpu else 0

    @property
    def spreads(self) -> bool:
        """Whether its model may be on several GPUs."""
        return RULES[self.rule].spreads

    @property
    def needs_gpu(self) -> bool:
        """Whether it would take days without a GPU."""
        return bool(self.flops) and (self.weights > OWN_GPU or self.flops > MUCH)

    @property
    def gpu_bytes(self) -> float:
        """Bytes of GPU memory that it needs."""
        return self.weights + self.activations

    @property
    def memory(self) -> float:
        """Bytes of main memory; large weights are on a GPU, or in memory little more than once.

        A job that needs no GPU may run on a CPU, so it may have its activations in main memory.
        """
        rule = RULES[self.rule]
        copies = min(rule.copies, 1.2) if self.weights > OWN_GPU else rule.copies
        activations = 0 if self.needs_gpu else self.activations
        return 1e6 * rule.memory_mb + self.weights * copies + self.read + activations

    def seconds(self, rates: Mapping[str, float]) -> float:
        """Estimated time. rates: multiply-adds per second by rule; a rule without one gets an assumed rate."""
        assumed = 1e12 * (DECODING if RULES[self.rule].timed else TFLOPS)
        return START + self.weights / LOADED + self.flops / rates.get(self.rule, assumed)

    def measured_seconds(self, root: Path) -> float | None:
        """Time of its last successful run, from its `benchmark:` file in the study's folder; None without one."""
        seconds = logs.times(root / "benchmarks" / f"{self.place}.tsv").get("s")
        return None if seconds is None else float(seconds)

    def resources(self, attempt: int = 1, here: Sequence[float] = ()) -> dict[str, int | str]:
        """Resources for its rule; the time limit is three times the estimate, and at least half an hour.

        Memory and time limit grow with each attempt (x 2, x 3). Clusters name GPUs `gpu` (a number) or `gres` (text,
        empty for none); `devices` is our own name. here: bytes of the GPUs of this machine, if the job runs here; other
        GPUs are taken to have 80 GB.
        """
        minutes = math.ceil(max(30, 3 * self.seconds({}) / 60))
        gpus = min(len(here), self.gpus_of(USABLE * min(here))) if here else self.gpus
        return {
            "mem_mb": math.ceil(self.memory / 1e6) * attempt, "runtime": minutes * attempt, "devices": gpus,
            "gpu": gpus, "gres": f"gpu:{gpus}" if gpus else "",
        }  # fmt: skip
