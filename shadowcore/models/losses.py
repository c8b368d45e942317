"""Causal cross-entropy, in float32: per token, and per example over its scored tokens."""

from __future__ import annotations

import torch
from torch.nn import functional


def example_losses(logits: torch.Tensor, ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per example (B,), over the tokens where `scored` (B, T); see `token_losses`."""
    per_token = token_losses(logits, ids)  # (B, T - 1)
    wanted = scored[:, 1:].to(per_token.dtype)
    return (per_token * wanted).sum(1) / wanted.sum(1).clamp(min=1)


def token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (B, T - 1) of tokens 1 to T-1 of ids (B, T), from the logits (B, T - 1, V) before each."""
    return functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
