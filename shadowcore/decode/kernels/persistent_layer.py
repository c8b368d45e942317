"""A whole decoder layer of one sequence as one kernel, whose programs wait for one another: an experiment.

Programs stay on their multiprocessors for the layer. Its phases,

    QKV rows | attention | output rows' sums | settle | FFN rows in, FFN rows' sums | settle

are separated by barriers of the whole grid (|). A program reads both kinds of rows of its neurons, without one. While a
program waits, weights are on their way: the first tile of the next phase into its registers, and AHEAD more bytes into
the L2 cache. Rows are shared out evenly, a contiguous share each.

What must be resident. A program may wait for another only if all of them get a place. A grid of PER_PROCESSOR programs
a multiprocessor fits an empty GPU if PER_PROCESSOR * WARPS * 32 * registers <= 65,536; shared memory is used for
reductions only (8 to 16 KB a program). Kernels ahead end without depending on this one. The next kernel's programs
cannot take a place that this one still needs: they start once every program of this one has allowed it, so when all
have a place. If twice as many registers fit (REGISTERS), the next layer's programs lie beside this one's and begin to
load; those of the layer after it find no room before this one ends.

What is read again. Other programs' results are read through L1, which is not coherent. It is made so at each barrier:
the thread that waits reads with `ld.acquire.gpu`, which empties the multiprocessor's L1, and `bar.sync` orders all
other threads' reads after it (in the PTX memory model and in the machine code: CCTL.IVALL). Weights stay in flight.
Nothing is loaded between arriving and waiting but weights and lists, which no kernel of the row writes. When a layer
begins, L1 has nothing of the norm that it reads: the layer ahead read that before its last barrier.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.attention import LOWEST, _past, _turned, _weighed, mixed_of
from shadowcore.decode.kernels.fused_norm import Normed, norm_of, norm_sizes
from shadowcore.decode.kernels.gemv import ACTIVATIONS, GATED, activated, constants_of, finished
from shadowcore.decode.kernels.launch import Units, options, pdl_wait, power_of_two, power_of_two_within, processors

PER_PROCESSOR, WARPS = 1, 8  # programs a multiprocessor, warps a program
REGISTERS = 128  # a thread may have; None: as many as the compiler likes
TILE = 16384  # weights that a program loads at a time: one or two such tiles are on their way
SUM_ROWS = 4  # of a tile of a sum, at most: every thread needs what is known of each of them
AHEAD = 65536  # bytes that each program fetches into L2 before it loads them; 0: none
BURST = 131072  # bytes of output rows that each program fetches into L2 before the attention
TOKENS, MOST_SPLITS = 32, 32  # positions that attention reads at a time, and parts of the cache
ADDENDS = 64  # sums added up at a time
PHASES = 6
INTERPRETED = 1  # programs without a GPU; more are launched phase by phase
LATE = 1  # the next kernel may start: 0 when this one has, 1 from the last phase that reads weights on


@triton.jit
def _arrive(counter, PROGRAMS: tl.constexpr):
    """All that this program wrote is there for whoever waits. Returns what `_wait` needs.

    Program 0 adds what makes the sum of all 2**31: the top bit turns over when all have come, again and again.
    """
    old = 0
    if PROGRAMS > 1:
        tl.debug_barrier()
        more = tl.where(tl.program_id(0) == 0, 2147483649 - PROGRAMS, 1).to(tl.int32)
        old = tl.inline_asm_elementwise(
            """{
            .reg .pred %first;
            .reg .u32 %thread;
            mov.u32 $0, 0;
            mov.u32 %thread, %tid.x;
            setp.eq.u32 %first, %thread, 0;
            @%first atom.add.release.gpu.global.u32 $0, [$1], $2;
            }""",
            "=&r,l,r", [counter, more], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    return old


@triton.jit
def _wait(counter, old, PROGRAMS: tl.constexpr):
    """Until all programs have arrived: one thread reads the counter, the others wait for it."""
    if PROGRAMS > 1:
        tl.inline_asm_elementwise(
            """{
            .reg .pred %other, %same;
            .reg .u32 %thread, %now;
            mov.u32 $0, 0;
            mov.u32 %thread, %tid.x;
            setp.ne.u32 %other, %thread, 0;
            @%other bra THERE;
            AGAIN:
            ld.acquire.gpu.global.u32 %now, [$1];
            xor.b32 %now, %now, $2;
            setp.ge.s32 %same, %now, 0;
            @%same bra AGAIN;
            THERE:
            }""",
            "=&r,l,r", [counter, old], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def _into_l2(place, used, size):
    """Have `size` bytes (a multiple of 16) read into L2, from each place in use; nobody waits for them."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred %used;
        mov.u32 $0, 0;
        setp.ne.u32 %used, $2, 0;
        @%used cp.async.bulk.prefetch.L2.global [$1], $3;
        }""",
        "=&r,l,r,r", [place, used.to(tl.int32), size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _rows(slot, end, units, gathered, tail_shift, UNIT: tl.constexpr, PARTS: tl.constexpr):
    """The row that each slot stands for, and whether it is in use; PARTS neighbouring slots make a row of a unit."""
    used, place = slot < end, slot // PARTS
    row = place.to(tl.int64)
    if units is not None:
        chosen = place < gathered
        unit = tl.load(units + place // UNIT, mask=used & chosen, other=0).to(tl.int64)
        row = tl.where(chosen, unit * UNIT + place % UNIT, row + tail_shift)
    return tl.where(used, row * PARTS + slot % PARTS, 0), used


@triton.jit
def _fetch(
    weight, first, end, units, gathered, tail_shift,
    W: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Slots from `first` to `end`, at most THREADS of them, into L2."""
    row, used = _rows(first // PARTS + tl.arange(0, THREADS), end // PARTS, units, gathered, tail_shift, UNIT, 1)
    size: tl.constexpr = PARTS * W * weight.dtype.element_ty.primitive_bitwidth // 8
    _into_l2(weight + row * (PARTS * W), used, tl.full([THREADS], size, tl.int32))


@triton.jit
def _ahead(
    upto, weight, fetched, end, units, gathered, tail_shift, then_weight, then_fetched, then_first, then_end,
    then_units, then_gathered,
    W: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, THEN_UNIT: tl.constexpr, THEN_PARTS: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    """Fetch this phase's slots up to `upto`, and what is left over beyond its end, of the next phase's."""
    stop = tl.minimum(upto, end)
    if fetched < stop:
        _fetch(weight, fetched, stop, units, gathered, tail_shift, W, UNIT, PARTS, THREADS)
        fetched = stop
    if then_weight is not None:
        stop = tl.minimum(then_first + upto - end, then_end)
        if then_fetched < stop:
            _fetch(then_weight, then_fetched, stop, then_units, then_gathered, 0, W, THEN_UNIT, THEN_PARTS, THREADS)
            then_fetched = stop
    return fetched, then_fetched


@triton.jit
def _share(slots, PROGRAMS: tl.constexpr):
    """The first of this program's share of the slots, and the first of the next one's."""
    program = tl.program_id(0)
    return slots * program // PROGRAMS, slots * (program + 1) // PROGRAMS


@triton.jit
def _numbers(pairs):
    """The two bfloat16 numbers of each 32 bits, in float32."""
    return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _begun(
    weight, slot, end, units, gathered, tail_shift,
    W: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows of a tile, and those of the tile after it."""
    slots = slot + tl.arange(0, ROWS)
    row, used = _rows(slots, end, units, gathered, tail_shift, UNIT, PARTS)
    next_row, next_used = _rows(slots + ROWS, end, units, gathered, tail_shift, UNIT, PARTS)
    return row, used, next_row, next_used


@triton.jit
def _group(weight, row, used, FIRST: tl.constexpr, COUNT: tl.constexpr, W: tl.constexpr, COLUMNS: tl.constexpr):
    """COUNT pieces of COLUMNS numbers of some rows on their way, from piece FIRST on, but none beyond the row's end."""
    pieces = ()
    for piece in tl.static_range(FIRST, min(FIRST + COUNT, (W + COLUMNS - 1) // COLUMNS)):
        column = piece * COLUMNS + tl.arange(0, COLUMNS)
        inside = used[:, None]
        if W % COLUMNS != 0:
            inside = inside & (column < W)[None, :]
        place = weight + row[:, None] * W + column[None, :]
        pieces = pieces + (tl.load(place, mask=inside, other=0, eviction_policy="evict_first"),)
    return pieces


@triton.jit
def _multiplied(total, pieces, x, FIRST: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add pieces of rows, times a vector's, to `total` (ROWS, COLUMNS). Each warp loads the vector for its own row."""
    every = tl.zeros([ROWS, 1], tl.int32)
    for piece in tl.static_range(len(pieces)):
        column = (FIRST + piece) * COLUMNS + tl.arange(0, COLUMNS)
        inside = ((column < W)[None, :]) & (every == 0)
        v = tl.load(x + (column[None, :] + every), mask=inside, other=0)
        if x.dtype.element_ty == tl.int32:
            even, odd = _numbers(pieces[piece])
            v_even, v_odd = _numbers(v)
            total += even * v_even
            total += odd * v_odd
        else:
            total += pieces[piece].to(tl.float32) * v.to(tl.float32)
    return total


@triton.jit
def _products(
    x, moments, eps, weight, gains, bias, pieces, rows, first, end, units, gathered, tail_shift, out,
    fetched, then_weight, then_first, then_end, then_units, then_gathered,
    D: tl.constexpr, W: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, PIECE: tl.constexpr,
    PIECES: tl.constexpr, RMS: tl.constexpr, THEN_UNIT: tl.constexpr, AHEAD: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Rows times a normed vector, a warp each: slots `first` to `end`. `pieces`: the first group, already on its way.

    While a group is multiplied the next one is loaded. `then_...`: what the next phase reads. Returns what is fetched
    of that.
    """
    row, used, next_row, next_used = rows
    then_fetched = then_first
    mean, deviation = norm_of(moments, eps, D, PIECE, PIECES, RMS)
    for start in range(first, end, ROWS):
        constants = constants_of(row, used, None, gains, bias)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for group in tl.static_range(GROUPS):
            if group + 1 < GROUPS:
                following = _group(weight, row, used, (group + 1) * GROUP, GROUP, W, COLUMNS)
            else:
                following = _group(weight, next_row, next_used, 0, GROUP, W, COLUMNS)
            if group == 0 and AHEAD > 0:
                fetched, then_fetched = _ahead(
                    start + 2 * ROWS + AHEAD, weight, fetched, end, units, gathered, tail_shift,
                    then_weight, then_fetched, then_first, then_end, then_units, then_gathered,
                    W, UNIT, PARTS, THEN_UNIT, 1, THREADS,
                )  # fmt: skip
            total = _multiplied(total, pieces, x, group * GROUP, W, ROWS, COLUMNS)
            pieces = following
        y = finished(tl.sum(total, 1), constants, mean, deviation)
        row, used = next_row, next_used
        next_row, next_used = _rows(
            start + 2 * ROWS + tl.arange(0, ROWS), end, units, gathered, tail_shift, UNIT, PARTS
        )
        if PARTS == 2:
            gate, up = tl.split(tl.reshape(y, [ROWS // 2, 2]))
        else:
            gate, up = y, y
        slot = start // PARTS + tl.arange(0, ROWS // PARTS)
        tl.store(out + slot, activated(gate, up, ACTIVATION, PARTS), mask=slot < end // PARTS)
    return then_fetched


@triton.jit
def _amounts(amount, shares, slot, end, K: tl.constexpr, SPLITS: tl.constexpr, SPLIT_PLACES: tl.constexpr):
    """What each slot's row is multiplied with, 0 where it is not in use."""
    if shares is not None:
        return tl.where(slot < end, mixed_of(amount, shares, slot, slot < end, K, SPLITS, SPLIT_PLACES), 0.0)
    return tl.load(amount + slot, mask=slot < end, other=0.0)


@triton.jit
def _sums(
    amount, shares, weight, pieces, rows, first, end, units, gathered, partial,
    fetched, then_weight, then_first, then_end, then_units, then_gathered,
    D: tl.constexpr, W: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT_PLACES: tl.constexpr,
    THEN_PARTS: tl.constexpr, AHEAD: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """The sum of this program's weighted rows, into its row of `partial`: threads lie side by side along the rows.

    As in `_products`; without `then_weight` nothing is read next.
    """
    row, used, next_row, next_used = rows
    slots, then_fetched = tl.arange(0, ROWS), then_first
    a = _amounts(amount, shares, first + slots, end, UNIT, SPLITS, SPLIT_PLACES)
    totals = ()
    for _ in tl.static_range(len(pieces) * (D // W)):
        totals = totals + (tl.zeros([COLUMNS], tl.float32),)
    for start in range(first, end, ROWS):
        following = _group(weight, next_row, next_used, 0, len(pieces), W, COLUMNS)
        next_row, next_used = _rows(start + 2 * ROWS + slots, end, units, gathered, 0, UNIT, 1)
        if AHEAD > 0:
            fetched, then_fetched = _ahead(
                start + 2 * ROWS + AHEAD, weight, fetched, end, units, gathered, 0,
                then_weight, then_fetched, then_first, then_end, then_units, then_gathered,
                W, UNIT, 1, 1, THEN_PARTS, THREADS,
            )  # fmt: skip
        if shares is None:
            next_a = _amounts(amount, None, start + ROWS + slots, end, UNIT, SPLITS, SPLIT_PLACES)
        more = ()
        for piece in tl.static_range(len(pieces)):
            if D == W:
                more = more + (totals[piece] + tl.sum(a[:, None] * pieces[piece].to(tl.float32), 0),)
            else:
                even, odd = _numbers(pieces[piece])
                more = more + (totals[2 * piece] + tl.sum(a[:, None] * even, 0),)
                more = more + (totals[2 * piece + 1] + tl.sum(a[:, None] * odd, 0),)
        totals = more
        if shares is not None:  # which takes longer, and more registers
            next_a = _amounts(amount, shares, start + ROWS + slots, end, UNIT, SPLITS, SPLIT_PLACES)
        a, pieces = next_a, following
    for piece in tl.static_range(len(pieces)):
        total = totals[piece] if D == W else tl.interleave(totals[2 * piece], totals[2 * piece + 1])
        column = piece * COLUMNS * (D // W) + tl.arange(0, COLUMNS * (D // W))
        tl.store(partial + tl.program_id(0) * D + column, total, mask=column < D)
    return then_fetched


@triton.jit
def _settle(
    partial, bias, residual, gain, scaled, moments,
    D: tl.constexpr, PIECE: tl.constexpr, TOGETHER: tl.constexpr, ADDENDS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Add up the sums, TOGETHER pieces of the residual at a time, and leave what the next products read."""
    pieces: tl.constexpr = (D + PIECE - 1) // PIECE
    for first in range(tl.program_id(0) * TOGETHER, pieces, PROGRAMS * TOGETHER):
        column = first * PIECE + tl.arange(0, TOGETHER * PIECE)
        inside = column < D
        x = tl.load(residual + column, mask=inside, other=0.0)
        if bias is not None:
            x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        g = 1.0
        if gain is not None:
            g = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
        sums = tl.zeros([ADDENDS, TOGETHER * PIECE], tl.float32)
        for start in tl.static_range(0, PROGRAMS, ADDENDS):
            program = start + tl.arange(0, ADDENDS)
            here = (program < PROGRAMS)[:, None] & inside[None, :]
            sums += tl.load(partial + program[:, None] * D + column[None, :], mask=here, other=0.0)
        x += tl.sum(sums, 0)
        tl.store(residual + column, x, mask=inside)
        tl.store(scaled + column, x * g, mask=inside)
        piece = first + tl.arange(0, TOGETHER)
        apart = tl.reshape(tl.where(inside, x, 0.0), [TOGETHER, PIECE])
        total = tl.sum(apart, 1)
        size = tl.maximum(tl.minimum(D - piece * PIECE, PIECE), 1)
        there = tl.arange(0, PIECE)[None, :] < size[:, None]
        away = tl.where(there, apart - (total / size)[:, None], 0.0)
        tl.store(moments + piece, total, mask=piece < pieces)
        tl.store(moments + pieces + piece, tl.sum(away * away, 1), mask=piece < pieces)


@triton.jit
def _split(item, now, heads, gathered, positions, K: tl.constexpr, SHARED: tl.constexpr, SPLITS: tl.constexpr,
           TOKENS: tl.constexpr):  # fmt: skip
    """Of an item of the attention: its slot, split and KV head, where its past begins in the cache, and its length."""
    slot, split = item // SPLITS, item % SPLITS
    head = slot
    if heads is not None:
        head = tl.load(heads + slot, mask=slot < gathered, other=0)
    group = head // SHARED
    length = tl.cdiv(tl.cdiv(now, SPLITS), TOKENS) * TOKENS
    past = group.to(tl.int64) * positions + split * length
    return slot, split, group, past, tl.minimum(now - split * length, length)


@triton.jit
def _attention(
    qkv, heads, gathered, keys, values, now, cos, signed_sin, query_norm, key_norm, mixed, shares, positions,
    scale, eps,
    K: tl.constexpr, KV_HEADS: tl.constexpr, SHARED: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr,
    STREAMS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Softmaxes over the cache, an item each for a split of a kept head's; and the new keys and values, cached."""
    program, k = tl.program_id(0), tl.arange(0, K)
    new_keys, new_values = qkv + gathered * K, qkv + (gathered + KV_HEADS) * K
    for item in range(program, gathered * SPLITS, PROGRAMS):
        slot, split, group, past, left = _split(item, now, heads, gathered, positions, K, SHARED, SPLITS, TOKENS)
        key, value, there = _past(keys, values, past, left, K, TOKENS)
        query = _turned(qkv + slot * K, k, now, cos, signed_sin, query_norm, eps, K) * scale
        best, weight = tl.full([STREAMS], LOWEST, tl.float32), tl.zeros([STREAMS], tl.float32)
        sums = tl.zeros([STREAMS, K], tl.float32)
        best, weight, sums = _weighed(best, weight, sums, query, key, value, there, K, STREAMS)
        for start in tl.range(TOKENS, left, TOKENS, num_stages=1):
            key, value, there = _past(keys, values, past + start, left - start, K, TOKENS)
            best, weight, sums = _weighed(best, weight, sums, query, key, value, there, K, STREAMS)
        score, new_value = tl.full([], float("-inf"), tl.float32), tl.zeros([K], tl.float32)
        if split == 0:  # the new position itself, as the cache will hold it
            new_key = _turned(new_keys + group * K, k, now, cos, signed_sin, key_norm, eps, K)
            score = tl.sum(query * new_key.to(keys.dtype.element_ty).to(tl.float32), 0)
            new_value = tl.load(new_values + group * K + k).to(values.dtype.element_ty).to(tl.float32)
        highest = tl.maximum(tl.max(best, 0), score)
        fade, share = tl.exp(best - highest), tl.exp(score - highest)
        place = slot * SPLITS
        tl.store(mixed + (place + split) * K + k, tl.sum(sums * fade[:, None], 0) + share * new_value)
        tl.store(shares + 2 * place + split, highest)
        tl.store(shares + 2 * place + SPLITS + split, tl.sum(weight * fade, 0) + share)
    for group in range(PROGRAMS - 1 - program, KV_HEADS, PROGRAMS):
        place = (group * positions + now).to(tl.int64) * K + k
        tl.store(keys + place, _turned(new_keys + group * K, k, now, cos, signed_sin, key_norm, eps, K))
        tl.store(values + place, tl.load(new_values + group * K + k))


@triton.jit(do_not_specialize=["positions", "eps", "ffn_eps", "head_eps"])
def _layer(
    residual, scaled, x, moments, counter, partial, position,
    qkv_weight, qkv_gains, qkv_bias, qkv, heads, heads_count, keys, values, cos, signed_sin, query_norm, key_norm,
    mixed, shares, output_weight, output_bias, ffn_gain,
    in_weight, in_gains, in_bias, active, neurons, neurons_count, down_weight, down_bias, next_gain,
    positions, scale, eps, ffn_eps, head_eps,
    D: tl.constexpr, W: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    NEURONS: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr, RMS: tl.constexpr, PIECE: tl.constexpr,
    PIECES: tl.constexpr, TOGETHER: tl.constexpr, ADDENDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, SUM_ROWS: tl.constexpr, SUM_COLUMNS: tl.constexpr,
    SUM_PIECES: tl.constexpr, SPLITS: tl.constexpr, SPLIT_PLACES: tl.constexpr, TOKENS: tl.constexpr,
    STREAMS: tl.constexpr, AHEAD: tl.constexpr, BURST: tl.constexpr, LATE: tl.constexpr, PROGRAMS: tl.constexpr,
    THREADS: tl.constexpr, ONLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL == 2:
        tl.extra.cuda.gdc_wait()
    if PDL and not LATE:
        tl.extra.cuda.gdc_launch_dependents()
    # lists and position: there when the row of kernels starts
    kept_heads, kept_neurons = HEADS, NEURONS
    if heads is not None:
        kept_heads = tl.load(heads_count)
    if neurons is not None:
        kept_neurons = tl.load(neurons_count)
    now = tl.load(position).to(tl.int32)
    head_rows = kept_heads * K
    qkv_first, qkv_end = _share(head_rows + 2 * KV_HEADS * K, PROGRAMS)
    tail_shift = HEADS * K - head_rows
    output_first, output_end = _share(head_rows, PROGRAMS)
    down_first, down_end = _share(kept_neurons, PROGRAMS)
    in_first, in_end = down_first * PARTS, down_end * PARTS

    every: tl.constexpr = ONLY < 0
    waiting: tl.constexpr = PROGRAMS if every else 1  # no program waits where phases are launched one by one
    fetched = qkv_first + ROWS
    if every or ONLY == 0:  # QKV rows
        rows = _begun(qkv_weight, qkv_first, qkv_end, heads, head_rows, tail_shift, W, K, 1, ROWS)
        pieces = _group(qkv_weight, rows[0], rows[1], 0, GROUP, W, COLUMNS)
        if AHEAD > 0:
            upto = tl.minimum(fetched + AHEAD, qkv_end)
            if fetched < upto:
                _fetch(qkv_weight, fetched, upto, heads, head_rows, tail_shift, W, K, 1, THREADS)
                fetched = upto
        if PDL != 2:
            pdl_wait(PDL)
        fetched = _products(
            x, moments, eps, qkv_weight, qkv_gains, qkv_bias, pieces, rows, qkv_first, qkv_end, heads, head_rows,
            tail_shift, qkv, fetched, output_weight, output_first, output_end, heads, head_rows,
            D, W, K, 1, 0, ROWS, COLUMNS, GROUP, GROUPS, PIECE, PIECES, RMS, K, AHEAD, THREADS,
        )  # fmt: skip
        arrived = _arrive(counter, waiting)
        if AHEAD > 0:  # for the attention and its barriers, which read little themselves
            if tl.program_id(0) < kept_heads * SPLITS:
                slot, split, group, past, left = _split(
                    tl.program_id(0), now, heads, kept_heads, positions, K, HEADS // KV_HEADS, SPLITS, TOKENS
                )
                lane = tl.arange(0, THREADS)
                size = tl.full([THREADS], left * K * keys.dtype.element_ty.primitive_bitwidth // 8, tl.int32)
                _into_l2(keys + past * K + lane * 0, (lane == 0) & (left > 0), size)
                _into_l2(values + past * K + lane * 0, (lane == 0) & (left > 0), size)
            upto = tl.minimum(output_first + BURST, output_end)
            if fetched < upto:
                _fetch(output_weight, fetched, upto, heads, head_rows, 0, W, K, 1, THREADS)
                fetched = upto

    if every or ONLY == 1:
        _wait(counter, arrived if every else 0, waiting)
        _attention(
            qkv, heads, kept_heads, keys, values, now, cos, signed_sin, query_norm, key_norm, mixed, shares,
            positions, scale, head_eps, K, KV_HEADS, HEADS // KV_HEADS, SPLITS, TOKENS, STREAMS, PROGRAMS,
        )  # fmt: skip
        arrived = _arrive(counter, waiting)

    if every or ONLY == 2:  # output rows
        rows = _begun(output_weight, output_first, output_end, heads, head_rows, 0, W, K, 1, SUM_ROWS)
        pieces = _group(output_weight, rows[0], rows[1], 0, SUM_PIECES, W, SUM_COLUMNS)
        _wait(counter, arrived if every else 0, waiting)
        fetched = _sums(
            mixed, shares, output_weight, pieces, rows, output_first, output_end, heads, head_rows, partial,
            fetched, in_weight, in_first, in_end, neurons, kept_neurons,
            D, W, K, SUM_ROWS, SUM_COLUMNS, SPLITS, SPLIT_PLACES, PARTS, AHEAD, THREADS,
        )  # fmt: skip
        arrived = _arrive(counter, waiting)

    if every or ONLY == 4:  # FFN rows in, on their way during the next phase
        rows = _begun(in_weight, in_first, in_end, neurons, kept_neurons, 0, W, 1, PARTS, ROWS)
        pieces = _group(in_weight, rows[0], rows[1], 0, GROUP, W, COLUMNS)
        if AHEAD > 0:
            upto = tl.minimum(in_first + ROWS + AHEAD, in_end)
            if fetched < upto:
                _fetch(in_weight, fetched, upto, neurons, kept_neurons, 0, W, 1, PARTS, THREADS)
                fetched = upto
    if every or ONLY == 3:
        _wait(counter, arrived if every else 0, waiting)
        _settle(
            partial, output_bias, residual, ffn_gain, scaled, moments, D, PIECE, TOGETHER, ADDENDS, PROGRAMS
        )  # fmt: skip
        arrived = _arrive(counter, waiting)

    if every or ONLY == 4:
        _wait(counter, arrived if every else 0, waiting)
        fetched = _products(
            x, moments, ffn_eps, in_weight, in_gains, in_bias, pieces, rows, in_first, in_end, neurons, kept_neurons, 0,
            active, fetched, down_weight, down_first, down_end, neurons, kept_neurons,
            D, W, 1, PARTS, ACTIVATION, ROWS, COLUMNS, GROUP, GROUPS, PIECE, PIECES, RMS, 1, AHEAD, THREADS,
        )  # fmt: skip
        # FFN rows out: those of the neurons that this very program has computed, so no other need be waited for
        rows = _begun(down_weight, down_first, down_end, neurons, kept_neurons, 0, W, 1, 1, SUM_ROWS)
        pieces = _group(down_weight, rows[0], rows[1], 0, SUM_PIECES, W, SUM_COLUMNS)
        if PDL and LATE:
            tl.extra.cuda.gdc_launch_dependents()
        if waiting > 1:
            tl.debug_barrier()
        _sums(
            active, None, down_weight, pieces, rows, down_first, down_end, neurons, kept_neurons, partial,
            fetched, None, 0, 0, None, 0,
            D, W, 1, SUM_ROWS, SUM_COLUMNS, 1, 1, 1, AHEAD, THREADS,
        )  # fmt: skip
        arrived = _arrive(counter, waiting)

    if every or ONLY == 5:
        _wait(counter, arrived if every else 0, waiting)
        _settle(
            partial, down_bias, residual, next_gain, scaled, moments, D, PIECE, TOGETHER, ADDENDS, PROGRAMS
        )  # fmt: skip


def programs(device: torch.device) -> int:
    """Programs of a grid that is resident at once. Interpreted ones run one after another and cannot wait."""
    return processors(device) * PER_PROCESSOR if device.type == "cuda" else INTERPRETED


def splits_of(heads: int, positions: int, count: int) -> int:
    """Parts of the cache of each of so many heads, for so many programs."""
    return max(1, min(MOST_SPLITS, triton.cdiv(positions, TOKENS), count // max(1, heads)))


def sizes_of(width: int, head_width: int, itemsize: int, pieces: int, count: int, packed: int) -> dict[str, int]:
    """The sizes of tiles that the kernel is compiled for; `packed` numbers are loaded as one."""
    threads, words, row_bytes = WARPS * 32, width // packed, width * itemsize
    together = 16 // (itemsize * packed)  # 16 bytes a thread
    columns = min(power_of_two(words), 32 * together)
    column_pieces = triton.cdiv(words, columns)
    groups = max(min(2, column_pieces), triton.cdiv(WARPS * columns * packed * column_pieces, TILE))
    sum_columns = min(power_of_two(words), threads * together)
    return {
        "W": words,
        "ROWS": WARPS,
        "COLUMNS": columns,
        "GROUP": triton.cdiv(column_pieces, groups),
        "GROUPS": triton.cdiv(column_pieces, triton.cdiv(column_pieces, groups)),
        "SUM_ROWS": max(1, min(SUM_ROWS, power_of_two_within(TILE // width))),
        "SUM_COLUMNS": sum_columns,
        "SUM_PIECES": triton.cdiv(words, sum_columns),
        "TOGETHER": power_of_two(triton.cdiv(pieces, count)),
        "ADDENDS": min(ADDENDS, power_of_two(count)),
        "TOKENS": TOKENS,
        "STREAMS": min(TOKENS, max(1, WARPS * 512 // (head_width * itemsize))),
        "AHEAD": AHEAD // row_bytes // 2 * 2,
        "BURST": BURST // row_bytes,
        "LATE": LATE,
        "PROGRAMS": count,
        "THREADS": threads,
    }


class PersistentLayer:
    """Buffers of the kernel, shared by layers that are launched one after another."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_width: int, neurons: int, positions: int, device: torch.device
    ):
        floats = {"dtype": torch.float32, "device": device}
        self.heads, self.kv_heads, self.head_width, self.neurons = heads, kv_heads, head_width, neurons
        self.positions, self.device, self.programs = positions, device, programs(device)
        self._qkv = torch.empty((heads + 2 * kv_heads) * head_width, **floats)
        self._mixed = torch.empty(heads * MOST_SPLITS * head_width, **floats)
        self._shares = torch.empty(heads * MOST_SPLITS * 2, **floats)
        self._active = torch.empty(neurons, **floats)
        self._partial = torch.empty(self.programs, width, **floats)
        self._counter = torch.zeros(32, dtype=torch.int32, device=device)

    def __call__(
        self, layer, read, residual: torch.Tensor, normed: Normed, next_gain: torch.Tensor | None,
        keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor] | None, heads: Units | None, neurons: Units | None, activation: str,
    ) -> None:  # fmt: skip
        """The residual and its norm after a layer; `read` has the folded norms and biases of its two products."""
        (qkv_read, ffn_read), (cos, signed_sin) = read, turns or (None, None)
        query_norm, key_norm, head_eps = None, None, 0.0
        if layer.query_norm is not None:
            query_norm, key_norm, head_eps = layer.query_norm.weight, layer.key_norm.weight, layer.query_norm.eps
        width, weight, parts = residual.shape[-1], layer.query_key_value, 2 if activation in GATED else 1
        norm = normed._replace(eps=layer.attention_norm.eps, rms=layer.attention_norm.rms)
        splits = splits_of(self.heads if heads is None else heads.capacity, self.positions, self.programs)
        # registers of 16 bits each would take 32 while a tile waits for its turn
        packed = 2 if weight.dtype == norm.scaled.dtype == torch.bfloat16 and width % 2 == 0 else 1

        def pairs(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.view(torch.int32) if packed == 2 else tensor

        cuda, row_bytes = self.device.type == "cuda", width * weight.itemsize
        sizes = sizes_of(width, self.head_width, weight.itemsize, norm.moments.shape[-1], self.programs, packed)
        if not cuda or row_bytes % 16 or self.head_width * weight.itemsize % 16:
            sizes["AHEAD"] = 0
        limit = {"maxnreg": REGISTERS} if cuda and REGISTERS else {}
        for only in (-1,) if cuda or self.programs == 1 else range(PHASES):
            self.kernel = _layer[(self.programs,)](
                residual, norm.scaled, pairs(norm.scaled), norm.moments, self._counter, self._partial, position,
                pairs(weight), qkv_read.gains, qkv_read.bias, self._qkv, heads and heads.index, heads and heads.count,
                keys, values, cos, signed_sin, query_norm, key_norm, self._mixed, self._shares,
                pairs(layer.output), layer.output_bias, layer.ffn_norm.weight,
                pairs(layer.ffn_in), ffn_read.gains, ffn_read.bias, self._active, neurons and neurons.index,
                neurons and neurons.count, pairs(layer.ffn_down), layer.ffn_down_bias, next_gain,
                self.positions, self.head_width**-0.5, norm.eps, layer.ffn_norm.eps, head_eps,
                D=width, K=self.head_width, HEADS=self.heads, KV_HEADS=self.kv_heads, NEURONS=self.neurons,
                PARTS=parts, ACTIVATION=ACTIVATIONS[activation], **norm_sizes(norm), **sizes,
                SPLITS=splits, SPLIT_PLACES=power_of_two(splits),
                ONLY=only, **options(self.device, WARPS), **limit,
            )  # fmt: skip
