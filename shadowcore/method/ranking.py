"""How well predicted scores rank units: Spearman correlation, recall and precision of the kept set."""

import torch


def correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Pearson correlation (...) along the last dimension of two tensors (..., U): of ranks, it is Spearman's."""
    one, other = (values - values.mean(-1, keepdim=True) for values in (one, other))
    sizes = one.square().sum(-1) * other.square().sum(-1)
    return (one * other).sum(-1) / sizes.sqrt().clamp(min=1e-12)


def recall(kept: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Share (...) of units worth keeping that are kept, of masks (..., U), or 1 of none; swapped, it is precision."""
    found, most = (kept & wanted).sum(-1), wanted.sum(-1)
    return torch.where(most > 0, found / most.clamp(min=1), 1.0)


def ranks(scores: torch.Tensor) -> torch.Tensor:
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
