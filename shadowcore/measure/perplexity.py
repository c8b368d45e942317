"""Negative log-likelihood of held-out text windows under sparse models."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from shadowcore.measure.group import Group
from shadowcore.measure.sparsity import SparseModel
from shadowcore.models.losses import all_scored, token_losses
from shadowcore.models.prefixes import continuing
from shadowcore.texts.documents import Window

Tick = Callable[[float], None]


def window_losses(
    group: Group, windows: torch.Tensor, batch: int, tick: Tick = lambda share: None, prompt: int = 1
) -> dict[str, torch.Tensor]:
    """Summed negative log-likelihood in nats (N,) of what follows the first `prompt` tokens of each window (N, T).

    For every condition in the group, by name. If the prompt has one token, masks apply at every position. A longer
    prompt runs once for all conditions under which it is dense. Perplexity is exp(sum / (N (T - prompt))).
    tick: called after each batch with its share of the work, 1 for all windows under one condition.
    """
    losses: dict[str, list[torch.Tensor]] = {name: [] for name in group.alive}
    for ids in windows.split(batch):
        found = group.run(_losses(ids, prompt))
        for name, part in found.items():
            losses[name].append(part)
        tick(len(found) * len(ids) / len(windows))
    return {name: torch.cat(losses[name]) for name in group.alive}


def document_losses(
    group: Group, windows: Sequence[Window], batch: int, tick: Tick = lambda share: None, prompt: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """The same losses, summed over the windows of each document, because windows of one document are not independent.

    For each condition one row a document: its name (`document`), nats (`value`) and number of tokens (`weight`).
    """
    places: dict[str, list[int]] = {}
    for place, window in enumerate(windows):
        places.setdefault(window.document_id, []).append(place)
    ids = torch.tensor([window.ids for window in windows])
    tokens = ids.shape[1] - prompt
    return {
        setup: [
            {"document": name, "value": losses[own].sum().item(), "weight": tokens * len(own)}
            for name, own in places.items()
        ]
        for setup, losses in window_losses(group, ids, batch, tick, prompt).items()
    }


def _losses(ids: torch.Tensor, prompt: int) -> Callable[[str, SparseModel], torch.Tensor]:
    """Losses (B,) of a batch of windows (B, T) under a condition, as a function of the condition."""
    scored = all_scored(ids, prompt)

    @cache
    def after_prompt(model: torch.nn.Module):
        before, rows = ids[:, : prompt - 1].tolist(), torch.arange(len(ids), device=model.device)
        return continuing(model, before, rows, ids.shape[1] - prompt)

    @cache
    def on(device: torch.device) -> tuple[torch.Tensor, ...]:  # the same tensors for all: oracles share a pass
        return tuple(x.to(device) for x in (ids, scored, ids[:, prompt - 1 :], scored[:, prompt - 1 :]))

    def losses(name: str, sparse: SparseModel) -> torch.Tensor:
        whole, counted, rest, rest_counted = on(sparse.model.device)
        if prompt > 1 and sparse.prompts_may_run_first:
            logits = sparse.logits(rest, rest_counted, context=after_prompt(sparse.model))
        else:
            logits = sparse.logits(whole, counted, first_kept=prompt - 1)
        return token_losses(logits, rest).double().sum(1).cpu()

    return losses
