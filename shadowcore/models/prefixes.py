"""Prompts that several rows continue, run once: a question's choices share their context, and so do all conditions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch


@torch.no_grad()
def continuing(
    model: torch.nn.Module, prefixes: Sequence[Sequence[int]], rows: torch.Tensor, length: int
) -> Callable[[], dict[str, Any]]:
    """Run the dense model once on all prefixes (lists of token ids, none empty), for rows that continue them.

    Returns a function that makes what the model is called with besides its input (B, length), whose row b continues
    prefixes[rows[b]]. It is called before every pass, because a model appends to the cache that it is given.
    """
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=model.device)
    longest = int(lengths.max())
    ids = torch.tensor([[0] * (longest - len(prefix)) + list(prefix) for prefix in prefixes], device=model.device)
    mask = torch.arange(longest, device=model.device) >= longest - lengths[:, None]  # (N, P), padded on the left
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model(
        ids, attention_mask=mask.long(), position_ids=positions, use_cache=True, logits_to_keep=1
    ).past_key_values
    cache.batch_select_indices(rows)
    seen = torch.cat((mask[rows], mask.new_ones(len(rows), length)), 1).long()
    positions = lengths[rows, None] + torch.arange(length, device=model.device)
    positions = positions.clamp(max=model.config.max_position_embeddings - 1)  # a short row's padding may lie beyond

    def context() -> dict[str, Any]:
        fresh = copy.copy(cache)
        fresh.layers = list(map(_unchanged, cache.layers))
        return {"past_key_values": fresh, "attention_mask": seen, "position_ids": positions, "use_cache": True}

    return context


def _unchanged(layer: Any) -> Any:
    """A layer of a cache that gives what it holds with what is appended, and keeps the latter no longer than needed.

    Longer keys and values of all layers at once would take as much memory again as those of the prompts.
    """
    fresh = copy.copy(layer)
    fresh.update = lambda *more, **named: copy.copy(layer).update(*more, **named)
    return fresh
