"""Low-bit copies of weight matrices: 2^b equal steps, symmetric about zero, with one step size for each row.

The largest value of a row is one of CLIPS, shares of its largest weight: the one with the least squared error. With
less than all of it, large weights are clipped, and the others are rounded more finely.
"""

from __future__ import annotations

import torch

CLIPS = tuple(i / 40 for i in range(8, 41))
SCALE_BYTES = 4  # a row's step size, in 32 bits


def row_steps(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The best step size (F, 1) of each row of a matrix (F, D), in its number format."""
    largest = weight.abs().amax(1, keepdim=True).float().clamp_min(1e-30)
    steps = torch.stack([(largest * clip / (2 ** (bits - 1) - 0.5)).to(weight.dtype) for clip in CLIPS])
    errors = torch.stack([(low_bit(weight, step, bits) - weight).float().square().sum(1) for step in steps])
    return steps.gather(0, errors.argmin(0)[None, :, None]).squeeze(0)


def low_bit(weight: torch.Tensor, step: torch.Tensor, bits: int) -> torch.Tensor:
    """A matrix (F, D) rounded to the middles of 2^bits intervals of each row's step (F, 1)."""
    half = 2 ** (bits - 1)
    codes = (weight.float() / step.float()).floor().clamp(-half, half - 1)
    return (codes + 0.5).to(weight.dtype) * step


def copy_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of such a copy, packed: every row begins at a whole byte, and has its step."""
    return rows * (-(-columns * bits // 8) + SCALE_BYTES)
