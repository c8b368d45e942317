"""What all kernels share: when they may run into each other, and how their indices are passed.

On a GPU that can (capability 9.0 and later) a kernel starts while those before it still run: programmatic dependent
launch. It lets the next one start at once, loads the weights it will need, and only then waits for the results of the
one before, which ended after a wait of its own. So whatever a kernel reads before its wait (weights, the position, the
lists of units) must be there when its row of kernels starts. A row starts with a step, whose first kernel waits before
it lets the next one start, and wherever streams part or meet (`Branch`): there a kernel starts only when everything
before it has ended.
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
    rows: torch.Tensor | None = None  # (capacity,) int64: bit b is set where sequence b of a batch keeps the unit
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


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may share between its threads; as good as any number where kernels are interpreted."""
    cuda = device.type == "cuda"
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if cuda else 2**20


power_of_two = triton.next_power_of_2  # the smallest that is not below a number
_overlap = 1  # of the next kernel with the one before: 0 none, 1 up to its wait, 2 it is launched and waits at once


def options(device: torch.device, warps: int) -> dict[str, Any]:
    """Launch options of every kernel: warps a program, and the overlap with the kernel before, if it has just one."""
    global _overlap
    pdl, overlap, _overlap = int(overlaps(device)), _overlap, 1
    return {"PDL": pdl * max(1, overlap), "num_warps": warps} | ({"launch_pdl": True} if pdl and overlap else {})


def begin_row(overlap: int = 0) -> None:
    """The next kernel reads nothing before everything before it has ended; overlap 2: on one stream, see above."""
    global _overlap
    _overlap = overlap


class Branch:
    """Kernels beside those that are launched after them, on a stream of their own; without a GPU they run in line."""

    def __init__(self, device: torch.device):
        # few programs that many wait for: they go first wherever there is room
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._open = False

    def __call__(self, launch: Callable[[], None]) -> None:
        """Launch some, after everything up to now; nothing else may write what they read or write until `join`."""
        if self._stream is None:
            launch()
            begin_row()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            begin_row()
            launch()
        self._open = True

    def join(self) -> None:
        """What is launched from now on comes after them."""
        if self._open:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._open = False
            begin_row()


def power_of_two_within(number: int) -> int:
    """The largest power of two that is not above `number`; 0 for 0."""
    return power_of_two(number + 1) // 2


@triton.jit
def pdl_launch_dependents(PDL: tl.constexpr):
    """The next kernel starts once every program of this one has come here, as far as there is room."""
    if PDL:
        if PDL == 2:
            tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def pdl_wait(PDL: tl.constexpr):
    """Until the kernel before has ended: from here on there is what it, and any before it, wrote."""
    if PDL:
        tl.extra.cuda.gdc_wait()
