"""Masks from an example's own true scores: the bound no predictor passes, not something to deploy.

Criteria that need gradients see the loss of tokens to come, so this is not causal.
"""

from __future__ import annotations

import torch

from shadowcore.measure.protocols import TOKEN, Protocol
from shadowcore.measure.sparsity import Context, Masks
from shadowcore.method.criteria import CRITERIA, Signals
from shadowcore.method.passes import ImportancePass
from shadowcore.method.policies import POLICIES, WHOLE_MODEL_POLICIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import Kind, dimensions_of
from shadowcore.models.recording import Choose, Site


class OracleMasks(Masks):
    """Keep masks from the scores of a dense forward and backward pass over the same example.

    Where a row has one mask, it is by the sequence scores of the positions it applies to: the best one mask.
    """

    def __init__(self, model: torch.nn.Module, criterion: str, kinds: tuple[Kind, ...], policy: str, sparsity_pct: int):
        self.importance, self.criterion = ImportancePass(model), CRITERIA[criterion]
        self.layers = dimensions_of(model.config).layers
        self.kinds, self.policy, self.sparsity_pct = kinds, POLICIES[policy], sparsity_pct
        self.layer_by_layer = policy not in WHOLE_MODEL_POLICIES

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        each, applied = protocol.source(scored) is None, protocol.applied(scored)
        scores = {kind: [None] * self.layers for kind in self.kinds}
        keep: dict[Site, torch.Tensor] = {}

        def see_units(site: Site, signals: Signals) -> None:
            if site.what in scores:
                there = Signals(signals.a, signals.g, applied, signals.column_norm)
                found = self.criterion.token(there) if each else self.criterion.sequence(there)[:, None]
                if self.layer_by_layer:  # a large model's scores take more memory than the model
                    keep[site] = self.policy(found, self.sparsity_pct)
                else:
                    scores[site.what][site.layer] = found  # (B, T or 1, U)

        if self.criterion.order:
            self.importance(ids, scored, see_units, context=context())
        else:
            self.importance.forward_only(ids, scored, see_units, context=context())
        for kind, tables in scores.items() if not self.layer_by_layer else ():
            masks = self.policy(torch.stack(tables[FIRST_SPARSE_LAYER:], 2), self.sparsity_pct)  # (B, T or 1, L - 1, U)
            keep |= {Site(layer, kind): mask for layer, mask in enumerate(masks.unbind(2), FIRST_SPARSE_LAYER)}

        def choose(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            return keep.get(site) if site.layer >= FIRST_SPARSE_LAYER else None

        return choose
