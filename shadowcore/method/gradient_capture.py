"""One forward and backward pass over examples that shows every unit's activation and gradient."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from shadowcore.method.criteria import Signals
from shadowcore.models.families import KINDS, Kind, dimensions_of, output_projection
from shadowcore.models.losses import before_scored, example_losses
from shadowcore.models.recording import Choose, Site, Visit, frozen, visiting

SeeUnits = Callable[[Site, Signals], None]
SeeFeature = Callable[[Site, torch.Tensor], None]
Losses = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (logits, ids, scored) -> (B,)
ALONE: Mapping[str, Any] = {"use_cache": False}  # rows without a prompt before them


def unit_column_norms(model: torch.nn.Module, kind: Kind) -> list[torch.Tensor]:
    """Per layer, the norm (U,) of each unit's columns of the projection it feeds."""
    sizes = dimensions_of(model.config)
    norms = []
    for layer in range(sizes.layers):
        weight = output_projection(model, layer, kind).weight.detach().float()  # (D, U K)
        norms.append(weight.unflatten(1, (-1, sizes.unit_width(kind))).norm(dim=(0, 2)))
    return norms


class ImportancePass:
    """Runs a model on examples and hands every layer's `Signals` to a callback as they appear.

    Only the embeddings' output requires a gradient, so no weight gradient is ever computed, and a
    layer's gradients are seen and dropped while the backward pass is still under way; unless second-order
    signals are asked for, which need the first backward pass of all layers to go through it again.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.column_norms = {kind: unit_column_norms(model, kind) for kind in KINDS}

    def __call__(
        self, ids: torch.Tensor, scored: torch.Tensor, see_units: SeeUnits, see_feature: SeeFeature | None = None,
        context: Mapping[str, Any] = ALONE, choose: Choose | None = None, losses: Losses = example_losses,
        second_order: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """Losses (B,) of examples `ids` (B, T): mean cross-entropy over targets where `scored` (B, T), or `losses`.

        scored[b, t] says that token t of example b is predicted (from t - 1) and counts; the first
        token never is. Padding follows the last scored token. The model runs on tokens 0 to T-2, so
        `Signals` are of T - 1 positions, and `see_feature(site, x)` gets what a predictor may read there:
        residuals (B, T - 1, D) and layers' concatenated head outputs (B, T - 1, H K). `context` is what
        the model is called with besides (`models.prefixes`): gradients end where the rows begin.
        `second_order`: `Signals` have h, for one more backward pass and the memory of all layers at once.

        With `choose` the model runs sparse, and `Signals` hold a unit's activation before its mask with the
        gradient after it: what the unit is worth to the sparse model, kept or not.
        """
        valid = before_scored(scored)
        passing: dict[Site, tuple[torch.Tensor, torch.Tensor]] = {}  # what was seen of units, and what went on

        def see_gradient(site: Site, seen: torch.Tensor, g: torch.Tensor, h: torch.Tensor | None = None) -> None:
            see_units(site, Signals(seen, g, valid, self.column_norms[site.what][site.layer], h))

        def on_units(site: Site, seen: torch.Tensor, passed: torch.Tensor) -> None:
            if second_order:
                passing[site] = seen, passed
            else:  # the hook must not hold its own tensor, which holds the hook: that circle would never be freed
                passed.register_hook(lambda g: see_gradient(site, seen, g))

        with (
            frozen(self.model),
            torch.enable_grad(),
            visiting(self.model, self._watch(on_units, see_feature, choose)),
            sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext(),  # the one attention that has second order
        ):
            embedded = self.model.get_input_embeddings()(ids[:, :-1]).detach().requires_grad_()
            logits = self.model(inputs_embeds=embedded, **context).logits
            found = losses(logits, ids, scored)
            total = found.sum()  # a sum: an example's gradients do not depend on its neighbours
            if second_order:
                derivatives = _twice([passed for _, passed in passing.values()], total)
                for (site, (seen, _)), (g, h) in zip(passing.items(), derivatives, strict=True):
                    see_gradient(site, seen, g, h)
            else:
                total.backward()
        return found.detach()

    @torch.no_grad()
    def forward_only(
        self, ids: torch.Tensor, scored: torch.Tensor, see_units: SeeUnits, context: Mapping[str, Any] = ALONE
    ) -> None:
        """`Signals` without gradients, for criteria that need none, at a third of the cost of a call."""
        valid = before_scored(scored)

        def visit(site: Site, x: torch.Tensor) -> None:
            if site.what in self.column_norms:
                see_units(site, Signals(x, None, valid, self.column_norms[site.what][site.layer]))

        with visiting(self.model, visit):
            self.model.base_model(ids[:, :-1], **context)

    def _watch(
        self,
        on_units: Callable[[Site, torch.Tensor, torch.Tensor], None],
        see_feature: SeeFeature | None,
        choose: Choose | None,
    ) -> Visit:
        def visit(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            seen = x.detach()
            if see_feature is not None and site.what != "neurons":
                see_feature(site, seen.flatten(2))
            with torch.no_grad():
                keep = None if choose is None else choose(site, seen)
            if site.what not in self.column_norms:
                return None
            passed = x if keep is None else x * keep.to(x.device)[..., None]
            on_units(site, seen, passed)
            return passed  # so that the model goes on from the tensor whose gradient is seen

        return visit


def _twice(units: Sequence[torch.Tensor], loss: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each tensor its gradient g, and that of sum <g, stop(g)> over all of them: the Hessian times g."""
    first = torch.autograd.grad(loss, units, create_graph=True)
    squares = sum((g.float() * g.detach().float()).sum().to(loss.device) for g in first)
    return list(zip([g.detach() for g in first], torch.autograd.grad(squares, units), strict=True))
