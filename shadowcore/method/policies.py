"""From scores to keep masks. Scores are (..., L, U), higher = more important; a mask is True where kept."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shadowcore.errors import ConfigError, one_of

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


def floored(scores: torch.Tensor, sparsity_pct: int) -> torch.Tensor:
    """As global, but every layer keeps its best 1/32 of neurons or its best head, of fewer than 64.

    The total is global's; where that is too small for the floor, every layer keeps an equal share at least.
    """
    layers, units = scores.shape[-2:]
    floor = min(max(1, units // FLOOR_SHARE), kept_units(layers * units, sparsity_pct) // layers)
    return global_(scores.masked_fill(top_units(scores, floor), torch.inf), sparsity_pct)


POLICIES: dict[str, Policy] = {"per_layer": per_layer, "global": global_, "floored": floored}

FLOOR_SHARE = 32
CACHED_SCORES = 2**16  # 256 KiB of float32

# policies that need the scores of every layer before the first mask: no layer-by-layer predictor
WHOLE_MODEL_POLICIES = frozenset({"global", "floored"})


def predictor_policy(name: str, predictor: Any) -> Policy:
    """A policy for a predictor's scores; ConfigError if it is unknown, or needs scores that come too late for it."""
    one_of(name, POLICIES, "policy")
    if name in WHOLE_MODEL_POLICIES and len(predictor.groups) > 1:
        raise ConfigError(
            f"policy: '{name}' needs the scores of all layers at once; a {predictor.design} predictor scores them one "
            "after the other; use 'per_layer'"
        )
    return POLICIES[name]


def top_units(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the `count` highest scores along the last dimension; of equal scores the lower index first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    rows = scores.reshape(-1, scores.shape[-1])
    lowest = lowest_kept(rows, count)
    keep = rows >= lowest
    if int(keep.count_nonzero()) > count * len(rows):  # ties at the border of some rows: rare, so settled apart
        crowded = keep.sum(-1) > count
        tied, border = rows[crowded], lowest[crowded]
        above, level = tied > border, tied == border
        room = count - above.sum(-1, keepdim=True)
        keep[crowded] = above | (level & (level.cumsum(-1) <= room))
    return keep.view(scores.shape)


def lowest_kept(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count`-th highest score (..., 1) along the last dimension of scores (..., U); `count` is 1 or more."""
    if scores.is_cuda:
        return torch.topk(scores, count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    # numpy's vectorised selection is twice as fast as torch's on a CPU, in pieces that stay in its cache
    units = scores.shape[-1]
    place = units - count
    exact = scores if scores.dtype == torch.float64 else scores.float()  # numpy has no bfloat16
    pieces = exact.reshape(-1, units).split(max(1, CACHED_SCORES // units))
    found = [torch.from_numpy(np.partition(piece.numpy(), place, -1)[:, place]) for piece in pieces]
    return torch.cat(found).to(scores.dtype).view(*scores.shape[:-1], 1)
