"""The two products that read a model's weights, for a few vectors at once: each weight is read once for all of them.

Vectors are padded to a power of two and to 16, the fewest rows the matrix units take. `units` are what some of the
sequences keep; what a sequence does not keep is zero in its results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.fused_norm import Normed, Partial, Read, norm_of, norm_sizes
from shadowcore.decode.kernels.gemv import (
    ACTIVATIONS,
    GATED,
    activated,
    constants_of,
    finished,
    listed,
    listed_row,
    row_of,
    slots_of,
    taken_apart,
)
from shadowcore.decode.kernels.launch import (
    Units,
    options,
    pdl_launch_dependents,
    pdl_wait,
    power_of_two,
    power_of_two_within,
    shared_memory,
)

FEWEST = 16  # sequences of a product: a power of two of them, the others padding
ROWS, COLUMNS, STAGES = 64, 128, 4  # of a product's weights at a time, at most, and how many are under way
SUM_ROWS, SUM_COLUMNS = 64, 128  # ... of a sum's
SUM_PROGRAMS, SUM_GROUP = 512, 128  # programs of a sum that fill the device, and fewest rows of one


@triton.jit
def _products(
    x, stride, weight, row, used, b, batch,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Every vector times every row in use: (B, rows)."""
    total = tl.zeros([b.shape[0], ROWS], tl.float32)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < D
        v = tl.load(x + b[:, None] * stride + column[None, :], mask=(b < batch)[:, None] & inside[None, :], other=0.0)
        w = tl.load(weight + row[:, None] * D + column[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        total = tl.dot(v.to(TYPE), tl.trans(w.to(TYPE)), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["gathered", "tail_shift", "total", "eps", "batch"])
def _project(
    x, weight, gains, bias, scale, moments, units, count, bits, out, gathered, tail_shift, total, eps, batch,
    x_stride, stride,
    D: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, RMS: tl.constexpr,
    TYPE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    b = tl.arange(0, BATCH)
    slot = tl.program_id(0) * (ROWS // PARTS) + tl.arange(0, ROWS) // PARTS
    row, used = row_of(slot, slot < total, units, count, gathered, tail_shift, UNIT)
    row = row * PARTS + tl.arange(0, ROWS) % PARTS
    mean, deviation = 0.0, 1.0
    if moments is not None:
        mean, deviation = norm_of(moments, eps, D, PIECE, PIECES, RMS, b[:, None], (b < batch)[:, None])
    y = _products(x, x_stride, weight, row, used, b, batch, D, ROWS, COLUMNS, TYPE)
    y = finished(y, constants_of(row[None, :], used[None, :], scale, gains, bias), mean, deviation)
    up = y
    if PARTS == 2:
        y, up = tl.split(tl.reshape(y, [BATCH, ROWS // 2, 2]))
        slot = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        _, used = row_of(slot, slot < total, units, count, gathered, tail_shift, UNIT)
    y = activated(y, up, ACTIVATION, PARTS)
    if bits is not None:
        keeps = tl.load(bits + slot // UNIT, mask=used, other=0)
        y = tl.where(((keeps[None, :] >> b[:, None]) & 1) != 0, y, 0.0)
    tl.store(out + b[:, None] * stride + slot[None, :], y, mask=(b < batch)[:, None] & used[None, :])


def project(
    x: torch.Tensor | Normed, weight: torch.Tensor, read: Read, out: torch.Tensor, units: Units | None = None,
    unit_rows: int = 1, tail_rows: int = 0, activation: str = "none", scale: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """As `gemv.project` for x (B, D) and out (B, ...), its rows together; B up to 64.

    What a sequence does not keep is zero; beside rows that all keep it is left to who reads it.
    """
    width, parts = weight.shape[-1], 2 if activation in GATED else 1
    gathered, tail_shift, total = slots_of(weight, parts, units, unit_rows, tail_rows)
    vectors, moments, norm = taken_apart(x)
    bits = units.rows if units is not None and not tail_rows else None
    padded = max(FEWEST, power_of_two(len(vectors)))
    _project[(max(1, triton.cdiv(total * parts, ROWS)),)](
        vectors, weight, read.gains, read.bias, scale, moments, units and units.index, units and units.count, bits, out,
        gathered, tail_shift, total, norm.eps, len(vectors), vectors.stride(0), out.stride(0),
        D=width, UNIT=unit_rows, PARTS=parts, ACTIVATION=ACTIVATIONS[activation], BATCH=padded, ROWS=ROWS,
        COLUMNS=_fitting(COLUMNS, weight, ROWS, padded), **norm_sizes(norm), TYPE=_multiplied(weight),
        num_stages=STAGES, **options(weight.device, 4),
    )  # fmt: skip


def _fitting(most: int, weight: torch.Tensor, along: int, vectors: int) -> int:
    """How many columns (or rows) of a tile that is `along` wide, and of the vectors, fit into shared memory."""
    each = STAGES * (along * weight.itemsize + vectors * torch.float32.itemsize)
    return min(most, power_of_two_within(shared_memory(weight.device) // each))


def _multiplied(weight: torch.Tensor) -> tl.dtype:
    """Format of a product's factors; on a CPU not bfloat16, whose bits Triton's interpreter multiplies as integers."""
    narrow = tl.bfloat16 if weight.is_cuda else tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16}.get(weight.dtype, narrow)


@triton.jit(do_not_specialize=["slots", "batch"])
def _accumulate(
    amount, weight, units, count, partial, slots, batch, stride,
    D: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TYPE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    group, column = tl.program_id(1), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    b = tl.arange(0, BATCH)
    if count is not None:
        slots = tl.load(count) * UNIT
    end = tl.minimum(slots, (group + 1) * GROUP)
    total = tl.zeros([BATCH, COLUMNS], tl.float32)
    slot = group * GROUP + tl.arange(0, ROWS)
    unit = listed(units, slot, slot < end, UNIT)
    for _ in range(group * GROUP, end, ROWS):
        here = slot < end
        a = tl.load(amount + b[:, None] * stride + slot[None, :], mask=(b < batch)[:, None] & here[None, :], other=0.0)
        place = weight + listed_row(units, unit, slot, here, UNIT)[:, None] * D + column[None, :]
        w = tl.load(place, mask=here[:, None] & (column < D)[None, :], other=0.0, eviction_policy="evict_first")
        slot += ROWS
        unit = listed(units, slot, slot < end, UNIT)  # the next ones: weights on their way wait for no list
        total = tl.dot(a.to(TYPE), w.to(TYPE), total, input_precision="ieee")
    if group * GROUP < slots:
        place = (group * batch + b).to(tl.int64)[:, None] * D + column[None, :]
        tl.store(partial + place, total, mask=(b < batch)[:, None] & (column < D)[None, :])


def partial_sums(batch: int, width: int, slots: int, unit_rows: int, device: torch.device) -> Partial:
    """Room for sums of up to `slots` rows."""
    group = max(SUM_GROUP, power_of_two(slots * triton.cdiv(width, SUM_COLUMNS) // SUM_PROGRAMS))
    return Partial(batch, width, slots, unit_rows, group, device)


def accumulate(partial: Partial, amount: torch.Tensor, weight: torch.Tensor, units: Units | None = None) -> None:
    """sum_j a_bj W_r for every sequence: amount (B, slots) float32, its rows together, r the j-th row of the units."""
    width, padded = weight.shape[-1], max(FEWEST, power_of_two(len(amount)))
    partial.count = None if units is None else units.count
    _accumulate[triton.cdiv(width, SUM_COLUMNS), max(1, len(partial.addends))](
        amount, weight, units and units.index, partial.count, partial.addends, partial.slots,
        len(amount), amount.stride(0),
        D=width, UNIT=partial.unit_rows, GROUP=partial.group, BATCH=padded, COLUMNS=SUM_COLUMNS,
        ROWS=_fitting(SUM_ROWS, weight, SUM_COLUMNS, padded), TYPE=_multiplied(weight), num_stages=STAGES,
        **options(weight.device, 4),
    )  # fmt: skip
