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

PIECE, COLUMNS, WARPS = 4096, 4, 8  # scores whose places are found together, in rows of a few; and warps
UNITED = 16384  # flags of a batch that are united together
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
def _number(piece: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The units of a piece."""
    row = piece * ROWS + tl.arange(0, ROWS)
    return row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _threshold(keys, threshold, reached, kept, bit):
    """The highest integer, found bit by bit from `threshold` and `bit` on, that at least `kept` keys reach.

    And how many reach it; `reached`: how many reach the first one. No key may be 2^31 or more away from a trial.
    """
    bit = tl.where(reached == kept, -1, bit)
    while bit >= 0:
        trial = threshold | (tl.full([], 1, tl.int32) << bit)
        below = tl.zeros(keys[0].shape, tl.uint32)
        for i in tl.static_range(len(keys)):  # the sign of the difference: two instructions a key
            below += (keys[i] - trial).to(tl.uint32, bitcast=True) >> 31
        count = len(keys) * keys[0].numel - tl.sum(below.to(tl.int32))
        threshold = tl.where(count >= kept, trial, threshold)
        reached = tl.where(count >= kept, count, reached)
        bit = tl.where(reached == kept, -1, bit - 1)
    return threshold, reached


@triton.jit
def _put(keep, unit, units, before, out, FLAGS: tl.constexpr):
    """A piece's kept units into their places, `before` of them being taken; and how many they are."""
    ones = keep.to(tl.int32)
    rows = tl.sum(ones, 1)
    if FLAGS:
        tl.store(out + unit, keep.to(tl.int8), mask=unit < units)
    else:
        place = (before - 1 + tl.cumsum(rows, 0) - rows)[:, None] + tl.cumsum(ones, 1)
        tl.store(out + place, unit, mask=keep)
    return tl.sum(rows, 0)


@triton.jit
def _select_layer(
    scores, units, kept, out, share, shares,
    PIECES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """A share of one layer's kept units, into `out`: their numbers in order, or a byte for each unit."""
    size: tl.constexpr = PIECES * ROWS * COLUMNS
    orders = ()
    for i in tl.static_range(PIECES):
        orders = orders + (_ordered(scores, _number(i, ROWS, COLUMNS), units),)
    count = tl.zeros([ROWS, COLUMNS], tl.int32)
    for i in tl.static_range(PIECES):
        count += (orders[i] >= 0).to(tl.int32)
    reached = tl.sum(count)
    positive = reached >= kept
    keys = ()  # the sign of the threshold is known: of scores of the other sign nothing else matters
    for i in tl.static_range(PIECES):
        keys = keys + (tl.where(positive, tl.maximum(orders[i], -1), tl.minimum(orders[i], 0)),)
    threshold, reached = _threshold(
        keys, tl.where(positive, 0, -2147483648), tl.where(positive, reached, size), kept, 30
    )  # fmt: skip
    ranks = ()  # of those at the threshold the first are kept
    for i in tl.static_range(PIECES):
        level = tl.where(keys[i] == threshold, size - _number(i, ROWS, COLUMNS), 0)
        ranks = ranks + (tl.where(keys[i] > threshold, size + 1, level),)
    threshold, _ = _threshold(ranks, tl.where(reached == kept, 1, 0), reached, kept, BITS - 1)
    each = tl.cdiv(PIECES, shares)
    count = tl.zeros([ROWS, COLUMNS], tl.int32)
    for i in tl.static_range(PIECES):
        if i < each * share:
            count += (ranks[i] >= threshold).to(tl.int32)
    before = tl.sum(count)
    for i in tl.static_range(PIECES):
        if i // each == share:
            before += _put(ranks[i] >= threshold, _number(i, ROWS, COLUMNS), units, before, out, FLAGS)


@triton.jit(do_not_specialize=["stride_0", "kept_0", "shares_0", "stride_1", "kept_1", "shares_1"])
def _select(
    scores, stride, out_0, stride_0, begin_0, units_0, kept_0, shares_0,
    out_1, stride_1, begin_1, units_1, kept_1, shares_1,
    PIECES_0: tl.constexpr, ROWS_0: tl.constexpr, BITS_0: tl.constexpr,
    PIECES_1: tl.constexpr, ROWS_1: tl.constexpr, BITS_1: tl.constexpr,
    COLUMNS: tl.constexpr, FLAGS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    layer, share = tl.program_id(1).to(tl.int64), tl.program_id(0)
    scores += layer * stride
    if share < shares_0:
        _select_layer(
            scores + begin_0, units_0, kept_0, out_0 + layer * stride_0, share, shares_0,
            PIECES_0, ROWS_0, COLUMNS, BITS_0, FLAGS,
        )  # fmt: skip
    elif PIECES_1 > 0:
        _select_layer(
            scores + begin_1, units_1, kept_1, out_1 + layer * stride_1, share - shares_0, shares_1,
            PIECES_1, ROWS_1, COLUMNS, BITS_1, FLAGS,
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
    layers, arguments, sizes, programs = len(scores), [], {}, 0
    for number, choice in enumerate(choices):
        piece = max(COLUMNS, min(PIECE, power_of_two(choice.units)))
        pieces = triton.cdiv(choice.units, piece)
        shares = max(1, min(pieces, processors(scores.device) // layers))
        programs += shares
        arguments += choice.out, choice.out.stride(0), choice.start, choice.units, choice.kept, shares
        bits = (pieces * piece + 1).bit_length()
        sizes |= {f"PIECES_{number}": pieces, f"ROWS_{number}": piece // COLUMNS, f"BITS_{number}": bits}
    if len(choices) == 1:
        arguments += None, 0, 0, 0, 0, 0
        sizes |= {"PIECES_1": 0, "ROWS_1": 0, "BITS_1": 0}
    most = max(choice.units for choice in choices)
    warps = max(WARPS, power_of_two(most) // 4096) if most > 4096 else 4  # no more than 128 scores a thread
    _select[programs, layers](
        scores, scores.stride(0), *arguments, **sizes, COLUMNS=COLUMNS, FLAGS=choices[0].out.dtype == torch.int8,
        **options(scores.device, warps),
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
