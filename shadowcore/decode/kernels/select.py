"""From a feature to kept units: a predictor's two products, and an exact selection for all its layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.launch import begin, options, power_of_two, processors
from shadowcore.decode.kernels.rows import dot, rows_together, weights_of_rows

CHUNK, WARPS = 4096, 8  # scores whose places are found together; and warps


@triton.jit
def _score_rows(
    first, hidden, weight, bias, scale, scores, rows, stride, offset,
    UNITS: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """scores[l, offset + u] = scale W h + bias, of the rows (l, u) from `first` on."""
    row = first + tl.arange(0, ROWS).to(tl.int64)
    used = row < rows
    pieces = weights_of_rows(weight, row, used, RANK, COLUMNS)
    begin(PDL)
    score = dot(pieces, hidden, RANK, ROWS, COLUMNS)
    if scale is not None:
        score *= tl.load(scale + row, mask=used, other=0.0)
    score += tl.load(bias + row, mask=used, other=0.0)
    tl.store(scores + row // UNITS * stride + offset + row % UNITS, score, mask=used)


@triton.jit(do_not_specialize=["layers", "programs"])
def _score(
    hidden, head_weight, head_bias, head_scale, neuron_weight, neuron_bias, neuron_scale, scores, layers, programs,
    STRIDE: tl.constexpr, START: tl.constexpr,
    HEADS: tl.constexpr, NEURONS: tl.constexpr, HEAD_RANK: tl.constexpr, NEURON_RANK: tl.constexpr,
    ROWS: tl.constexpr, HEAD_COLUMNS: tl.constexpr, NEURON_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < programs:  # the heads' share of the programs
        if HEADS > 0:
            _score_rows(
                program * ROWS, hidden, head_weight, head_bias, head_scale, scores, layers * HEADS,
                STRIDE, 0, HEADS, HEAD_RANK, ROWS, HEAD_COLUMNS, PDL,
            )  # fmt: skip
    elif NEURONS > 0:
        _score_rows(
            (program - programs) * ROWS, hidden + HEAD_RANK, neuron_weight, neuron_bias, neuron_scale, scores,
            layers * NEURONS, STRIDE, START, NEURONS, NEURON_RANK, ROWS, NEURON_COLUMNS, PDL,
        )  # fmt: skip


class Scorer(NamedTuple):
    """One kind of unit's weights (layers, U, r), one scale a row where they are 8-bit, and biases (layers, U)."""

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None = None


def score(hidden: torch.Tensor, heads: Scorer | None, neurons: Scorer | None, scores: torch.Tensor, start: int) -> None:
    """Scores of all units of the given kinds, from hidden (r of heads + r of neurons,).

    scores (layers, N) float32: heads' from column 0 on, neurons' from column `start` on.
    """
    sizes, programs = [], []
    rows = rows_together(max(scorer.weight.shape[-1] for scorer in (heads, neurons) if scorer))
    for scorer in (heads, neurons):
        layers, units, rank = scorer.weight.shape if scorer else (0, 0, 0)
        sizes.append((units, rank))
        programs.append(triton.cdiv(layers * units, rows))
    (head_units, head_rank), (neuron_units, neuron_rank) = sizes
    nothing = Scorer(None, None)
    _score[(sum(programs),)](
        hidden, *_pointers(heads or nothing), *_pointers(neurons or nothing), scores, len(scores), programs[0],
        STRIDE=scores.stride(0), START=start,
        HEADS=head_units, NEURONS=neuron_units, HEAD_RANK=head_rank, NEURON_RANK=neuron_rank, ROWS=rows,
        HEAD_COLUMNS=_columns(head_rank), NEURON_COLUMNS=_columns(neuron_rank),
        **options(hidden.device, 4),
    )  # fmt: skip


def _pointers(scorer: Scorer) -> tuple[torch.Tensor | None, ...]:
    return scorer.weight, scorer.bias, scorer.scale


def _columns(rank: int) -> int:
    return min(256, power_of_two(max(1, rank)))


@triton.jit
def _ordered(scores, unit, units):
    """Integers in the order of the scores; what is no unit comes before all of them."""
    score = tl.load(scores + unit, mask=unit < units, other=float("-inf")) + 0.0  # no -0
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(unit < units, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483648)


@triton.jit
def _threshold(order, kept):
    """The highest integer, found bit by bit, that at least `kept` of those in `order` reach."""
    threshold = tl.full([], -2147483648, tl.int32)
    reached = tl.sum((order >= 0).to(tl.int32), 0)
    if reached >= kept:
        threshold = tl.full([], 0, tl.int32)
    bit = tl.where(reached == kept, -1, 30)
    while bit >= 0:
        trial = threshold | (tl.full([], 1, tl.int32) << bit)
        reached = tl.sum((order >= trial).to(tl.int32), 0)
        threshold = tl.where(reached >= kept, trial, threshold)
        bit = tl.where(reached == kept, -1, bit - 1)
    return threshold


