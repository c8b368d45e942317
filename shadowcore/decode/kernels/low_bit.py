"""Scores of neurons by low-bit copies of their input rows (`decode.low_bit_proxy`): packed codes times a vector.

Reading few bytes leaves little time to compute, so no code is converted: its bits where they are in a word, all others
zero, are the denormal number code * 2^(place - 149). The vector is scaled so that the products are ordinary numbers,
once a program, which then goes through many rows and loads the next ones while it computes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.fused_norm import Normed, norm_of, norm_sizes
from shadowcore.decode.kernels.gemv import ACTIVATIONS, GATED, activated, constants_of, finished, weights_of_rows
from shadowcore.decode.kernels.launch import options, pdl_launch_dependents, pdl_wait, power_of_two, processors
from shadowcore.decode.low_bit_proxy import PackedLayer

# words of a program at a time, most of a row in one piece, and warps
TILE, COLUMNS, WARPS = 4096, 512, 4
PROGRAMS = (4, 3)  # of a multiprocessor, as registers allow: a row in one piece, or in several


@triton.jit
def _codes(words, FIELD: tl.constexpr, WIDTH: tl.constexpr):
    """The codes in a field times 2^(place - 149): its place, or 8 bits lower beyond the 24 bits of a number."""
    if WIDTH * (FIELD + 1) > 24:
        words = words >> 8
    place: tl.constexpr = WIDTH * FIELD - 8 * (WIDTH * (FIELD + 1) > 24)
    return (words & (((1 << WIDTH) - 1) << place)).to(tl.float32, bitcast=True)


@triton.jit
def _vector(x, D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """What the fields of each piece of a row are multiplied with, times 2^50 for a code; and the sum of x."""
    values = ()
    total = tl.zeros([COLUMNS], tl.float32)
    for start in tl.static_range(0, W, COLUMNS):
        for field in tl.static_range(32 // WIDTH):
            word = start + tl.arange(0, COLUMNS)
            column = field * W + word
            v = tl.load(x + column, mask=(word < W) & (column < D), other=0.0).to(tl.float32)
            total += v
            values = values + (v * 2.0 ** (99 - WIDTH * field + 8 * (WIDTH * (field + 1) > 24)),)
    return values, tl.sum(total, 0)


@triton.jit
def _codes_times(pieces, values, sum_x, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sum_d (code_d - middle) x_d of each row whose words are in pieces."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for piece in tl.static_range(len(pieces)):
        for field in tl.static_range(32 // WIDTH):
            total += _codes(pieces[piece], field, WIDTH) * values[piece * (32 // WIDTH) + field][None, :]
    return tl.sum(total, 1) * 2.0**50 - ((1 << WIDTH) - 1) * 0.5 * sum_x


@triton.jit(do_not_specialize=["neurons", "stride", "eps", "tiles"])
def _score_neurons(
    x, moments, words, steps, gains, bias, norms, scores, neurons, stride, eps, tiles,
    D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, RMS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    sequence, tile = tl.program_id(0), tl.program_id(1) * tiles
    end = tl.minimum(neurons * PARTS, (tile + tiles) * ROWS)
    slot = tile * ROWS + tl.arange(0, ROWS)
    pieces = weights_of_rows(words, slot.to(tl.int64), slot < end, W, COLUMNS)
    pdl_wait(PDL)
    values, total = _vector(x + sequence * D, D, W, WIDTH, COLUMNS)
    mean, deviation = norm_of(moments + sequence * 2 * ((D + PIECE - 1) // PIECE), eps, D, PIECE, PIECES, RMS)
    for number in range(tile, tile + tiles):
        following = weights_of_rows(words, (slot + ROWS).to(tl.int64), slot + ROWS < end, W, COLUMNS)
        constants = constants_of(slot, slot < end, steps, gains, bias)
        y = finished(_codes_times(pieces, values, total, WIDTH, ROWS, COLUMNS), constants, mean, deviation)
        up = y
        if PARTS == 2:
            y, up = tl.split(tl.reshape(y, [ROWS // 2, 2]))
        neuron = number * (ROWS // PARTS) + tl.arange(0, ROWS // PARTS)
        used = neuron < neurons
        score = tl.abs(activated(y, up, ACTIVATION, PARTS)) * tl.load(norms + neuron, mask=used, other=0.0)
        tl.store(scores + sequence * stride + neuron, score, mask=used)
        slot += ROWS
        pieces = following


def score_neurons(x: Normed, copies: PackedLayer, scores: torch.Tensor, activation: str, bits: int) -> None:
    """scores (B, F) = |act(gate x) * up x| * norm by a layer's copies of `bits`; x: the norm of a residual (B, D).

    activation: as in `gemv.project`.
    """
    (batch, width), (slots, words) = x.scaled.shape, copies.words.shape
    parts = 2 if activation in GATED else 1
    rows = max(parts, TILE // power_of_two(words))
    programs = processors(scores.device) * PROGRAMS[words > COLUMNS]
    tiles = triton.cdiv(slots, rows * max(1, programs // batch))
    _score_neurons[batch, triton.cdiv(slots, rows * tiles)](
        x.scaled, x.moments, copies.words, copies.steps, copies.gains, copies.bias, copies.norms, scores,
        len(copies.norms), scores.stride(0), x.eps, tiles,
        D=width, W=words, WIDTH=bits, PARTS=parts, ACTIVATION=ACTIVATIONS[activation], ROWS=rows,
        COLUMNS=min(COLUMNS, power_of_two(words)), **norm_sizes(x), **options(scores.device, WARPS),
    )  # fmt: skip
