"""Causal cross-entropy, in float32: per token, and per example over its scored tokens."""

from __future__ import annotations

import torch
from torch.nn import functional


def example_losses(logits: torch.Tensor, ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per example (B,), over the tokens where `scored` (B, T); see `token_losses`."""
    return _mean_scored(token_losses(logits, ids), scored)


def divergences(logits: torch.Tensor, dense: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean Kullback-Leibler divergence per example (B,), in nats, of next-token distributions from the dense model's.

    logits, dense: (B, T - 1, V); scored (B, T): tokens whose prediction counts.
    """
    return _mean_scored(token_divergences(logits, dense), scored)


def token_divergences(logits: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence (...), in nats, of each next-token distribution from the dense model's (..., V)."""
    found, wanted = logits.float().log_softmax(-1), dense.float().log_softmax(-1)
    return functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


def token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (B, T - 1) of tokens 1 to T-1 of ids (B, T), from the logits (B, T - 1, V) before each."""
    return functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")


def _mean_scored(per_token: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean (B,) of values (B, T - 1) of predictions, over the tokens where `scored` (B, T)."""
    wanted = scored[:, 1:].to(per_token.dtype)
    return (per_token * wanted).sum(1) / wanted.sum(1).clamp(min=1)


def before_scored(scored: torch.Tensor) -> torch.Tensor:
    """Positions (B, T - 1) that some scored token comes after; the last token predicts nothing and is not run."""
    return scored[:, 1:].flip(1).cummax(1).values.flip(1)
