"""Attention of one new position over the cache, for kept heads, and the new position's key and value cached.

The cache is read in splits, a program each, and their results stay apart (`Mixed`): whoever reads a head's output
weighs its splits on the way (`mixed_of`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.launch import Units, options, pdl_launch_dependents, pdl_wait, power_of_two

TOKENS, WARPS = 16, 1  # positions a program reads at a time
PROGRAMS, MOST_SPLITS = 8192, 32
LOWEST = tl.constexpr(-1e30)  # below every score, but finite


class Mixed(NamedTuple):
    """Heads' outputs in the making: what each split of the cache gives, and how much it counts."""

    values: torch.Tensor  # (B, heads, splits, K) float32
    shares: torch.Tensor  # (B, heads, 2, splits) float32: the highest score, and the sum of exponentials below it
    splits: int


@triton.jit
def mixed_of(values, shares, slot, used, K: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr):
    """Numbers of the heads' outputs, number slot % K of head slot // K: their splits weighed."""
    part = tl.arange(0, PARTS)
    there = (part < SPLITS)[:, None] & used[None, :]
    head = slot // K
    place = (head * 2 * SPLITS)[None, :] + part[:, None]
    best = tl.load(shares + place, mask=there, other=float("-inf"))
    weight = tl.load(shares + place + SPLITS, mask=there, other=0.0)
    place = (head * SPLITS * K + slot % K)[None, :] + part[:, None] * K
    value = tl.load(values + place, mask=there, other=0.0)
    fade = tl.exp(best - tl.where(used, tl.max(best, 0), 0.0)[None, :])
    return tl.sum(fade * value, 0) / tl.where(used, tl.sum(fade * weight, 0), 1.0)


