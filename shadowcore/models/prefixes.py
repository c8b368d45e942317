"""Run a prompt once for all rows that continue it: the choices of a question, under all conditions."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch


@torch.no_grad()
def continuing(
    model: torch.nn.Module, prefixes: Sequence[Sequence[int]], rows: torch.Tensor, length: int
) -> Callable[[], dict[str, Any]]:
    """Run the dense model once on all prefixes (non-empty lists of token ids), for rows that continue them.

    Returns a function that makes the keyword arguments for a pass with input (B, length), whose row b continues
    prefixes[rows[b]]. Call it before every pass, because a model appends to its cache.
    """
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=model.device)
    longest = int(lengths.max())
    ids = torch.tensor([[0] * (longest - len(prefix)) + list(prefix) for prefix in prefixes], device=model.device)
    mask = torch.arange(longest, device=model.device) >= longest - lengths[:, None]  # (N, P), padded on the left
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model(
        ids, attention_mask=mask.long(), position_ids=positions, use_cache=True, logits_to_keep=1
    ).past_key_values
    for layer in cache.layers:
        layer.batch_select_indices(rows.to(layer.keys.device))
    seen = torch.cat((mask[rows], mask.new_ones(len(rows), length)), 1).long()
    positions = lengths[rows, None] + torch.arange(length, device=model.device)
    # padding of short rows may be beyond the last position
    positions = positions.clamp(max=model.config.max_position_embeddings - 1)

    def context() -> dict[str, Any]:
        fresh = copy.copy(cache)
        fresh.layers = list(map(_unchanged, cache.layers))
        return {"past_key_values": fresh, "attention_mask": seen, "position_ids": positions, "use_cache": True}

    return context


def _unchanged(layer: Any) -> Any:
    """A copy of a cache's layer. It returns appended keys and values, but does not keep them, to save memory."""
    fresh = copy.copy(layer)
    fresh.update = lambda *more, **named: copy.copy(layer).update(*more, **named)
    return fresh
