"""From a feature to kept units: a predictor's two products, and an exact selection for all its layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.gemv import dot, rows_together, weights_of_rows
from shadowcore.decode.kernels.launch import options, pdl_launch_dependents, pdl_wait, power_of_two, processors
from shadowcore.decode.packed_predictor import Scorer

SHARE, PIECE, COLUMNS = 1024, 4096, 4  # fewest units of a program; most that are written together, in rows of a few
SCORES, SAMPLE = 64, 64  # scores of a thread, and those whose ranks are found first
UNITED, WARPS = 16384, 8  # flags of a batch that are united together, and warps
MOST_LAYERS = 65535  # programs of a launch's second dimension


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
    pdl_wait(PDL)
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
    pdl_launch_dependents(PDL)
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
        hidden, *(heads or nothing), *(neurons or nothing), scores, len(scores), programs[0],
        STRIDE=scores.stride(0), START=start,
        HEADS=head_units, NEURONS=neuron_units, HEAD_RANK=head_rank, NEURON_RANK=neuron_rank, ROWS=rows,
        HEAD_COLUMNS=power_of_two(max(1, min(256, head_rank))),
        NEURON_COLUMNS=power_of_two(max(1, min(256, neuron_rank))), **options(hidden.device, 4),
    )  # fmt: skip


@triton.jit
def _ordered(bits):
    """Integers in the order of numbers, from the bits of these; and the other way round."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _guesses(scores, units, kept, SAMPLE: tl.constexpr):
    """Orders of two scores that probably have the threshold between them, from the ranks of a sample."""
    number = tl.arange(0, SAMPLE)
    score = tl.load(scores + number * units // SAMPLE)
    level = (score[None, :] == score[:, None]) & (number[None, :] < number[:, None])
    rank = tl.sum(((score[None, :] > score[:, None]) | level).to(tl.int32), 1)
    order = _ordered((score + 0.0).to(tl.int32, bitcast=True))  # no -0
    place = kept * SAMPLE // units
    lower = tl.where(rank == tl.minimum(place + SAMPLE // 12, SAMPLE - 1), order, -2147483648)
    higher = tl.where(rank == tl.maximum(place - SAMPLE // 12, 0), order, -2147483648)
    return tl.max(lower, 0), tl.max(higher, 0)


@triton.jit
def _threshold(scores, kept, lower, higher):
    """The order of a number that at least `kept` scores reach, and how many of the scores equal to it are kept.

    Trials: two guesses, and zero if the threshold may be zero. Then by turns the middle of what is left, and the place
    that evenly spaced scores would give: as numbers, as orders (which are dense about zero), and as numbers again.
    """
    size: tl.constexpr = len(scores) * scores[0].numel
    low, reached = tl.full([], -2139095041, tl.int32), tl.full([], size, tl.int32)  # -infinity
    high, above = tl.full([], 2139095041, tl.int32), tl.full([], 0, tl.int32)  # beyond infinity
    turn = 0
    while (reached != kept) & ((high - low).to(tl.uint32, bitcast=True) > 1):
        share = tl.where(turn % 4 == 0, 0.5, (reached - kept).to(tl.float32) / (reached - above).to(tl.float32))
        trial = low + ((high - low).to(tl.uint32, bitcast=True).to(tl.float32) * share).to(tl.uint32).to(tl.int32)
        least = _ordered(tl.maximum(low, -2139095040)).to(tl.float32, bitcast=True)  # finite, and so is the next
        most = _ordered(tl.minimum(high, 2139095039)).to(tl.float32, bitcast=True)
        between = least * (1.0 - share) + most * share + 0.0  # no -0
        trial = tl.where(turn % 2 == 1, _ordered(between.to(tl.int32, bitcast=True)), trial)
        trial = tl.where((turn == 2) & (low < 1) & (high > 1), 1, trial)
        trial = tl.where(turn == 0, lower, tl.where(turn == 1, higher, trial))
        trial = tl.minimum(tl.maximum(trial, low + 1), high - 1)
        ones = tl.zeros(scores[0].shape, tl.float32)
        for i in tl.static_range(len(scores)):
            ones += (scores[i] >= _ordered(trial).to(tl.float32, bitcast=True)).to(tl.float32)
        count = tl.sum(ones).to(tl.int32)
        low, reached = tl.where(count >= kept, trial, low), tl.where(count >= kept, count, reached)
        high, above = tl.where(count >= kept, high, trial), tl.where(count >= kept, above, count)
        turn += 1
    return low, tl.where(reached == kept, size, kept - above)


@triton.jit
def _units(piece, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The units of a piece."""
    return (piece * ROWS + tl.arange(0, ROWS))[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _running(ones):
    """Sums of all up to each, row by row."""
    rows = tl.sum(ones, 1)
    return (tl.cumsum(rows, 0) - rows)[:, None] + tl.cumsum(ones, 1)


@triton.jit
def _select_layer(
    scores, units, kept, out, share, each,
    PIECES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SAMPLE: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """The kept units of `each` pieces of one layer, into `out`: their numbers in order, or a byte for each unit."""
    pieces = ()
    for i in tl.static_range(PIECES):
        unit = _units(i, ROWS, COLUMNS)
        pieces = pieces + (tl.load(scores + unit, mask=unit < units, other=float("-inf")),)
    lower, higher = _guesses(scores, units, kept, SAMPLE)
    order, ties = _threshold(pieces, kept, lower, higher)
    bound = _ordered(order).to(tl.float32, bitcast=True)
    above, equal = tl.zeros([ROWS, COLUMNS], tl.int32), tl.zeros([ROWS, COLUMNS], tl.int32)
    for i in tl.static_range(PIECES):
        if i < share * each:
            above += (pieces[i] > bound).to(tl.int32)
            equal += (pieces[i] == bound).to(tl.int32)
    equal = tl.sum(equal)
    before = tl.sum(above) + tl.minimum(equal, ties)  # kept of the pieces before
    for piece in range(share * each, tl.minimum((share + 1) * each, PIECES)):
        unit = _units(piece, ROWS, COLUMNS)
        score = tl.load(scores + unit, mask=unit < units, other=float("-inf"))
        keep = (unit < units) & (score >= bound)
        if ties < units:  # only the first of equal scores
            level = (score == bound).to(tl.int32)
            keep = keep & ((score > bound) | (equal + _running(level) <= ties))
            equal += tl.sum(level)
        ones = keep.to(tl.int32)
        if FLAGS:
            tl.store(out + unit, ones.to(tl.int8), mask=unit < units)
        else:
            tl.store(out + before + _running(ones) - 1, unit, mask=keep)
        before += tl.sum(ones)


@triton.jit(do_not_specialize=["stride_0", "kept_0", "each_0", "shares_0", "stride_1", "kept_1", "each_1"])
def _select(
    scores, stride, out_0, stride_0, begin_0, units_0, kept_0, each_0, shares_0,
    out_1, stride_1, begin_1, units_1, kept_1, each_1,
    PIECES_0: tl.constexpr, ROWS_0: tl.constexpr, PIECES_1: tl.constexpr, ROWS_1: tl.constexpr,
    COLUMNS: tl.constexpr, SAMPLE: tl.constexpr, FLAGS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    layer, share = tl.program_id(1).to(tl.int64), tl.program_id(0)
    scores += layer * stride
    if share < shares_0:
        out_0 += layer * stride_0
        _select_layer(scores + begin_0, units_0, kept_0, out_0, share, each_0, PIECES_0, ROWS_0, COLUMNS, SAMPLE, FLAGS)
    elif PIECES_1 > 0:
        out_1 += layer * stride_1
        share -= shares_0
        _select_layer(scores + begin_1, units_1, kept_1, out_1, share, each_1, PIECES_1, ROWS_1, COLUMNS, SAMPLE, FLAGS)


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
    layers, arguments, sizes, programs = len(scores), [], {"PIECES_1": 0, "ROWS_1": 0}, 0
    for number, choice in enumerate(choices):
        shares = max(1, min(triton.cdiv(choice.units, SHARE), processors(scores.device) // layers))
        piece = max(COLUMNS, min(PIECE, power_of_two(triton.cdiv(choice.units, shares))))
        pieces = triton.cdiv(choice.units, piece)
        each = triton.cdiv(pieces, shares)
        programs += triton.cdiv(pieces, each)
        arguments += choice.out, choice.out.stride(0), choice.start, choice.units, choice.kept, each, programs
        sizes |= {f"PIECES_{number}": pieces, f"ROWS_{number}": piece // COLUMNS}
    warps = min(32, max(4, power_of_two(max(choice.units for choice in choices)) // (32 * SCORES)))
    _select[programs, layers](
        scores, scores.stride(0), *[*arguments, None, 0, 0, 0, 0, 0][:13], **sizes, COLUMNS=COLUMNS, SAMPLE=SAMPLE,
        FLAGS=choices[0].out.dtype == torch.int8, **options(scores.device, warps),
    )  # fmt: skip


def top_units(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """Mask of the `kept` highest of scores (..., U) float32, for many rows at once; equal to `policies.top_units`."""
    rows = scores.reshape(-1, scores.shape[-1])
    keep = torch.empty(rows.shape, dtype=torch.int8, device=scores.device)
    for part, out in zip(rows.split(MOST_LAYERS), keep.split(MOST_LAYERS), strict=True):
        select(part, [Choice(0, rows.shape[-1], kept, out)])
    return keep.view(torch.bool).view(scores.shape)


@triton.jit(do_not_specialize=["batch", "layers", "units", "stride", "count_stride"])
def _unite(
    flags, index, rows, count, batch, layers, units, stride, count_stride, BATCH: tl.constexpr, CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    layer = tl.program_id(0).to(tl.int64)
    sequence = tl.arange(0, BATCH)
    place = tl.full([], 0, tl.int32)
    for start in range(0, units, CHUNK):
        unit = start + tl.arange(0, CHUNK)
        there = (sequence < batch)[:, None] & (unit < units)[None, :]
        spot = (sequence * layers + layer)[:, None] * units + unit[None, :]
        bits = tl.sum(tl.load(flags + spot, mask=there, other=0).to(tl.int64) << sequence[:, None], 0)
        keep = bits != 0
        at = layer * stride + place + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(index + at, unit, mask=keep)
        tl.store(rows + at, bits, mask=keep)
        place += tl.sum(keep.to(tl.int32), 0)
    tl.store(count + layer * count_stride, place)


def unite(flags: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, count: torch.Tensor) -> None:
    """What some sequence of a batch keeps: from flags (B, layers, U) int8 the units of each layer, ascending.

    index and rows (layers, capacity) have the units, int32, and as bits of int64 the sequences that keep each; count
    (layers, n) gets how many they are in its first column.
    """
    batch, layers, units = flags.shape
    padded = power_of_two(batch)
    _unite[(layers,)](
        flags, index, rows, count, batch, layers, units, index.stride(0), count.stride(0),
        BATCH=padded, CHUNK=min(1024, UNITED // padded, power_of_two(units)), **options(flags.device, WARPS),
    )  # fmt: skip
