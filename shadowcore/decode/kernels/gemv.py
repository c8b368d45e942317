"""Rows of weights times a vector, and sums of weighted rows: the two products that read a model's weights.

A unit is UNIT neighbouring rows of a weight (R, D). `units` says which units to compute; without it all are.
Everything is accumulated in float32, in an order that does not depend on timing. Offsets are 64 bits wide.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.attention import Mixed, mixed_of
from shadowcore.decode.kernels.fused_norm import Normed, Partial, Read, norm_of, norm_sizes
from shadowcore.decode.kernels.launch import (
    Units,
    options,
    pdl_launch_dependents,
    pdl_wait,
    power_of_two,
    power_of_two_within,
)

RELU, SILU = tl.constexpr(1), tl.constexpr(2)
ACTIVATIONS = {"none": 0, "relu": 1, "gated_relu": 1, "silu": 2}
GATED = ("gated_relu", "silu")  # activations of the gate row, which multiply the up row
COLUMNS = 1024  # of a weight row, in one piece
# sizes of the work of one program, as measured (results/reference/gpu-h100/tuning.txt)
TILE, WARPS = 16384, 4  # weights of a product
SUM_COLUMNS, SUM_TILE, SUM_WARPS = 1024, 16384, 4  # columns of a sum of rows, and weights of it at a time
SUM_GROUP, SUM_PROGRAMS = (16, 256), 396  # rows of one sum: fewest and most, for about so many programs
NOTHING = Read(None, None)


@triton.jit
def row_of(slot, used, units, count, gathered, tail_shift, UNIT: tl.constexpr):
    """The row that each slot of a product stands for, and whether it is in use: chosen units' rows, then the tail's."""
    row = slot.to(tl.int64)
    if units is not None:
        chosen = slot < gathered
        unit = tl.load(units + slot // UNIT, mask=chosen, other=0).to(tl.int64)
        row = tl.where(chosen, unit * UNIT + slot % UNIT, row + tail_shift)
        used = used & ((slot >= gathered) | (slot < tl.load(count) * UNIT))
    return tl.where(used, row, 0), used


@triton.jit
def weights_of_rows(weight, row, used, D: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows in use of a weight (R, D), zeros for the others: all loads on their way before the first is needed."""
    pieces = ()
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = used[:, None]
        if D % COLUMNS != 0:
            inside = inside & (column < D)[None, :]
        place = weight + row[:, None] * D + column[None, :]
        pieces = pieces + (tl.load(place, mask=inside, other=0.0, eviction_policy="evict_first"),)  # not read again
    return pieces


