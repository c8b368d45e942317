"""What all kernels share: when they may run into each other, and how their indices are passed.

On a GPU that can (capability 9.0 and later) a kernel starts while the one before it still runs: programmatic
dependent launch. It then waits for that kernel's results, but may before load the weights it will need, where their
addresses are known. Most kernels let their successor start only after their own wait. The short ones between two
products (`settle`, attention) do so before it, so that the second product fetches weights while the first one ends;
no two of them are neighbours. So what a kernel reads ahead must have been written three kernels before it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Units(NamedTuple):
    """Units of one layer to compute, on the device: the first `count` of `index`, in any order, without repeats."""

    index: torch.Tensor  # (capacity,) int32
    count: torch.Tensor  # (1,) int32
    early: bool = False  # written three kernels before they are read: weights may be fetched ahead
    rows: torch.Tensor | None = None  # (capacity,) int32: bit b is set where sequence b of a batch keeps the unit

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


def options(device: torch.device, warps: int) -> dict[str, Any]:
    """Launch options of every kernel: warps a program, and the overlap with the kernel before."""
    pdl = overlaps(device)
    return {"PDL": pdl, "num_warps": warps} | ({"launch_pdl": True} if pdl else {})


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return triton.next_power_of_2(number)


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the kernel before; from here on the next one may start."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def pass_on(PDL: tl.constexpr):
    """The next kernel may start, though this one has not waited yet."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait for the kernel before."""
    if PDL:
        tl.extra.cuda.gdc_wait()
