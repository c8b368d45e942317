"""Protocols: which positions a mask is computed from, and which it applies to.

    token       each position's own, there; the prompt before the first prediction is dense (what a decoder does)
    prompt      the last position of the prompt; from there on, where the continuation is predicted
    lookahead   the last position of the whole input, continuation included; everywhere, prompt too

lookahead is what the published accuracies were measured under. It is not causal: a choice's mask has seen the
choice. Position t predicts token t + 1, so the prompt's last position makes the first prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from shadowcore.models.losses import before_scored


@dataclass(frozen=True)
class Protocol:
    """A protocol as functions of the tokens that are predicted and count, `scored` (B, T); see the module's text.

    source: the position (B,) a row's one mask is computed from, or None where every position has its own;
    applied: the positions (B, T - 1) masks apply to; dense_prompt: none of them is in the prompt.
    """

    source: Callable[[torch.Tensor], torch.Tensor | None]
    applied: Callable[[torch.Tensor], torch.Tensor]
    dense_prompt: bool


TOKEN = Protocol(source=lambda scored: None, applied=lambda scored: scored[:, 1:], dense_prompt=True)
PROTOCOLS = {
    "token": TOKEN,
    "prompt": replace(TOKEN, source=lambda scored: scored[:, 1:].int().argmax(1)),
    "lookahead": Protocol(lambda scored: before_scored(scored).sum(1) - 1, applied=before_scored, dense_prompt=False),
}
