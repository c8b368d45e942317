"""How well predicted scores rank units: Spearman correlation, and recall of the kept set."""

from __future__ import annotations

import torch

from shadowcore.method.policies import kept_units, top_units


def spearman(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Rank correlation along the last dimension of two score tensors (..., U): (...)."""
    ranks = torch.stack([_ranks(predicted), _ranks(true)])
    centred = ranks - ranks.mean(-1, keepdim=True)
    covariance = (centred[0] * centred[1]).sum(-1)
    return covariance / centred.square().sum(-1).prod(0).sqrt().clamp(min=1e-12)


def recall(predicted: torch.Tensor, true: torch.Tensor, sparsity_pct: int) -> torch.Tensor:
    """Share of the truly most important units that the prediction keeps too, (...).

    Both sets have round((1 - s) U) units, so recall equals precision.
    """
    count = kept_units(true.shape[-1], sparsity_pct)
    return (top_units(predicted, count) & top_units(true, count)).sum(-1) / max(1, count)


def _ranks(scores: torch.Tensor) -> torch.Tensor:
    """Ranks from 0 along the last dimension; equal scores share their mean rank."""
    ordered, order = scores.sort(-1)
    position = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float64).expand_as(scores)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    run = starts.cumsum(-1) - 1  # index of the run of equal scores each place belongs to
    totals = torch.zeros_like(position.contiguous()).scatter_add_(-1, run, position.contiguous())
    lengths = torch.zeros_like(totals).scatter_add_(-1, run, torch.ones_like(totals))
    shared = (totals / lengths.clamp(min=1)).gather(-1, run)
    return torch.empty_like(shared).scatter_(-1, order, shared)
