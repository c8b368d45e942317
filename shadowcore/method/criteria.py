"""Importance criteria: each scores every unit of a layer, higher = more important.

Every first-order criterion has one shape,

    score(u) = finish( sum_t contribution(t, u) )

over the example's tokens t, and is a row of CRITERIA: the formula in words, its contribution and its
finish. Leaving the sum out gives its token form, score(t, u), where that is meaningful.

Letters: a(t, u) is the unit's activation (a number for a neuron, a K-vector for a head),
g(t, u) = dLoss/da(t, u), and h(t, u) = d(sum <g, stop(g)>)/da(t, u), the loss's Hessian in all units of the
model times its gradient. All criteria of a layer are computed from one `Signals`, so they share one forward
and backward pass, and h is one more backward pass through the first (see `gradient_capture`).

jacov and epenas rate a network by how little the gradients of different data agree. Here the data are the
PARTS equal parts of one example's tokens (what is left over at its end does not count), a datum is a
unit's gradients at the part's tokens in a row, and C(u) is the matrix of Pearson correlations between the
data. A datum without variation tells nothing apart: its correlations count as 1. The mean over the examples
of a text is the score of that text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

PARTS = 8
INDEPENDENT = PARTS * (PARTS + 1)  # tokens: with fewer, a neuron's centred data are linearly dependent
NO_LOGARITHM_OF_ZERO = 1e-5  # as in both papers
ROUNDING = 1e-9


def _products(one: str, other: str) -> Any:
    """The property of `Signals` with the products <one, other> per token and unit, (B, T, U)."""
    return cached_property(lambda signals: _dot(getattr(signals, one), getattr(signals, other)) * signals.valid)


class Signals:
    """What one pass reveals about the units of one kind in one layer.

    a: activations (B, T, U, K); g: their loss gradients, and h: see the module's text, same shape, each None
    where the pass was not asked for it; valid: (B, T), False at padding; column_norm: (U,) norms of the
    units' columns of the projection they feed. Products are taken in float32 whatever the model runs in:
    squares of gradients underflow in 16 bits.
    """

    def __init__(
        self, a: torch.Tensor, g: torch.Tensor | None, valid: torch.Tensor, column_norm: torch.Tensor,
        h: torch.Tensor | None = None,
    ):  # fmt: skip
        self.a, self.g, self.h = (None if x is None else x.float() for x in (a, g, h))
        self.valid = valid.to(a.device)[..., None]  # (B, T, 1)
        self.column_norm = column_norm

    ga, gg = _products("g", "a"), _products("g", "g")
    aa, ha = _products("a", "a"), _products("h", "a")

    @cached_property
    def active(self) -> torch.Tensor:
        """Positive entries of a per token and unit, (B, T, U)."""
        return (self.a > 0).sum(-1) * self.valid

    @cached_property
    def correlations(self) -> torch.Tensor:
        """C of every unit, float64 (B, U, PARTS, PARTS); see the module's text."""
        return torch.stack([_correlations(g[: int(row.sum())]) for g, row in zip(self.g, self.valid, strict=True)])


def _correlations(g: torch.Tensor) -> torch.Tensor:
    """C (U, PARTS, PARTS) of one example's gradients (T, U, K)."""
    length = len(g) // PARTS
    data = g[: PARTS * length].double().view(PARTS, length, *g.shape[1:]).permute(2, 0, 1, 3).flatten(2)
    centred = data - data.mean(-1, keepdim=True)  # (U, PARTS, length K)
    size = centred.norm(dim=-1, keepdim=True)
    varies = size > ROUNDING * data.norm(dim=-1, keepdim=True)
    unit = centred / torch.where(varies, size, 1)
    return torch.where(varies & varies.mT, unit @ unit.mT, 1)


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    product = x * y
    return product.squeeze(-1) if product.shape[-1] == 1 else product.sum(-1)


@dataclass(frozen=True)
class Criterion:
    """One importance criterion; see the module's text for how the parts make a score."""

    formula: str
    source: str
    contribution: Callable[[Signals], torch.Tensor]  # (B, T, U); (B, 1, U) where only a whole example has one
    finish: Callable[[torch.Tensor, Signals], torch.Tensor] = lambda total, signals: total
    order: int = 1  # of the loss's derivatives it is made of: 0 none, 1 gradients, 2 second-order too
    has_token_form: bool = True
    least_tokens: int = 1  # scored, that an example needs

    def sequence(self, signals: Signals) -> torch.Tensor:
        """Scores of whole examples, (B, U)."""
        return self.finish(self.contribution(signals).sum(1), signals)

    def token(self, signals: Signals) -> torch.Tensor:
        """Scores of single tokens, (B, T, U)."""
        return self.finish(self.contribution(signals), signals)


def _jacov(s: Signals) -> torch.Tensor:
    values = torch.linalg.eigvalsh(s.correlations).clamp(min=0) + NO_LOGARITHM_OF_ZERO
    return -(values.log() + 1 / values).sum(-1)[:, None]


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
        order=0,
    ),
    "grad_norm": Criterion(
        formula="sqrt(sum_t |g|^2)",
        source="ShadowLLM, section 3",
        contribution=lambda s: s.gg,
        finish=lambda total, s: total.sqrt(),
    ),
    "fisher": Criterion(
        formula="sum_t <g, a>^2", source="ShadowLLM, section 3; Fisher pruning", contribution=lambda s: s.ga.square()
    ),
    "snip": Criterion(
        formula="|sum_t <g, a>|, the loss's derivative by a gate on the unit",
        source="SNIP; the public code reads a head's gradient after the output projection",
        contribution=lambda s: s.ga,
        finish=lambda total, s: total.abs(),
        has_token_form=False,  # it would be plainact's
    ),
    "grasp": Criterion(
        formula="-sum_t <h, a>, signed: half of what removing the unit adds to sum |g|^2, to first order",
        source="GraSP (Wang et al. 2020), of activations instead of weights, and like ShadowLLM keeping where GraSP "
        "prunes: the highest; the public code takes it in float16, where gradients underflow",
        contribution=lambda s: -s.ha,
        order=2,
        has_token_form=False,
    ),
    "jacov": Criterion(
        formula="-sum_i (log(v_i + 1e-5) + 1 / (v_i + 1e-5)), v_i the eigenvalues of C",
        source="zero-cost NAS (Mellor et al. 2020, arXiv 2006.04647v1), of a unit's gradients instead of the input's",
        contribution=_jacov,
        finish=lambda total, s: total.float(),
        has_token_form=False,
        least_tokens=INDEPENDENT,
    ),
    "epenas": Criterion(
        formula="|sum_ij log(|C_ij| + 1e-5)|",
        source="EPE-NAS (Lopes et al. 2021), an example being a class, as text has no labels",
        contribution=lambda s: (s.correlations.abs() + NO_LOGARITHM_OF_ZERO).log().sum((-2, -1)).abs()[:, None],
        finish=lambda total, s: total.float(),
        has_token_form=False,
        least_tokens=INDEPENDENT,
    ),
    "nwot": Criterion(
        formula="log(1 + number of active entries)",
        source="zero-cost NAS; a neuron is active when positive, a head counts its positive entries",
        contribution=lambda s: s.active,
        finish=lambda total, s: torch.log1p(total.float()),
        order=0,
        has_token_form=False,
    ),
    "output_norm": Criterion(
        formula="sqrt(sum_t |a|^2) |W_u|, the size of the unit's addition to the residual",
        source="not in the paper; Wanda's measure, per unit",
        contribution=lambda s: s.aa,
        finish=lambda total, s: total.sqrt() * s.column_norm,
        order=0,
    ),
}