@triton.jit
def _select_layer(
    scores, units, kept, out, share, shares, BLOCK: tl.constexpr, CHUNK: tl.constexpr, FLAGS: tl.constexpr
):  # fmt: skip
    """A share of one layer's kept units, into `out`: their numbers in order, or a byte for each unit."""
    unit = tl.arange(0, BLOCK)
    order = _ordered(scores, unit, units)
    threshold = _threshold(order, kept)
    above = tl.sum((order > threshold).to(tl.int32), 0)
    # what the shares before this one keep: all above the threshold, and of those at it the first ones
    first = tl.cdiv(tl.cdiv(units, shares), CHUNK) * CHUNK * share
    end = tl.minimum(units, first + tl.cdiv(tl.cdiv(units, shares), CHUNK) * CHUNK)
    room = kept - above  # for those at the threshold
    over = tl.sum(((order > threshold) & (unit < first)).to(tl.int32), 0)
    level = tl.sum(((order == threshold) & (unit < first)).to(tl.int32), 0)
    for start in range(first, end, CHUNK):
        here = start + tl.arange(0, CHUNK)
        order_here = _ordered(scores, here, units)
        is_over, is_level = order_here > threshold, (order_here == threshold) & (here < units)
        both = is_over.to(tl.int32) + (is_level.to(tl.int32) << 16)  # counted together
        count = tl.cumsum(both, 0)
        over_here, level_here = over + (count & 0xFFFF), level + (count >> 16)
        keep = is_over | (is_level & (level_here <= room))
        if FLAGS:
            tl.store(out + here, keep.to(tl.int8), mask=here < units)
        else:
            tl.store(out + over_here + tl.minimum(level_here, room) - 1, here, mask=keep)
        total = tl.sum(both, 0)
        over += total & 0xFFFF
        level += total >> 16


@triton.jit(do_not_specialize=["stride_0", "kept_0", "shares_0", "stride_1", "kept_1", "shares_1"])
def _select(
    scores, stride, out_0, stride_0, begin_0, units_0, kept_0, shares_0,
    out_1, stride_1, begin_1, units_1, kept_1, shares_1,
    BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, CHUNK: tl.constexpr, FLAGS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    layer, share = tl.program_id(1).to(tl.int64), tl.program_id(0)
    scores += layer * stride
    if share < shares_0:
        _select_layer(
            scores + begin_0, units_0, kept_0, out_0 + layer * stride_0, share, shares_0, BLOCK_0, CHUNK, FLAGS
        )
    elif BLOCK_1 > 0:
        _select_layer(
            scores + begin_1, units_1, kept_1, out_1 + layer * stride_1, share - shares_0, shares_1, BLOCK_1, CHUNK,
            FLAGS,
        )  # fmt: skip


class Choice(NamedTuple):
    """What to choose of one kind of unit: the best `kept` of `units` scores from column `start` on."""

    start: int
    units: int
    kept: int
    out: torch.Tensor  # (layers, at least kept) int32: the units; or int8 (layers, units): 1 for kept units


def select(scores: torch.Tensor, choices: Sequence[Choice]) -> None:
    """Per layer of scores (layers, N) float32 and per choice (one or two): the kept units, ascending, in one launch.

    Exact; of equal scores the lower index first, as `policies.per_layer`. Every program looks at a whole layer; where
    there are fewer layers than multiprocessors, several share the writing.
    """
    layers, arguments, programs = len(scores), [], 0
    blocks = [power_of_two(choice.units) for choice in choices]
    block = max(blocks)
    warps = max(min(WARPS, block // 512), block // 4096, 4)  # no more than 128 scores a thread
    for choice in choices:
        shares = max(1, min(triton.cdiv(choice.units, CHUNK), processors(scores.device) // layers))
        programs += shares
        arguments += choice.out, choice.out.stride(0), choice.start, choice.units, choice.kept, shares
    if len(choices) == 1:
        arguments, blocks = arguments + [None, 0, 0, 0, 0, 0], [*blocks, 0]
    _select[programs, layers](
        scores, scores.stride(0), *arguments, BLOCK_0=blocks[0], BLOCK_1=blocks[1],
        CHUNK=min(CHUNK, block), FLAGS=choices[0].out.dtype == torch.int8,
        **options(scores.device, warps),
    )  # fmt: skip


@triton.jit(do_not_specialize=["batch", "layers", "units", "stride", "count_stride"])
def _unite(
    flags, index, rows, count, batch, layers, units, stride, count_stride, BATCH: tl.constexpr, CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    layer = tl.program_id(0).to(tl.int64)
    sequence = tl.arange(0, BATCH)
    place = tl.full([], 0, tl.int32)
    for start in range(0, units, CHUNK):
        unit = start + tl.arange(0, CHUNK)
        there = (sequence < batch)[:, None] & (unit < units)[None, :]
        spot = (sequence * layers + layer)[:, None] * units + unit[None, :]
        bits = tl.sum(tl.load(flags + spot, mask=there, other=0).to(tl.int32) << sequence[:, None], 0)
        keep = bits > 0
        at = layer * stride + place + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(index + at, unit, mask=keep)
        tl.store(rows + at, bits, mask=keep)
        place += tl.sum(keep.to(tl.int32), 0)
    tl.store(count + layer * count_stride, place)


def unite(flags: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, count: torch.Tensor) -> None:
    """What some sequence of a batch keeps: from flags (B, layers, U) int8 the units of each layer, ascending.

    index and rows (layers, capacity) int32 have the units and, as bits, the sequences that keep each; count (layers, n)
    gets how many they are in its first column.
    """
    batch, layers, units = flags.shape
    _unite[(layers,)](
        flags, index, rows, count, batch, layers, units, index.stride(0), count.stride(0),
        BATCH=power_of_two(batch), CHUNK=min(1024, power_of_two(units)), **options(flags.device, 4),
    )  # fmt: skip