@triton.jit
def dot(pieces, x, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sum_d w_d x_d of each row whose weights are in `pieces`."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for piece in tl.static_range(len(pieces)):
        column = piece * COLUMNS + tl.arange(0, COLUMNS)
        v = tl.load(x + column, mask=column < D, other=0.0)
        total += pieces[piece].to(tl.float32) * v.to(tl.float32)[None, :]
    return tl.sum(total, 1)


@triton.jit
def constants_of(row, used, scale, gains, bias):
    """A row's own: the scale of its weights, and what the norm's gain and the bias come to; 1, 0 and 0 without."""
    own_scale, own_gain, own_bias = 1.0, 0.0, 0.0
    if scale is not None:
        own_scale = tl.load(scale + row, mask=used, other=0.0)
    if gains is not None:
        own_gain = tl.load(gains + row, mask=used, other=0.0)
    if bias is not None:
        own_bias = tl.load(bias + row, mask=used, other=0.0).to(tl.float32)
    return own_scale, own_gain, own_bias


@triton.jit
def finished(y, constants, mean, deviation):
    """What becomes of a product: times its row's scale, the rest of the norm (mean 0, deviation 1: none), the bias."""
    return (y * constants[0] - mean * constants[1]) * deviation + constants[2]


@triton.jit
def activated(y, up, ACTIVATION: tl.constexpr, PARTS: tl.constexpr):
    """A product after its activation function; with two parts, times `up`, the product of the other part."""
    if ACTIVATION == RELU:
        y = tl.maximum(y, 0.0)
    if ACTIVATION == SILU:
        y = y / (1.0 + tl.exp(-y))
    if PARTS == 2:
        y = y * up
    return y


@triton.jit(do_not_specialize=["gathered", "tail_shift", "total", "eps"])
def _project(
    x, weight, gains, bias, scale, moments, units, count, out, gathered, tail_shift, total, eps,
    D: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, RMS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, used = row_of(slot, slot < total, units, count, gathered, tail_shift, UNIT)
    row *= PARTS
    pieces = weights_of_rows(weight, row, used, D, COLUMNS)
    constants = constants_of(row, used, scale, gains, bias)
    if PARTS == 2:
        pieces_up = weights_of_rows(weight, row + 1, used, D, COLUMNS)
        constants_up = constants_of(row + 1, used, scale, gains, bias)
    pdl_wait(PDL)
    mean, deviation = 0.0, 1.0
    if moments is not None:
        mean, deviation = norm_of(moments, eps, D, PIECE, PIECES, RMS)
    y = finished(dot(pieces, x, D, ROWS, COLUMNS), constants, mean, deviation)
    up = y
    if PARTS == 2:
        up = finished(dot(pieces_up, x, D, ROWS, COLUMNS), constants_up, mean, deviation)
    tl.store(out + slot, activated(y, up, ACTIVATION, PARTS), mask=used)


def project(
    x: torch.Tensor | Normed, weight: torch.Tensor, read: Read, out: torch.Tensor, units: Units | None = None,
    unit_rows: int = 1, tail_rows: int = 0, activation: str = "none", scale: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """out_j = activation(scale_r W_r x + b_r), r the j-th row of the chosen units, then of the last tail_rows rows.

    x (D,) or the norm of a residual (1, D), weight (..., D), read.bias and scale one number a row, out float32. Rows of
    unused places of `units` are left as they were. With `silu` or `gated_relu` two rows belong together, gate and up:
    out_j = silu(gate) up, or relu(gate) up.
    """
    width = weight.shape[-1]
    parts = 2 if activation in GATED else 1
    gathered, tail_shift, total = slots_of(weight, parts, units, unit_rows, tail_rows)
    together = rows_together(width * parts)
    vector, moments, norm = taken_apart(x)
    _project[(max(1, triton.cdiv(total, together)),)](
        vector, weight, read.gains, read.bias, scale, moments, units and units.index, units and units.count, out,
        gathered, tail_shift, total, norm.eps,
        D=width, UNIT=unit_rows, PARTS=parts, ACTIVATION=ACTIVATIONS[activation], ROWS=together,
        COLUMNS=min(COLUMNS, power_of_two(width)), **norm_sizes(norm), **options(weight.device, WARPS),
    )  # fmt: skip


def slots_of(
    weight: torch.Tensor, parts: int, units: Units | None, unit_rows: int, tail_rows: int
) -> tuple[int, int, int]:
    """Results of a product that come from chosen units, how far the tail's rows lie behind theirs, and all of them."""
    rows = weight.numel() // weight.shape[-1] // parts
    gathered = rows - tail_rows if units is None else units.capacity * unit_rows
    return gathered, rows - gathered - tail_rows, gathered + tail_rows


def taken_apart(x: torch.Tensor | Normed) -> tuple[torch.Tensor, torch.Tensor | None, Normed]:
    """The numbers to multiply, the moments of their norm if any, and the norm."""
    if isinstance(x, Normed):
        return x.scaled, x.moments, x
    return x, None, Normed(x, x, 0.0, False)


def rows_together(width: int) -> int:
    """Rows of so many numbers that a program computes: a power of two of them fills its registers."""
    return max(1, min(64, power_of_two_within(TILE // width)))


@triton.jit
def listed(units, slot, used, UNIT: tl.constexpr):
    """The units that the slots in use stand for; without a list, the slots themselves."""
    if units is not None:
        return tl.load(units + slot // UNIT, mask=used, other=0)
    return slot


@triton.jit
def listed_row(units, unit, slot, used, UNIT: tl.constexpr):
    """The weight's row of each slot in use, after `listed` found its unit."""
    row = unit.to(tl.int64)
    if units is not None:
        row = row * UNIT + slot % UNIT
    return tl.where(used, row, 0)


@triton.jit
def addends(weight, slot, used, units, column, D: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr):
    """Some columns of the weight rows that the slots in use stand for, zeros for the others."""
    row = listed_row(units, listed(units, slot, used, UNIT), slot, used, UNIT)
    inside = used[:, None]
    if D % COLUMNS != 0:
        inside = inside & (column < D)[None, :]
    place = weight + row[:, None] * D + column[None, :]
    return tl.load(place, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["slots"])
def _accumulate(
    amount, shares, weight, units, count, partial, threshold, slots,
    D: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    group, column = tl.program_id(1), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if count is not None:
        slots = tl.load(count) * UNIT
    end = tl.minimum(slots, (group + 1) * GROUP)
    slot = group * GROUP + tl.arange(0, ROWS)
    if threshold is None:
        w = addends(weight, slot, slot < end, units, column, D, UNIT, COLUMNS)
    pdl_wait(PDL)
    total = tl.zeros([COLUMNS], tl.float32)
    for _ in range(0, GROUP, ROWS):
        if shares is not None:
            a = mixed_of(amount, shares, slot, slot < end, UNIT, SPLITS, PARTS)
        else:
            a = tl.load(amount + slot, mask=slot < end, other=0.0).to(tl.float32)
        if threshold is None:
            total += tl.sum(a[:, None] * w.to(tl.float32), 0)
            slot += ROWS
            w = addends(weight, slot, slot < end, units, column, D, UNIT, COLUMNS)  # while the next a is loaded
        else:
            here = (slot < end) & (tl.abs(a) > threshold)
            w = addends(weight, slot, here, units, column, D, UNIT, COLUMNS)
            total += tl.sum(a[:, None] * w.to(tl.float32), 0)
            slot += ROWS
    if group * GROUP < slots:
        tl.store(partial + group.to(tl.int64) * D + column, total, mask=column < D)


def partial_sums(width: int, slots: int, unit_rows: int, device: torch.device) -> Partial:
    """Room for sums of up to `slots` rows: programs that fill the device just once, few sums to add up."""
    programs = triton.cdiv(width, min(SUM_COLUMNS, power_of_two(width)))
    fewest, most = SUM_GROUP
    group = min(max(triton.cdiv(slots * programs, SUM_PROGRAMS), fewest), most)
    group += -group % fewest
    return Partial(1, width, slots, unit_rows, group, device)


def accumulate(
    partial: Partial, amount: torch.Tensor | Mixed, weight: torch.Tensor, units: Units | None = None,
    threshold: float | None = None,
) -> None:  # fmt: skip
    """sum_j a_j W_r, r the j-th row of the chosen units: amount (slots,) float32 or heads' outputs, weight (..., D).

    Rows with abs(a_j) <= threshold are not read.
    """
    width = weight.shape[-1]
    columns = min(SUM_COLUMNS, power_of_two(width))
    partial.count = None if units is None else units.count
    mixed, shares, splits = amount if isinstance(amount, Mixed) else (amount, None, 1)
    _accumulate[triton.cdiv(width, columns), max(1, len(partial.addends))](
        mixed, shares, weight, units and units.index, partial.count, partial.addends, threshold, partial.slots,
        D=width, UNIT=partial.unit_rows, GROUP=partial.group,
        ROWS=min(power_of_two(partial.group), max(1, SUM_TILE // columns)),
        COLUMNS=columns, SPLITS=splits, PARTS=power_of_two(splits), **options(weight.device, SUM_WARPS),
    )  # fmt: skip
