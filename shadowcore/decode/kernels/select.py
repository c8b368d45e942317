"""From a feature to kept units: a predictor's two products, and an exact selection for all its layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.launch import begin, options, power_of_two
from shadowcore.decode.kernels.rows import dot, rows_together, weights_of_rows


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
    HEADS: tl.constexpr, NEURONS: tl.constexpr, HEAD_RANK: tl.constexpr, NEURON_RANK: tl.constexpr,
    ROWS: tl.constexpr, HEAD_COLUMNS: tl.constexpr, NEURON_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < programs:  # the heads' share of the programs
        if HEADS > 0:
            _score_rows(
                program * ROWS, hidden, head_weight, head_bias, head_scale, scores, layers * HEADS,
                HEADS + NEURONS, 0, HEADS, HEAD_RANK, ROWS, HEAD_COLUMNS, PDL,
            )  # fmt: skip
    elif NEURONS > 0:
        _score_rows(
            (program - programs) * ROWS, hidden + HEAD_RANK, neuron_weight, neuron_bias, neuron_scale, scores,
            layers * NEURONS, HEADS + NEURONS, HEADS, NEURONS, NEURON_RANK, ROWS, NEURON_COLUMNS, PDL,
        )  # fmt: skip


class Scorer(NamedTuple):
    """One kind of unit's weights (layers, U, r), one scale a row where they are 8-bit, and biases (layers, U)."""

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None = None


def score(hidden: torch.Tensor, heads: Scorer | None, neurons: Scorer | None, scores: torch.Tensor) -> None:
    """Scores (layers, H + F) float32 of all units of the given kinds, from hidden (r of heads + r of neurons,)."""
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
        HEADS=head_units, NEURONS=neuron_units, HEAD_RANK=head_rank, NEURON_RANK=neuron_rank, ROWS=rows,
        HEAD_COLUMNS=_columns(head_rank), NEURON_COLUMNS=_columns(neuron_rank),
        **options(hidden.device, 4),
    )  # fmt: skip


def _pointers(scorer: Scorer) -> tuple[torch.Tensor | None, ...]:
    return scorer.weight, scorer.bias, scorer.scale


def _columns(rank: int) -> int:
    return min(256, power_of_two(max(1, rank)))


@triton.jit(do_not_specialize=["stride", "begin_0", "units_0", "kept_0", "begin_1", "units_1", "kept_1"])
def _select(
    scores, stride, out_0, stride_0, begin_0, units_0, kept_0, out_1, stride_1, begin_1, units_1, kept_1,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    layer = tl.program_id(0)
    if tl.program_id(1) == 0:
        out, start, units, kept = out_0 + layer * stride_0, begin_0, units_0, kept_0
    else:
        out, start, units, kept = out_1 + layer * stride_1, begin_1, units_1, kept_1
    unit = tl.arange(0, BLOCK)
    score = tl.load(scores + layer * stride + start + unit, mask=unit < units, other=float("-inf")) + 0.0  # no -0
    # unsigned integers in the order of the floats; what is no unit comes before all of them
    bits = score.to(tl.int32, bitcast=True)
    order = (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)
    order = tl.where(unit < units, order, 0)
    # the highest threshold, found bit by bit, that at least `kept` units reach
    threshold = tl.full([], 0, tl.uint32)
    bit = tl.full([], 31, tl.int32)
    while bit >= 0:
        trial = threshold | (tl.full([], 1, tl.uint32) << bit.to(tl.uint32))
        reached = tl.sum((order >= trial).to(tl.int32), 0)
        threshold = tl.where(reached >= kept, trial, threshold)
        bit = tl.where(reached == kept, -1, bit - 1)
    above = order > threshold
    level = (order == threshold) & (unit < units)
    room = kept - tl.sum(above.to(tl.int32), 0)
    keep = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= room))
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(out + place, unit, mask=keep)


class Choice(NamedTuple):
    """What to choose of one kind of unit: the best `kept` of `units` scores from column `start` on."""

    start: int
    units: int
    kept: int
    out: torch.Tensor  # (layers, at least kept) int32


def select(scores: torch.Tensor, choices: Sequence[Choice]) -> None:
    """Per layer of scores (layers, N) float32 and per choice (one or two): the kept units, ascending, in one launch.

    Exact; of equal scores the lower index first, as `policies.per_layer`.
    """
    arguments = [
        argument
        for choice in (choices[0], choices[-1])
        for argument in (choice.out, choice.out.stride(0), choice.start, choice.units, choice.kept)
    ]
    block = power_of_two(max(choice.units for choice in choices))
    _select[(len(scores), len(choices))](
        scores, scores.stride(0), *arguments, BLOCK=block, **options(scores.device, max(4, min(32, block // 1024)))
    )
