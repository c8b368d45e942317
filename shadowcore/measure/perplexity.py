"""Negative log-likelihood of held-out text windows under a sparse model."""

from __future__ import annotations

import torch

from shadowcore.measure.sparsity import SparseModel
from shadowcore.models.losses import token_losses


def window_losses(
    sparse: SparseModel, windows: torch.Tensor, batch: int, progress=lambda done, total: None
) -> torch.Tensor:
    """Summed negative log-likelihood in nats (N,) of tokens 1 to T-1 of each window (N, T).

    There is no prompt: masks apply at every position. Perplexity is exp(sum / (N (T - 1))).
    """
    losses = []
    for start in range(0, len(windows), batch):
        ids = windows[start : start + batch].to(sparse.model.device)
        scored = torch.ones_like(ids, dtype=torch.bool)
        scored[:, 0] = False
        losses.append(token_losses(sparse.logits(ids, scored), ids).double().sum(1).cpu())
        progress(min(start + batch, len(windows)), len(windows))
    return torch.cat(losses)
