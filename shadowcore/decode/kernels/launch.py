"""What all kernels share: when they may run into each other, and how their indices are passed.

On a GPU that can (capability 9.0 and later) a kernel starts while the one before it still runs: programmatic
dependent launch. It then waits for that kernel's results, but may before load the weights it will need, where their
addresses are known. A kernel lets its successor start only after its own wait, so whatever the last but one kernel
wrote is there from the beginning. Where streams part or meet (`Branch`) a kernel starts only when everything before it
has ended; its successor starts after it, so both find all of that from their beginning, and the rule holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Units(NamedTuple):
    """Units of one layer to compute, on the device: the first `count` of `index`, in any order, without repeats.

    Where `block` is more than 1, each stands for so many neighbouring ones.
    """

    index: torch.Tensor  # (capacity,) int32
    count: torch.Tensor  # (1,) int32
    early: bool = False  # written before the last kernel began: weights may be fetched ahead
    rows: torch.Tensor | None = None  # (capacity,) int32: bit b is set where sequence b of a batch keeps the unit
    block: int = 1

    @property
    def capacity(self) -> int:
        """The most units there may be."""
        return len(self.index)


@cache
def overlaps(device: torch.device) -> bool:
    """Whether kernels on this device may start before the one ahead has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def processors(device: torch.device) -> int:
    """How many programs run side by side at least: a GPU's multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_parted = False  # whether streams parted or met since the last kernel


def options(device: torch.device, warps: int) -> dict[str, Any]:
    """Launch options of every kernel: warps a program, and the overlap with the kernel before, if it has just one."""
    global _parted
    pdl, parted, _parted = overlaps(device), _parted, False
    return {"PDL": pdl, "num_warps": warps} | ({"launch_pdl": True} if pdl and not parted else {})


class Branch:
    """Kernels beside those that are launched after them, on a stream of their own; without a GPU they run in line."""

    def __init__(self, device: torch.device):
        # few programs that many wait for: they go first wherever there is room
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._open = False

    def __call__(self, launch: Callable[[], None]) -> None:
        """Launch some, after everything up to now; nothing else may write what they read or write until `join`."""
        global _parted
        if self._stream is None:
            launch()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            _parted = True
            launch()
        self._open = True

    def join(self) -> None:
        """What is launched from now on comes after them."""
        global _parted
        if self._open:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._open, _parted = False, True


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return triton.next_power_of_2(number)


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the kernel before; from here on the next one may start."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
