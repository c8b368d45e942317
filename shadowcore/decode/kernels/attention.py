"""Attention of one new position over the cache, for kept heads, and the new position's key and value cached."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.launch import Units, begin, options, power_of_two

TOKENS = 64  # of the cache, in one piece
SHORTEST_SPLIT, MOST_SPLITS = 64, 8


@triton.jit
def _turned(x, k, position, cos, signed_sin, K: tl.constexpr):
    """A head's K numbers at x in float32, turned by the angles of its position where there are any."""
    value = tl.load(x + k)
    if cos is not None:
        value = value * tl.load(cos + position * K + k).to(tl.float32)
        value += tl.load(x + (k + K // 2) % K) * tl.load(signed_sin + position * K + k).to(tl.float32)
    return value


@triton.jit
def _past(keys, values, past, token, end, k, K: tl.constexpr):
    """Keys and values of some cached positions, zeros from `end` on."""
    place = past + token[:, None] * K + k[None, :]
    there = (token < end)[:, None]
    return tl.load(keys + place, mask=there, other=0.0), tl.load(values + place, mask=there, other=0.0)


@triton.jit(do_not_specialize=["capacity", "positions", "length"])
def _attend(
    qkv, heads, count, keys, values, position, cos, signed_sin, mixed_parts, weight_parts, arrivals, out,
    capacity, positions, length, scale,
    K: tl.constexpr, KV_HEADS: tl.constexpr, SHARED: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
    TOKENS: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if not EARLY:
        begin(PDL)
    slot, split = tl.program_id(0), tl.program_id(1)
    now = tl.load(position).to(tl.int32)
    k = tl.arange(0, K)
    new_keys = qkv + capacity * K
    new_values = new_keys + KV_HEADS * K
    if slot >= capacity:
        if EARLY:
            begin(PDL)
        if split == 0:
            group = slot - capacity
            place = (group.to(tl.int64) * positions + now) * K + k
            tl.store(keys + place, _turned(new_keys + group * K, k, now, cos, signed_sin, K))
            tl.store(values + place, tl.load(new_values + group * K + k))
    else:
        head = slot
        if heads is not None:
            head = tl.load(heads + slot, mask=slot < tl.load(count), other=0)
        group = head // SHARED
        past = group.to(tl.int64) * positions * K
        token = split * length + tl.arange(0, TOKENS)
        end = tl.minimum((split + 1) * length, now)
        key, value = _past(keys, values, past, token, end, k, K)
        if EARLY:
            begin(PDL)
        query = _turned(qkv + slot * K, k, now, cos, signed_sin, K) * scale
        best = tl.full([], float("-inf"), tl.float32)
        weight = tl.full([], 0.0, tl.float32)
        mixed = tl.zeros([K], tl.float32)
        if split == 0:  # the new position itself, as the cache will hold it
            new_key = _turned(new_keys + group * K, k, now, cos, signed_sin, K).to(keys.dtype.element_ty)
            best = tl.sum(query * new_key.to(tl.float32), 0)
            weight = tl.full([], 1.0, tl.float32)
            mixed = tl.load(new_values + group * K + k).to(values.dtype.element_ty).to(tl.float32)
        for _ in range(split * length, end, TOKENS):
            score = tl.where(token < end, tl.sum(key.to(tl.float32) * query[None, :], 1), float("-inf"))
            highest = tl.maximum(best, tl.max(score, 0))
            share = tl.exp(score - highest)
            fade = tl.exp(best - highest)
            mixed = mixed * fade + tl.sum(share[:, None] * value.to(tl.float32), 0)
            weight = weight * fade + tl.sum(share, 0)
            best = highest
            token += TOKENS
            key, value = _past(keys, values, past, token, end, k, K)
        if SPLITS == 1:
            tl.store(out + slot * K + k, mixed / weight)
        else:
            part = slot * SPLITS + split
            tl.store(mixed_parts + part * K + k, mixed)
            tl.store(weight_parts + 2 * part, best)
            tl.store(weight_parts + 2 * part + 1, weight)
            # who arrives last puts the parts together
            tl.debug_barrier()
            if tl.atomic_add(arrivals + slot, 1) == SPLITS - 1:
                other = tl.arange(0, PARTS)
                there, parts = other < SPLITS, slot * SPLITS + other
                bests = tl.load(weight_parts + 2 * parts, mask=there, other=float("-inf"))
                fades = tl.exp(bests - tl.max(bests, 0))
                weights = fades * tl.load(weight_parts + 2 * parts + 1, mask=there, other=0.0)
                mixes = tl.load(mixed_parts + parts[:, None] * K + k[None, :], mask=there[:, None], other=0.0)
                tl.store(out + slot * K + k, tl.sum(fades[:, None] * mixes, 0) / tl.sum(weights, 0))
                tl.store(arrivals + slot, 0)


class Attention:
    """The attention of one layer after another over caches (G, positions, K), and the room it needs in between."""

    def __init__(self, heads: int, kv_heads: int, shared: int, head_width: int, positions: int, device: torch.device):
        """For up to `heads` query heads, `shared` of the model's on each KV head."""
        self.kv_heads, self.shared, self.head_width, self.positions = kv_heads, shared, head_width, positions
        length = max(SHORTEST_SPLIT, triton.cdiv(positions, MOST_SPLITS))
        self.length = triton.cdiv(length, TOKENS) * TOKENS
        self.splits = triton.cdiv(positions, self.length)
        self._mixed = torch.empty(heads, self.splits, head_width, dtype=torch.float32, device=device)
        self._weights = torch.empty(heads, self.splits, 2, dtype=torch.float32, device=device)
        self._arrivals = torch.zeros(heads, dtype=torch.int32, device=device)

    def __call__(
        self,
        qkv: torch.Tensor,
        heads: Units,
        numbered: bool,
        keys: torch.Tensor,
        values: torch.Tensor,
        position: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor] | None,
        out: torch.Tensor,
    ) -> None:
        """out_i = softmax(q_i K^T / sqrt(K)) V over all positions up to `position` (one integer, on the device).

        qkv (capacity + 2 G, K) float32: queries of the kept heads, then keys and values of every KV head, which are
        written into the caches. heads: which heads the queries are of where `numbered`, else the first ones.
        turns: cosines and signed sines (positions, K) of rotary positions. out (capacity, K) float32.
        """
        cos, signed_sin = turns or (None, None)
        _attend[(heads.capacity + self.kv_heads, self.splits)](
            qkv, heads.index if numbered else None, heads.count, keys, values, position, cos, signed_sin,
            self._mixed, self._weights, self._arrivals, out,
            heads.capacity, self.positions, self.length, self.head_width**-0.5,
            K=self.head_width, KV_HEADS=self.kv_heads, SHARED=self.shared, SPLITS=self.splits,
            PARTS=power_of_two(self.splits), TOKENS=TOKENS, EARLY=heads.early, **options(qkv.device, 4),
        )  # fmt: skip