@triton.jit
def _turned(x, k, position, cos, signed_sin, norm, eps, K: tl.constexpr):
    """A head's K numbers at x in float32, normed and turned by the angles of its position where there are any."""
    value = tl.load(x + k)
    if norm is not None:
        deviation = tl.rsqrt(tl.sum(value * value, 0) / K + eps)
        value *= deviation * tl.load(norm + k).to(tl.float32)
    if cos is not None:
        other = (k + K // 2) % K
        beside = tl.load(x + other)
        if norm is not None:
            beside *= deviation * tl.load(norm + other).to(tl.float32)
        value = value * tl.load(cos + position * K + k).to(tl.float32)
        value += beside * tl.load(signed_sin + position * K + k).to(tl.float32)
    return value


@triton.jit
def _past(keys, values, first, left, K: tl.constexpr, TOKENS: tl.constexpr):
    """Keys and values of TOKENS cached positions from `first` on, and which are read: the first `left`."""
    place = first * K + tl.arange(0, TOKENS)[:, None] * K + tl.arange(0, K)[None, :]
    there = tl.arange(0, TOKENS) < left
    key = tl.load(keys + place, mask=there[:, None])
    return key, tl.load(values + place, mask=there[:, None], other=0.0), there


@triton.jit
def _weighed(best, weight, sums, query, key, value, there, K: tl.constexpr, STREAMS: tl.constexpr):
    """Add positions to STREAMS softmaxes, every STREAMS-th to each, so that warps do not wait for one another."""
    PIECE: tl.constexpr = key.shape[0] // STREAMS
    score = tl.sum(tl.reshape(key, [PIECE, STREAMS, K]).to(tl.float32) * query[None, None, :], 2)
    score = tl.where(tl.reshape(there, [PIECE, STREAMS]), score, float("-inf"))
    highest = tl.maximum(best, tl.max(score, 0))
    share, fade = tl.exp(score - highest[None, :]), tl.exp(best - highest)
    more = tl.sum(share[:, :, None] * tl.reshape(value, [PIECE, STREAMS, K]).to(tl.float32), 0)
    return highest, weight * fade + tl.sum(share, 0), sums * fade[:, None] + more


@triton.jit(do_not_specialize=["capacity", "positions"])
def _attend(
    qkv, heads, count, rows, keys, values, position, cos, signed_sin, query_norm, key_norm, mixed, shares,
    capacity, positions, scale, eps,
    K: tl.constexpr, KV_HEADS: tl.constexpr, SHARED: tl.constexpr, TOKENS: tl.constexpr, STREAMS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    slot, split, row, splits = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    now = tl.load(position).to(tl.int32)
    k = tl.arange(0, K)
    qkv += row * (capacity + 2 * KV_HEADS) * K
    new_keys, new_values = qkv + capacity * K, qkv + (capacity + KV_HEADS) * K
    head, kept = slot, slot < capacity
    if heads is not None:
        head = tl.load(heads + slot, mask=kept, other=0)
        kept = kept & (slot < tl.load(count))
    if rows is not None:
        kept = kept & (((tl.load(rows + slot, mask=slot < capacity, other=0) >> row) & 1) != 0)
    group = (slot - capacity) * splits + split
    if (slot >= capacity) & (group < KV_HEADS):
        pdl_wait(PDL)
        place = ((row * KV_HEADS + group).to(tl.int64) * positions + now) * K + k
        tl.store(keys + place, _turned(new_keys + group * K, k, now, cos, signed_sin, key_norm, eps, K))
        tl.store(values + place, tl.load(new_values + group * K + k))
    elif kept:  # else this sequence does not keep the head, and the program does not read its cache
        group = head // SHARED
        length = tl.cdiv(tl.cdiv(now, splits), TOKENS) * TOKENS  # positions of a split
        past = (row * KV_HEADS + group).to(tl.int64) * positions + split * length
        left = tl.minimum(now - split * length, length)
        key, value, there = _past(keys, values, past, left, K, TOKENS)
        pdl_wait(PDL)
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
        place = (row * capacity + slot) * splits
        tl.store(mixed + (place + split) * K + k, tl.sum(sums * fade[:, None], 0) + share * new_value)
        tl.store(shares + 2 * place + split, highest)
        tl.store(shares + 2 * place + splits + split, tl.sum(weight * fade, 0) + share)


@triton.jit(do_not_specialize=["slots"])
def _combine(
    values, shares, bits, out, slots,
    K: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    head, row = tl.program_id(0), tl.program_id(1)
    slot = (row * slots + head) * K + tl.arange(0, K)
    keeps = tl.full([K], 1, tl.int64)
    if bits is not None:
        keeps &= tl.load(bits + head) >> row
    tl.store(out + slot, mixed_of(values, shares, slot, keeps != 0, K, SPLITS, PARTS))


class Attention:
    """The attention of one layer after another over caches (B, G, positions, K), and its results."""

    def __init__(self, batch: int, heads: int, kv_heads: int, head_width: int, positions: int, device: torch.device):
        """For up to `heads` query heads, which share KV heads equally."""
        self.batch, self.kv_heads, self.shared, self.head_width = batch, kv_heads, heads // kv_heads, head_width
        self.positions = positions
        self.splits = min(MOST_SPLITS, triton.cdiv(positions, TOKENS), triton.cdiv(PROGRAMS, heads * batch))
        numbers = (batch * heads * n for n in (self.splits * head_width, self.splits * 2, head_width))
        self._mixed, self._shares, self._outputs = (torch.empty(n, dtype=torch.float32, device=device) for n in numbers)

    def __call__(
        self, qkv: torch.Tensor, heads: Units, numbered: bool, keys: torch.Tensor, values: torch.Tensor,
        position: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor] | None,
        norms: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> Mixed:  # fmt: skip
        """softmax(q_i K^T / sqrt(K)) V over all positions up to `position` (one integer, on the device), in splits.

        qkv (B, capacity + 2 G, K) float32: queries of the kept heads, then keys and values of every KV head, which are
        written into the caches. heads: which heads the queries are of where `numbered`, else the first ones. Of a head
        that a sequence does not keep, its cache is not read, and its place in the results is left as it was.
        turns: cosines and signed sines (positions, K) of rotary positions. norms: weights (K,) of the RMSNorms of each
        query and each key, and their epsilon.
        """
        cos, signed_sin = turns or (None, None)
        query_norm, key_norm, eps = norms or (None, None, 0.0)
        streams = min(TOKENS, max(1, WARPS * 512 // (self.head_width * keys.itemsize)))  # 16 bytes a thread
        writers = triton.cdiv(self.kv_heads, self.splits)  # of the new keys and values
        _attend[heads.capacity + writers, self.splits, self.batch](
            qkv, heads.index if numbered else None, heads.count, heads.rows, keys, values, position, cos, signed_sin,
            query_norm, key_norm, self._mixed, self._shares, heads.capacity, self.positions, self.head_width**-0.5, eps,
            K=self.head_width, KV_HEADS=self.kv_heads, SHARED=self.shared, TOKENS=TOKENS, STREAMS=streams,
            **options(qkv.device, WARPS),
        )  # fmt: skip
        return Mixed(self._mixed, self._shares, self.splits)

    def combined(self, mixed: Mixed, capacity: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The heads' outputs (B, capacity, K), zero where `rows` (capacity,) does not have the sequence's bit."""
        out = self._outputs[: self.batch * capacity * self.head_width]
        _combine[capacity, self.batch](
            mixed.values, mixed.shares, rows, out, capacity,
            K=self.head_width, SPLITS=self.splits, PARTS=power_of_two(self.splits), **options(out.device, 1),
        )  # fmt: skip
        return out.view(self.batch, capacity, self.head_width)
