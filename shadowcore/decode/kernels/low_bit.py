"""Scores of neurons by low-bit copies of their input rows (`decode.low_bit_proxy`): packed codes times a vector.

Reading few bytes leaves little time to compute, so no code is converted: its bits where they are in a word, all others
zero, are the denormal number code * 2^(place - 149). The vector is scaled so that the products are ordinary numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.fused_norm import Normed, norm_of, norm_sizes
from shadowcore.decode.kernels.gemv import ACTIVATIONS, GATED, activated, constants_of, finished, weights_of_rows
from shadowcore.decode.kernels.launch import options, pdl_launch_dependents, pdl_wait, power_of_two, power_of_two_within
from shadowcore.decode.low_bit_proxy import PackedLayer

# most words of one program, which lie in the registers of its only warp, and those of a row in one piece
TILE, COLUMNS, WARPS = 3584, 128, 1


@triton.jit
def _codes(words, FIELD: tl.constexpr, WIDTH: tl.constexpr):
    """The codes in a field, times 2^(WIDTH (FIELD % inside) - 149)."""
    inside: tl.constexpr = 23 // WIDTH  # fields of a number's fraction
    if FIELD // inside > 0:
        words = words >> (WIDTH * (FIELD // inside * inside))
    return (words & (((1 << WIDTH) - 1) << (WIDTH * (FIELD % inside)))).to(tl.float32, bitcast=True)


@triton.jit
def _codes_times(
    pieces, x, D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """sum_d (code_d - middle) x_d of each row whose words, W of codes of WIDTH bits, are in pieces."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    total_x = tl.zeros([COLUMNS], tl.float32)
    for piece in tl.static_range(len(pieces)):
        word = piece * COLUMNS + tl.arange(0, COLUMNS)
        for field in tl.static_range(32 // WIDTH):
            column = field * W + word
            v = tl.load(x + column, mask=(word < W) & (column < D), other=0.0).to(tl.float32)
            total_x += v
            v *= 2.0 ** (99 - WIDTH * (field % (23 // WIDTH)))  # times a code: 2^-50
            total += _codes(pieces[piece], field, WIDTH) * v[None, :]
    return tl.sum(total, 1) * 2.0**50 - ((1 << WIDTH) - 1) * 0.5 * tl.sum(total_x, 0)


@triton.jit(do_not_specialize=["neurons", "stride", "eps"])
def _score_neurons(
    x, moments, words, steps, gains, bias, norms, scores, neurons, stride, eps,
    D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, RMS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    sequence, slot = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    used = slot < neurons * PARTS
    row = tl.where(used, slot, 0).to(tl.int64)
    pieces = weights_of_rows(words, row, used, W, COLUMNS)
    constants = constants_of(row, used, steps, gains, bias)
    pdl_wait(PDL)
    x += sequence * D
    moments += sequence * 2 * ((D + PIECE - 1) // PIECE)
    mean, deviation = norm_of(moments, eps, D, PIECE, PIECES, RMS)
    y = finished(_codes_times(pieces, x, D, W, WIDTH, ROWS, COLUMNS), constants, mean, deviation)
    beside = y
    if PARTS == 2:
        y, beside = tl.split(tl.reshape(y, [ROWS // 2, 2]))
    neuron = tl.program_id(1) * (ROWS // PARTS) + tl.arange(0, ROWS // PARTS)
    score = tl.abs(activated(y, beside, ACTIVATION, PARTS))
    score *= tl.load(norms + neuron, mask=neuron < neurons, other=0.0)
    tl.store(scores + sequence * stride + neuron, score, mask=neuron < neurons)


def score_neurons(x: Normed, copies: PackedLayer, scores: torch.Tensor, activation: str, bits: int) -> None:
    """scores (B, F) = |act(gate x) * up x| * norm by a layer's copies of `bits`; x: the norm of a residual (B, D).

    activation: as in `gemv.project`.
    """
    (batch, width), words, neurons = x.scaled.shape, copies.words.shape[1], len(copies.norms)
    parts = 2 if activation in GATED else 1
    rows = max(parts, power_of_two_within(TILE // words))
    _score_neurons[batch, triton.cdiv(neurons * parts, rows)](
        x.scaled, x.moments, copies.words, copies.steps, copies.gains, copies.bias, copies.norms, scores,
        neurons, scores.stride(0), x.eps,
        D=width, W=words, WIDTH=bits, PARTS=parts, ACTIVATION=ACTIVATIONS[activation], ROWS=rows,
        COLUMNS=min(COLUMNS, power_of_two(words)), **norm_sizes(x), **options(scores.device, WARPS),
    )  # fmt: skip
