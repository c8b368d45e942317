"""Rows of weights times a vector, sums of weighted rows, and what stands between them: the residual and its norm.

A unit is UNIT neighbouring rows of a weight (R, D). `units` says which units to compute; without it all are.
Everything is accumulated in float32, in an order that does not depend on timing. Offsets are 64 bits wide.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.launch import Units, begin, options, power_of_two

ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2}  # silu: of the gate row, times the row beside it
COLUMNS = 1024  # of a weight row, in one piece
# sizes of the work of one program, as measured on an H200 (results/reference/gpu/tuning.txt)
TILE = 8192  # weights of a product
SUM_COLUMNS, SUM_TILE = 1024, 8192  # columns of a sum of rows, and weights of it at a time
SUM_GROUP, SUM_PROGRAMS = (16, 256), 1024  # rows of one sum: fewest and most, so that there are so many programs
SETTLED, ADDENDS = 32, 128  # columns of the residual, and sums that are added at a time


@triton.jit
def weights_of_rows(weight, row, used, D: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows in use of a weight (R, D), zeros for the others: all loads on their way before the first is needed."""
    pieces = ()
    for start in tl.static_range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = used[:, None]
        if D % COLUMNS != 0:
            inside = inside & (column < D)[None, :]
        pieces = pieces + (tl.load(weight + row[:, None] * D + column[None, :], mask=inside, other=0.0),)
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


