"""Prompts that several rows continue, run once: a question's choices share their context."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch


class Prefixes:
    """Keys and values of some prefixes under the dense model, for rows of tokens that continue them."""

    @torch.no_grad()
    def __init__(self, model: torch.nn.Module, prefixes: Sequence[Sequence[int]]):
        """Run the model once on all prefixes (lists of token ids, none empty), padded on the left."""
        self.last_position = model.config.max_position_embeddings - 1
        self.lengths = torch.tensor([len(prefix) for prefix in prefixes], device=model.device)
        longest = int(self.lengths.max())
        ids = torch.tensor([[0] * (longest - len(prefix)) + list(prefix) for prefix in prefixes], device=model.device)
        self.mask = torch.arange(longest, device=model.device) >= longest - self.lengths[:, None]  # (N, P)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.cache = model(
            ids, attention_mask=self.mask.long(), position_ids=positions, use_cache=True, logits_to_keep=1
        ).past_key_values

    def continued(self, rows: torch.Tensor, length: int) -> dict[str, Any]:
        """What a model is called with besides its input (B, length), whose row b continues prefix rows[b].

        Each call makes its own copy of the keys and values, because a model appends to what it is given.
        """
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(rows)
        mask = torch.cat((self.mask[rows], self.mask.new_ones(len(rows), length)), 1)
        positions = self.lengths[rows, None] + torch.arange(length, device=rows.device)
        positions = positions.clamp(max=self.last_position)  # a short row's padding may lie beyond
        return {
            "past_key_values": cache, "attention_mask": mask.long(), "position_ids": positions, "use_cache": True,
        }  # fmt: skip
