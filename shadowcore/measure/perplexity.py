"""Negative log-likelihood of held-out text windows under a sparse model."""

from __future__ import annotations

import torch

from shadowcore.measure.sparsity import SparseModel
from shadowcore.models.losses import token_losses


def window_losses(
    sparse: SparseModel, windows: torch.Tensor, batch: int, progress=lambda done, total: None, prompt: int = 1
) -> torch.Tensor:
    """Summed negative log-likelihood in nats (N,) of what follows the first `prompt` tokens of each window (N, T).

    With a prompt of one token masks apply at every position. Perplexity is exp(sum / (N (T - prompt))).
    """
    losses = []
    for start in range(0, len(windows), batch):
        ids = windows[start : start + batch].to(sparse.model.device)
        scored = torch.ones_like(ids, dtype=torch.bool)
        scored[:, :prompt] = False
        logits = sparse.logits(ids, scored, first_kept=prompt - 1)
        losses.append(token_losses(logits, ids[:, prompt - 1 :]).double().sum(1).cpu())
        progress(min(start + batch, len(windows)), len(windows))
    return torch.cat(losses)
