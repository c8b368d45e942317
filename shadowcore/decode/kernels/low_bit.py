"""Scores of neurons by low-bit copies of their input rows (`decode.low_bit_proxy`): packed codes times a vector.

A code is made a number without a conversion: its bits are put into the fraction of 2^23, of which 2^23 is taken away.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.fused_norm import Normed, Read, norm_of, norm_sizes
from shadowcore.decode.kernels.gemv import (
    ACTIVATIONS,
    GATED,
    activated,
    constants_of,
    finished,
    weights_of_rows,
)
from shadowcore.decode.kernels.launch import (
    options,
    pdl_launch_dependents,
    pdl_wait,
    power_of_two,
    power_of_two_within,
)
from shadowcore.decode.low_bit_proxy import PLANES, PackedLayer

TILE, COLUMNS, WARPS = 8192, (64, 512), 4  # words of one program; words of a row in one piece, fewest and most


@triton.jit
def _codes(words, WIDTH: tl.constexpr, SKIPPED: tl.constexpr, FIELD: tl.constexpr):
    """The codes in a field of words after skipped ones, times 2^(WIDTH FIELD)."""
    if SKIPPED > 0:
        words = words >> (WIDTH * SKIPPED)
    words = words & (((1 << WIDTH) - 1) << (WIDTH * FIELD))
    return (words | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _codes_times(
    words, x, D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """sum_d (code_d - middle) x_d of each row whose words, W of codes of WIDTH bits, are in pieces."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    total_x = tl.zeros([COLUMNS], tl.float32)
    inside: tl.constexpr = 23 // WIDTH  # codes of a word that lie in a number's fraction as they are
    for piece in tl.static_range(len(words)):
        word = piece * COLUMNS + tl.arange(0, COLUMNS)
        for field in tl.static_range(32 // WIDTH):
            column = field * W + word
            v = tl.load(x + column, mask=(word < W) & (column < D), other=0.0).to(tl.float32)
            total_x += v
            v *= 1.0 / (1 << (WIDTH * (field % inside)))
            total += _codes(words[piece], WIDTH, field // inside * inside, field % inside) * v[None, :]
    return tl.sum(total, 1) - ((1 << WIDTH) - 1) * 0.5 * tl.sum(total_x, 0)


@triton.jit
def _product(
    words, low, row, used, x, D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LOW_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The product of each row's copy in steps: of its high bits, which are here, and of the low ones, if any."""
    y = _codes_times(words, x, D, W, WIDTH, ROWS, COLUMNS)
    if low is not None:
        w: tl.constexpr = (D + 31) // 32
        y = 2 * y + _codes_times(weights_of_rows(low, row, used, w, LOW_COLUMNS), x, D, w, 1, ROWS, LOW_COLUMNS)
    return y


@triton.jit(do_not_specialize=["neurons", "stride", "eps"])
def _score_neurons(
    x, moments, high, low, steps, gains, bias, norms, scores, neurons, stride, eps,
    D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LOW_COLUMNS: tl.constexpr,
    PIECE: tl.constexpr, PIECES: tl.constexpr, RMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    sequence, neuron = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    used = neuron < neurons
    row = tl.where(used, neuron, 0).to(tl.int64) * PARTS
    words = weights_of_rows(high, row, used, W, COLUMNS)
    constants = constants_of(row, used, steps, gains, bias)
    if PARTS == 2:
        words_beside = weights_of_rows(high, row + 1, used, W, COLUMNS)
        constants_beside = constants_of(row + 1, used, steps, gains, bias)
    norm = tl.load(norms + neuron, mask=used, other=0.0)
    pdl_wait(PDL)
    x += sequence * D
    pieces: tl.constexpr = (D + PIECE - 1) // PIECE
    mean, deviation = norm_of(moments + sequence * 2 * pieces, eps, D, PIECE, PIECES, RMS)
    y = _product(words, low, row, used, x, D, W, WIDTH, ROWS, COLUMNS, LOW_COLUMNS)
    y = finished(y, constants, mean, deviation)
    beside = y
    if PARTS == 2:
        beside = _product(words_beside, low, row + 1, used, x, D, W, WIDTH, ROWS, COLUMNS, LOW_COLUMNS)
        beside = finished(beside, constants_beside, mean, deviation)
    score = tl.abs(activated(y, beside, ACTIVATION, PARTS)) * norm
    tl.store(scores + sequence * stride + neuron, score, mask=used)


def score_neurons(x: Normed, copies: PackedLayer, read: Read, scores: torch.Tensor, activation: str, bits: int) -> None:
    """scores (B, F) = |act(gate x) * up x| * norm by a layer's copies of `bits`; x: the norm of a residual (B, D).

    `activation`: as in `gemv.project`. read: the norm's gain and shift through the copies (`fused_norm.folded`).
    """
    (batch, width), words, parts = x.scaled.shape, copies.high.shape[1], 2 if activation in GATED else 1
    neurons = len(copies.norms)
    rows = max(1, power_of_two_within(TILE // (words * parts)))
    rows = min(rows, power_of_two(neurons))
    _score_neurons[batch, triton.cdiv(neurons, rows)](
        x.scaled, x.moments, copies.high, copies.low, copies.steps, read.gains, read.bias, copies.norms, scores,
        neurons, scores.stride(0), x.eps,
        D=width, W=words, WIDTH=PLANES[bits][0], PARTS=parts, ACTIVATION=ACTIVATIONS[activation], ROWS=rows,
        COLUMNS=_columns(words), LOW_COLUMNS=_columns(0 if copies.low is None else copies.low.shape[1]),
        **norm_sizes(x), **options(scores.device, WARPS),
    )  # fmt: skip


def _columns(words: int) -> int:
    """Words of a row in one piece: a power of two that divides a row, if it is not too small."""
    fewest, most = COLUMNS
    return max(min(fewest, power_of_two(max(1, words))), min(most, words & -words))
