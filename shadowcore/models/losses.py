"""Causal cross-entropy, in float32: per token, and per example over its scored tokens."""

import torch
from torch.nn import functional


def example_losses(logits: torch.Tensor, ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per example (B,), over the tokens where `scored` (B, T); see `token_losses`."""
    return _mean_scored(token_losses(logits, ids), scored)


def divergences(logits: torch.Tensor, dense: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence (B,), in nats, of logits (B, T - 1, V) from the dense model's, where `scored` (B, T)."""
    return _mean_scored(token_divergences(logits, dense), scored)


def token_divergences(logits: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence (...), in nats, of each next-token distribution from the dense model's (..., V)."""
    predicted, target = logits.float().log_softmax(-1), dense.float().log_softmax(-1)
    return functional.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)


def token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (B, T - 1) of tokens 1 to T-1 of ids (B, T), from the logits (B, T - 1, V) before each."""
    # one row per token, because torch is five times as slow over a dimension that is not the last
    targets = ids[:, 1:]
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def _mean_scored(per_token: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean (B,) of values (B, T - 1) of predictions, over the tokens where `scored` (B, T)."""
    weights = scored[:, 1:].to(per_token.dtype)
    return (per_token * weights).sum(1) / weights.sum(1).clamp(min=1)


def all_scored(ids: torch.Tensor, prompt: int = 1) -> torch.Tensor:
    """The tokens (B, T) that follow the first `prompt` ones of ids (B, T)."""
    return (torch.arange(ids.shape[1], device=ids.device) >= prompt).expand_as(ids)


def before_scored(scored: torch.Tensor) -> torch.Tensor:
    """Whether a scored token follows each position (B, T - 1); the last token predicts nothing and is not run."""
    return scored[:, 1:].flip(1).cummax(1).values.flip(1)
