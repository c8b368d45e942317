"""Masks from an example's own true scores: the best that a criterion can do, not something to deploy.

Criteria that need gradients see the loss of tokens to come, so this is not causal.
"""

import torch

from shadowcore.measure.protocols import TOKEN, Protocol
from shadowcore.measure.sparsity import Context, Masks
from shadowcore.method.criteria import CRITERIA, Signals
from shadowcore.method.gradient_capture import ImportancePass
from shadowcore.method.policies import POLICIES, WHOLE_MODEL_POLICIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import Kind, dimensions_of
from shadowcore.models.recording import Choose, Site


class OraclePass:
    """A dense forward and backward pass over a batch, once for all oracle masks on a model."""

    def __init__(self, model: torch.nn.Module):
        self.importance, self.layers = ImportancePass(model), dimensions_of(model.config).layers
        self.members: list[OracleMasks] = []
        self.batch: torch.Tensor | None = None  # held, so that no other batch can have its identity

    def see(self, ids: torch.Tensor, scored: torch.Tensor, context: Context) -> None:
        """Show a batch's units to every member, unless these very ids were the last ones."""
        if ids is self.batch:
            return
        for member in self.members:
            member.forget(scored)

        def see_units(site: Site, signals: Signals) -> None:
            for member in self.members:
                member.see(site, signals)

        backward = any(member.criterion.order for member in self.members)
        run = self.importance if backward else self.importance.forward_only
        run(ids, scored, see_units, context=context())
        self.batch = ids


class OracleMasks(Masks):
    """Keep masks from the scores of a dense pass over the same example, or of the positions that a mask applies to."""

    def __init__(
        self, shared: OraclePass, criterion: str, kinds: tuple[Kind, ...], policy: str, sparsity_pct: int,
        protocol: Protocol = TOKEN,
    ):  # fmt: skip
        """protocol: the one that the model runs under."""
        self.shared, self.criterion, self.protocol = shared, CRITERIA[criterion], protocol
        self.kinds, self.policy, self.sparsity_pct = kinds, POLICIES[policy], sparsity_pct
        self.layer_by_layer = policy not in WHOLE_MODEL_POLICIES
        shared.members.append(self)

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        self.shared.see(ids, scored, context)
        for kind in list(self.scores):
            tables = self.scores.pop(kind)
            masks = self.policy(torch.stack(tables[FIRST_SPARSE_LAYER:], 2), self.sparsity_pct)  # (B, T or 1, L - 1, U)
            self.keep |= {Site(i, kind): mask for i, mask in enumerate(masks.unbind(2), FIRST_SPARSE_LAYER)}
        keep = self.keep
        return lambda site, x: keep.get(site)

    def forget(self, scored: torch.Tensor) -> None:
        """Begin a batch in which tokens `scored` (B, T) are predicted."""
        self.each, self.applied = self.protocol.source(scored) is None, self.protocol.applied(scored)
        together = () if self.layer_by_layer else self.kinds
        self.scores: dict[Kind, list] = {kind: [None] * self.shared.layers for kind in together}
        self.keep: dict[Site, torch.Tensor] = {}

    def see(self, site: Site, signals: Signals) -> None:
        """Score a layer's units, as the shared pass comes to them."""
        if site.what not in self.kinds or site.layer < FIRST_SPARSE_LAYER:
            return
        there = Signals(signals.a, signals.g, self.applied, signals.column_norm)
        found = self.criterion.token(there) if self.each else self.criterion.sequence(there)[:, None]
        if self.layer_by_layer:  # a large model's scores take more memory than the model
            self.keep[site] = self.policy(found, self.sparsity_pct)
        else:
            self.scores[site.what][site.layer] = found.to(self.applied.device)  # (B, T or 1, U)
