"""What a layer does with its units, all or only the kept ones: the torch operations of the decoder.

These are the functions a faster backend replaces. `kept` holds ascending unit indices, None means all.
A head is some hundred kilobytes in one piece, so heads are read where they lie, one after the other; a
neuron is a few kilobytes, so kept neurons are gathered. N rows of x (batch), n kept units, K head width.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def project(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """y_u = W_u x + b_u for all units: weight (U, R, D), bias (U, R), x (..., D) to (..., U, R)."""
    y = functional.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
    return y.unflatten(-1, weight.shape[:2])


def project_heads(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """y_h = W_h x + b_h for kept heads: weight (H, K, D), x (N, D) to (N, n, K)."""
    if not kept:
        return x.new_empty(len(x), 0, weight.shape[1])
    return torch.stack([functional.linear(x, weight[h], None if bias is None else bias[h]) for h in kept], 1)


def project_neurons(
    weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """y_f = W_f x + b_f for kept neurons: weight (F, P, D), x (N, D) to (N, n, P)."""
    return project(weight.index_select(0, kept), None if bias is None else bias.index_select(0, kept), x)


def activate(inner: torch.Tensor, activation: str) -> torch.Tensor:
    """Neurons (..., n) from their products (..., n, P): relu(fc1 x), or act(gate x) (up x)."""
    if activation == "relu":
        return torch.relu(inner).squeeze(-1)
    act = torch.relu if activation == "gated_relu" else functional.silu
    return act(inner[..., 0]) * inner[..., 1]


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kv_heads: list[int] | None, rows: torch.Tensor | None
) -> torch.Tensor:
    """softmax(q K^T / sqrt(K)) V of one position: query (N, n, K), keys and values (N, G, T, K) to (N, n, K).

    kv_heads (n) says whose keys each query head reads; None: all heads are there, an equal share per KV head. rows
    (N, n) bool: the heads that each row keeps; of the others it reads nothing, and they are zero.
    """
    if kv_heads is None:
        grouped = query.unflatten(1, (keys.shape[1], -1))  # (N, G, H/G, K)
        return functional.scaled_dot_product_attention(grouped, keys, values).flatten(1, 2)
    mixed = torch.zeros_like(query)
    for i, g in enumerate(kv_heads):
        # views of the cache, one sequence each: indices would copy it
        keepers = [slice(None)] if rows is None else [slice(r, r + 1) for (r,) in rows[:, i].nonzero().tolist()]
        for own in keepers:
            one_head = query[own, None, None, i], keys[own, g : g + 1], values[own, g : g + 1]
            mixed[own, i] = functional.scaled_dot_product_attention(*one_head)[:, 0, 0]
    return mixed


def add(weight: torch.Tensor, bias: torch.Tensor | None, amount: torch.Tensor) -> torch.Tensor:
    """sum_r a_r W_r + b over all rows: weight (R, D), amount (..., R) to (..., D)."""
    total = amount @ weight
    return total if bias is None else total + bias


def add_heads(weight: torch.Tensor, bias: torch.Tensor | None, amount: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """sum_h a_h W_h + b over kept heads: weight (H, K, D), amount (N, n, K) to (N, D)."""
    total = amount.new_zeros(len(amount), weight.shape[-1])
    for i, h in enumerate(kept):
        total.addmm_(amount[:, i], weight[h])
    return total if bias is None else total + bias


def add_neurons(
    weight: torch.Tensor, bias: torch.Tensor | None, amount: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """sum_f a_f W_f + b over kept neurons: weight (F, D), amount (N, n) to (N, D)."""
    if len(amount) > 1:
        return add(weight.index_select(0, kept), bias, amount)
    share = max(1, -(-len(kept) // torch.get_num_threads()))  # embedding_bag gives each bag to one thread
    bags = torch.arange(0, max(1, len(kept)), share, device=kept.device)
    total = functional.embedding_bag(kept, weight, bags, mode="sum", per_sample_weights=amount[0]).sum(0, keepdim=True)
    return total if bias is None else total + bias


def rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x (..., K) turned by the angles of its position; the first half of signed_sin is negated."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)
