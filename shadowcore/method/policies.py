"""From scores to keep masks. Scores are (..., L, U), higher = more important; a mask is True where kept."""

from __future__ import annotations

from collections.abc import Callable

import torch

Policy = Callable[[torch.Tensor, int], torch.Tensor]


def kept_units(units: int, sparsity_pct: int) -> int:
    """round((1 - s) U), halves up, in integers."""
    return (units * (100 - sparsity_pct) + 50) // 100


def per_layer(scores: torch.Tensor, sparsity_pct: int) -> torch.Tensor:
    """Keep exactly round((1 - s) U) units in every layer."""
    return top_units(scores, kept_units(scores.shape[-1], sparsity_pct))


def global_(scores: torch.Tensor, sparsity_pct: int) -> torch.Tensor:
    """Keep exactly that fraction of all given units, wherever the scores are highest."""
    flat = scores.flatten(-2)
    return top_units(flat, kept_units(flat.shape[-1], sparsity_pct)).view(scores.shape)


POLICIES: dict[str, Policy] = {"per_layer": per_layer, "global": global_}

# policies that need the scores of every layer before the first mask: no layer-by-layer predictor
WHOLE_MODEL_POLICIES = frozenset({"global"})


def top_units(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the `count` highest scores along the last dimension; of equal scores the lower index first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    lowest_kept = torch.topk(scores, count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    keep = scores >= lowest_kept
    crowded = keep.sum(-1) > count  # rows with a tie at the border: rare, so settled apart
    if crowded.any():
        rows, border = scores[crowded], lowest_kept[crowded]
        above, level = rows > border, rows == border
        room = count - above.sum(-1, keepdim=True)
        keep[crowded] = above | (level & (level.cumsum(-1) <= room))
    return keep
