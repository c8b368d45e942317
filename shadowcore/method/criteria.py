"""Importance criteria: each scores every unit of a layer, higher = more important.

Every first-order criterion has one shape,

    score(u) = finish( sum_t contribution(t, u) )

over the example's tokens t, and is a row of CRITERIA: the formula in words, its contribution and its
finish. Leaving the sum out gives its token form, score(t, u), where that is meaningful.

Letters: a(t, u) is the unit's activation (a number for a neuron, a K-vector for a head) and
g(t, u) = dLoss/da(t, u). All criteria of a layer are computed from one `Signals`, so they share one
forward and backward pass (see `tracing`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch


class Signals:
    """What one pass reveals about the units of one kind in one layer.

    a: activations (B, T, U, K); g: their loss gradients, same shape, or None after a forward pass only;
    valid: (B, T), False at padding; column_norm: (U,) norms of the units' columns of the projection
    they feed. Products are taken in float32 whatever the model runs in: squares of gradients underflow
    in 16 bits.
    """

    def __init__(self, a: torch.Tensor, g: torch.Tensor | None, valid: torch.Tensor, column_norm: torch.Tensor):
        self.a, self.g = a.float(), None if g is None else g.float()
        self.valid = valid[..., None]  # (B, T, 1)
        self.column_norm = column_norm

    @cached_property
    def ga(self) -> torch.Tensor:
        """<g, a> per token and unit, (B, T, U)."""
        return _dot(self.g, self.a) * self.valid

    @cached_property
    def aa(self) -> torch.Tensor:
        """<a, a> per token and unit, (B, T, U)."""
        return _dot(self.a, self.a) * self.valid

    @cached_property
    def gg(self) -> torch.Tensor:
        """<g, g> per token and unit, (B, T, U)."""
        return _dot(self.g, self.g) * self.valid

    @cached_property
    def active(self) -> torch.Tensor:
        """Positive entries of a per token and unit, (B, T, U)."""
        return (self.a > 0).sum(-1) * self.valid


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    product = x * y
    return product.squeeze(-1) if product.shape[-1] == 1 else product.sum(-1)


def _as_it_is(total: torch.Tensor, signals: Signals) -> torch.Tensor:
    return total


@dataclass(frozen=True)
class Criterion:
    """One importance criterion; see the module's text for how the parts make a score."""

    formula: str
    source: str
    contribution: Callable[[Signals], torch.Tensor]  # (B, T, U)
    finish: Callable[[torch.Tensor, Signals], torch.Tensor] = _as_it_is
    needs_gradient: bool = True
    has_token_form: bool = True

    def sequence(self, signals: Signals) -> torch.Tensor:
        """Scores of whole examples, (B, U)."""
        return self.finish(self.contribution(signals).sum(1), signals)

    def token(self, signals: Signals) -> torch.Tensor:
        """Scores of single tokens, (B, T, U)."""
        return self.finish(self.contribution(signals), signals)


CRITERIA: dict[str, Criterion] = {
    "plainact": Criterion(
        formula="sum_t |<g, a>|",
        source="ShadowLLM, section 3; its public code scores neurons by a weight's gradient instead",
        contribution=lambda s: s.ga.abs(),
    ),
    "l2_norm": Criterion(
        formula="sqrt(sum_t |a|^2)",
        source="magnitude, as Deja Vu; taken after the activation function, the public code takes it before",
        contribution=lambda s: s.aa,
        finish=lambda total, s: total.sqrt(),
        needs_gradient=False,
    ),
    "grad_norm": Criterion(
        formula="sqrt(sum_t |g|^2)",
        source="ShadowLLM, section 3",
        contribution=lambda s: s.gg,
        finish=lambda total, s: total.sqrt(),
    ),
    "fisher": Criterion(
        formula="sum_t <g, a>^2",
        source="ShadowLLM, section 3; Fisher pruning",
        contribution=lambda s: s.ga.square(),
    ),
    "snip": Criterion(
        formula="|sum_t <g, a>|, the loss's derivative by a gate on the unit",
        source="SNIP; the public code reads a head's gradient after the output projection",
        contribution=lambda s: s.ga,
        finish=lambda total, s: total.abs(),
        has_token_form=False,  # it would be plainact's
    ),
    "nwot": Criterion(
        formula="log(1 + number of active entries)",
        source="zero-cost NAS; a neuron is active when positive, a head counts its positive entries",
        contribution=lambda s: s.active,
        finish=lambda total, s: torch.log1p(total.float()),
        needs_gradient=False,
        has_token_form=False,
    ),
    "output_norm": Criterion(
        formula="sqrt(sum_t |a|^2) |W_u|, the size of the unit's addition to the residual",
        source="not in the paper; Wanda's measure, per unit",
        contribution=lambda s: s.aa,
        finish=lambda total, s: total.sqrt() * s.column_norm,
        needs_gradient=False,
    ),
}
