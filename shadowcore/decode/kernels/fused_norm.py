"""The residual between two parts of a layer: where it comes from, what is added to it, and its norm half done.

A norm needs the whole residual, and the product that follows is linear in it, so nobody waits for the norm: with the
residual x, a norm's gain g and shift s, and m and r the mean and the reciprocal deviation of x,

    W ((x - m) r g + s)  =  r (W (x g) - m (W g)) + W s

What is left here are x g and the moments of each piece of x; W g and W s are known beforehand (`folded`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.launch import options, pdl_launch_dependents, pdl_wait, power_of_two

PIECE, ADDENDS, WARPS = 16, 128, 4  # columns of one program, and sums that are added at a time


class Normed(NamedTuple):
    """A residual (B, D) on its way into products: times the norm's gain, and the moments of its pieces."""

    scaled: torch.Tensor  # (B, D)
    moments: torch.Tensor  # (B, 2, pieces) float32: the sum, and the sum of squares about the piece's own mean
    eps: float
    rms: bool

    @classmethod
    def empty(cls, batch: int, width: int, dtype: torch.dtype, device: torch.device) -> Normed:
        """Room for one; `eps` and `rms` are those of no norm in particular."""
        moments = torch.empty(batch, 2, triton.cdiv(width, PIECE), dtype=torch.float32, device=device)
        return cls(torch.empty(batch, width, dtype=dtype, device=device), moments, 0.0, False)


class Read(NamedTuple):
    """What a product of a normed residual needs beside the weight (R, D): W g, and W s + bias, float32 (R,)."""

    gains: torch.Tensor | None
    bias: torch.Tensor | None


def norm_sizes(norm: Normed) -> dict[str, object]:
    """What `norm_of` needs to know, as a kernel's arguments."""
    pieces = triton.cdiv(norm.scaled.shape[-1], PIECE)
    return {"PIECE": PIECE, "PIECES": power_of_two(pieces), "RMS": norm.rms}


def folded(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    rms: bool,
) -> Read:
    """A norm's gain and shift through the weight (R, D) that reads it; some rows in float32 at a time."""

    def through(vector: torch.Tensor | None) -> torch.Tensor:
        if vector is None:
            return torch.cat([rows.float().sum(-1) for rows in weight.split(4096)])
        return torch.cat([rows.float() @ vector.float() for rows in weight.split(4096)])

    shift = None if norm_bias is None else through(norm_bias)
    if bias is not None:
        shift = bias.float() if shift is None else shift + bias.float()
    return Read(None if rms else through(norm_weight), shift)


@triton.jit
def norm_of(
    moments, eps, D: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, RMS: tl.constexpr, row=0, used=True
):
    """The mean (0 for RMS) and the reciprocal deviation of a residual of D numbers, or of those in use (B, 1)."""
    piece = tl.arange(0, PIECES)
    there = piece * PIECE < D
    pieces: tl.constexpr = (D + PIECE - 1) // PIECE
    size = tl.where(there, tl.minimum(D - piece * PIECE, PIECE), 1).to(tl.float32)
    there = there & used
    total = tl.load(moments + row * 2 * pieces + piece, mask=there, other=0.0)
    squares = tl.load(moments + (row * 2 + 1) * pieces + piece, mask=there, other=0.0)
    mean = 0.0
    if not RMS:
        mean = tl.sum(total, -1, keep_dims=True) / D
    away = total / size - mean
    squares += tl.where(there, size * away * away, 0.0)
    return mean, tl.rsqrt(tl.sum(squares, -1, keep_dims=True) / D + eps)


@triton.jit
def _leave(x, row, piece, column, inside, residual, gain, scaled, moments, D: tl.constexpr, PIECE: tl.constexpr):
    """Store a piece of a residual: itself, times the gain, and its moments."""
    tl.store(residual + row * D + column, x, mask=inside)
    total = tl.sum(tl.where(inside, x, 0.0), 0)
    away = tl.where(inside, x - total / tl.minimum(D - piece * PIECE, PIECE), 0.0)
    pieces: tl.constexpr = (D + PIECE - 1) // PIECE
    tl.store(moments + row * 2 * pieces + piece, total)
    tl.store(moments + (row * 2 + 1) * pieces + piece, tl.sum(away * away, 0))
    if gain is not None:
        x *= tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(scaled + row * D + column, x, mask=inside)