@triton.jit(do_not_specialize=["gathered", "tail_shift", "total"])
def _project(
    x, weight, bias, scale, units, count, out, gathered, tail_shift, total,
    D: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if not EARLY:
        begin(PDL)
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, used = slot.to(tl.int64), slot < total
    if units is not None:
        chosen = slot < gathered
        unit = tl.load(units + slot // UNIT, mask=chosen, other=0).to(tl.int64)
        row = tl.where(chosen, unit * UNIT + slot % UNIT, row + tail_shift)
        used = used & ((slot >= gathered) | (slot < tl.load(count) * UNIT))
    row = tl.where(used, row, 0) * PARTS
    pieces = weights_of_rows(weight, row, used, D, COLUMNS)
    if PARTS == 2:
        pieces_beside = weights_of_rows(weight, row + 1, used, D, COLUMNS)
    if EARLY:
        begin(PDL)
    y = dot(pieces, x, D, ROWS, COLUMNS)
    if scale is not None:
        y *= tl.load(scale + row, mask=used, other=0.0)
    if bias is not None:
        y += tl.load(bias + row, mask=used, other=0.0).to(tl.float32)
    if ACTIVATION == 1:
        y = tl.maximum(y, 0.0)
    if PARTS == 2:
        beside = dot(pieces_beside, x, D, ROWS, COLUMNS)
        if bias is not None:
            beside += tl.load(bias + row + 1, mask=used, other=0.0).to(tl.float32)
        y = y / (1.0 + tl.exp(-y)) * beside
    tl.store(out + slot, y, mask=used)


def project(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    units: Units | None = None,
    unit_rows: int = 1,
    tail_rows: int = 0,
    activation: str = "none",
    scale: torch.Tensor | None = None,
) -> None:
    """out_j = activation(scale_r W_r x + b_r), r the j-th row of the chosen units, then of the last tail_rows rows.

    x (D,), weight (..., D), bias and scale one number a row, out float32. Rows of unused places of `units` are left
    as they were. With `silu` two rows belong together, the gate and the one beside it: out_j = silu(gate) up.
    """
    width = weight.shape[-1]
    parts = 2 if activation == "silu" else 1
    rows = weight.numel() // width // parts
    gathered = rows - tail_rows if units is None else units.capacity * unit_rows
    total = gathered + tail_rows
    together = rows_together(width * parts)
    _project[(max(1, triton.cdiv(total, together)),)](
        x, weight, bias, scale, units and units.index, units and units.count, out,
        gathered, rows - total, total,
        D=width, UNIT=unit_rows, PARTS=parts, ACTIVATION=ACTIVATIONS[activation], ROWS=together,
        COLUMNS=min(COLUMNS, power_of_two(width)), EARLY=units is None or units.early,
        **options(x.device, 4),
    )  # fmt: skip


def rows_together(width: int) -> int:
    """Rows of so many numbers that a program computes: a power of two of them fills its registers."""
    return max(1, min(64, power_of_two(TILE // width + 1) // 2))


@triton.jit
def _rows_at(slot, used, units, UNIT: tl.constexpr):
    """The weight row that each slot in use stands for."""
    row = slot.to(tl.int64)
    if units is not None:
        row = tl.load(units + slot // UNIT, mask=used, other=0).to(tl.int64) * UNIT + slot % UNIT
    return tl.where(used, row, 0)


@triton.jit
def _addends(weight, slot, used, units, column, D: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr):
    """Some columns of the weight rows that the slots in use stand for, zeros for the others."""
    row = _rows_at(slot, used, units, UNIT)
    inside = used[:, None]
    if D % COLUMNS != 0:
        inside = inside & (column < D)[None, :]
    return tl.load(weight + row[:, None] * D + column[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["slots"])
def _accumulate(
    amount, weight, units, count, partial, threshold, slots,
    D: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if not EARLY:
        begin(PDL)
    group, column = tl.program_id(1), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if count is not None:
        slots = tl.load(count) * UNIT
    end = tl.minimum(slots, (group + 1) * GROUP)
    slot = group * GROUP + tl.arange(0, ROWS)
    if threshold is None:
        w = _addends(weight, slot, slot < end, units, column, D, UNIT, COLUMNS)
    if EARLY:
        begin(PDL)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for _ in range(0, GROUP, ROWS):
        a = tl.load(amount + slot, mask=slot < end, other=0.0).to(tl.float32)
        if threshold is None:
            total += a[:, None] * w.to(tl.float32)
            slot += ROWS
            w = _addends(weight, slot, slot < end, units, column, D, UNIT, COLUMNS)  # while the next a is loaded
        else:
            here = (slot < end) & (tl.abs(a) > threshold)
            w = _addends(weight, slot, here, units, column, D, UNIT, COLUMNS)
            total += a[:, None] * w.to(tl.float32)
            slot += ROWS
    if group * GROUP < slots:
        tl.store(partial + group.to(tl.int64) * D + column, tl.sum(total, 0), mask=column < D)


class Partial:
    """A sum of weighted rows on its way: one addend (D,) per group of rows, added up by the next `settle`."""

    def __init__(self, width: int, slots: int, unit_rows: int, device: torch.device):
        """Room for sums of up to `slots` rows; units of `unit_rows` rows."""
        self.width, self.unit_rows = width, unit_rows
        self.columns = min(SUM_COLUMNS, power_of_two(width))
        programs = triton.cdiv(width, self.columns)
        # enough programs to fill the device, few enough sums to add up
        self.group = min(max(power_of_two(slots * programs // SUM_PROGRAMS), SUM_GROUP[0]), SUM_GROUP[1])
        self.addends = torch.empty(triton.cdiv(slots, self.group), width, dtype=torch.float32, device=device)
        self.slots, self.count = slots, None

    def accumulate(
        self, amount: torch.Tensor, weight: torch.Tensor, units: Units | None = None, threshold: float | None = None
    ) -> None:
        """sum_j a_j W_r, r the j-th row of the chosen units: amount (slots,) float32, weight (..., D).

        Rows with abs(a_j) <= threshold are not read.
        """
        self.count = None if units is None else units.count
        grid = triton.cdiv(self.width, self.columns), max(1, len(self.addends))
        _accumulate[grid](
            amount, weight, units and units.index, self.count, self.addends, threshold, self.slots,
            D=self.width, UNIT=self.unit_rows, GROUP=self.group, ROWS=min(self.group, max(1, SUM_TILE // self.columns)),
            COLUMNS=self.columns, EARLY=units is None or units.early, **options(weight.device, 4),
        )  # fmt: skip


@triton.jit(do_not_specialize=["eps", "slots"])
def _settle(
    partial, count, slots, bias, residual, arrivals, norm_weight, norm_bias, out, eps,
    D: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, RMS: tl.constexpr,
    COLUMNS: tl.constexpr, TOGETHER: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < D
    if partial is not None:
        if count is not None:
            slots = tl.load(count) * UNIT
        groups = tl.cdiv(slots, GROUP)
        sums = tl.zeros([TOGETHER, COLUMNS], tl.float32)
        for first in range(0, groups, TOGETHER):
            group = first + tl.arange(0, TOGETHER)
            here = (group < groups)[:, None] & inside[None, :]
            sums += tl.load(partial + group[:, None] * D + column[None, :], mask=here, other=0.0)
        total = tl.load(residual + column, mask=inside, other=0.0) + tl.sum(sums, 0)
        if bias is not None:
            total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual + column, total, mask=inside)
    # who arrives last sees the whole residual and norms it
    tl.debug_barrier()
    if tl.atomic_add(arrivals, 1) == tl.num_programs(0) - 1:
        every = tl.arange(0, WIDTH)
        there = every < D
        x = tl.load(residual + every, mask=there, other=0.0)
        if norm_weight is not None:
            gain = tl.load(norm_weight + every, mask=there, other=0.0).to(tl.float32)
        if norm_bias is not None:
            shift = tl.load(norm_bias + every, mask=there, other=0.0).to(tl.float32)
        if not RMS:
            x = tl.where(there, x - tl.sum(x, 0) / D, 0.0)
        x = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps)
        if norm_weight is not None:
            x = x * gain
        if norm_bias is not None:
            x += shift
        tl.store(out + every, x, mask=there)
        tl.store(arrivals, 0)


def settle(
    partial: Partial | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    arrivals: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    rms: bool,
    out: torch.Tensor,
) -> None:
    """residual += sum of the partial sums + bias, then out = LayerNorm or RMSNorm of it.

    residual (D,) float32, out (D,), arrivals one int32 that is zero before and after.
    """
    width = len(residual)
    there = partial is not None
    _settle[(triton.cdiv(width, SETTLED),)](
        partial.addends if there else None, partial.count if there else None, partial.slots if there else 0,
        bias, residual, arrivals, norm_weight, norm_bias, out, eps,
        D=width, UNIT=partial.unit_rows if there else 1, GROUP=partial.group if there else 1, RMS=rms,
        COLUMNS=SETTLED, TOGETHER=ADDENDS, WIDTH=power_of_two(width), **options(residual.device, 8),
    )  # fmt: skip