@triton.jit(do_not_specialize=["slots"])
def _settle(
    partial, count, slots, bias, residual, gain, scaled, moments, ahead_gain, ahead_scaled, ahead_moments,
    D: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, PIECE: tl.constexpr, ADDENDS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    piece, row, batch = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = piece * PIECE + tl.arange(0, PIECE)
    inside = column < D
    if count is not None:
        slots = tl.load(count) * UNIT
    groups = tl.cdiv(slots, GROUP)
    x = tl.load(residual + row * D + column, mask=inside, other=0.0)
    if bias is not None:
        x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([ADDENDS, PIECE], tl.float32)
    for first in range(0, groups, ADDENDS):
        group = first + tl.arange(0, ADDENDS)
        here = (group < groups)[:, None] & inside[None, :]
        sums += tl.load(partial + (group * batch + row)[:, None] * D + column[None, :], mask=here, other=0.0)
    x += tl.sum(sums, 0)
    _leave(x, row, piece, column, inside, residual, gain, scaled, moments, D, PIECE)
    if ahead_scaled is not None:
        _leave(x, row, piece, column, inside, residual, ahead_gain, ahead_scaled, ahead_moments, D, PIECE)


class Partial:
    """A sum of weighted rows on its way: one addend (B, D) per group of rows, added up by the next `settle`."""

    def __init__(self, batch: int, width: int, slots: int, unit_rows: int, group: int, device: torch.device):
        """Room for sums of up to `slots` rows, `group` of them an addend; units of `unit_rows` rows."""
        self.unit_rows, self.group = unit_rows, group
        self.addends = torch.empty(triton.cdiv(slots, group), batch, width, dtype=torch.float32, device=device)
        self.slots, self.count = slots, None


def settle(
    partial: Partial, bias: torch.Tensor | None, residual: torch.Tensor, gain: torch.Tensor | None, out: Normed,
    ahead_gain: torch.Tensor | None = None, ahead: Normed | None = None,
) -> None:  # fmt: skip
    """residual += sum of the partial sums + bias, and the first half of the norm of it: residual (B, D) float32.

    ahead: the same residual for another norm, of gain ahead_gain.
    """
    batch, width = residual.shape
    together = min(ADDENDS, power_of_two(max(1, len(partial.addends))))
    _settle[(triton.cdiv(width, PIECE), batch)](
        partial.addends, partial.count, partial.slots, bias, residual, gain, out.scaled, out.moments,
        ahead_gain, ahead and ahead.scaled, ahead and ahead.moments,
        D=width, UNIT=partial.unit_rows, GROUP=partial.group, PIECE=PIECE, ADDENDS=together,
        **options(residual.device, WARPS),
    )  # fmt: skip


@triton.jit
def _embed(
    token, position, table, positions, residual, gain, scaled, moments,
    D: tl.constexpr, PIECE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_wait(PDL)
    pdl_launch_dependents(PDL)  # only now: the position is there for all that follow
    piece, row = tl.program_id(0), tl.program_id(1)
    column = piece * PIECE + tl.arange(0, PIECE)
    inside = column < D
    x = tl.load(table + tl.load(token + row) * D + column, mask=inside, other=0.0).to(tl.float32)
    if positions is not None:
        x += tl.load(positions + tl.load(position) * D + column, mask=inside, other=0.0).to(tl.float32)
    _leave(x, row, piece, column, inside, residual, gain, scaled, moments, D, PIECE)


def embed(
    token: torch.Tensor,
    position: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor | None,
    residual: torch.Tensor,
    gain: torch.Tensor | None,
    out: Normed,
) -> None:
    """residual = embedding of token (B,) + that of the position, and the first half of its norm."""
    batch, width = residual.shape
    _embed[(triton.cdiv(width, PIECE), batch)](
        token, position, table, positions, residual, gain, out.scaled, out.moments,
        D=width, PIECE=PIECE, **options(residual.device, 1),
    )  # fmt: skip
