"""A predictor's weights as the kernels read them: standardising and scaling folded in, in 16 bits or in 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch

from shadowcore.decode.kernels.select import Scorer
from shadowcore.method.predictors import Predictor, UnitScorer
from shadowcore.method.weight_quantization import eight_bits
from shadowcore.models.families import KINDS, Kind
from shadowcore.models.recording import Site


class Group(NamedTuple):
    """Weights of one group of a predictor as the kernels read them: D -> r of all kinds -> (layers, U) of each.

    Standardising the feature is folded into `inner`, scaling the scores into each kind's weights.
    """

    site: Site
    layers: tuple[int, ...]
    inner: torch.Tensor  # (r of heads + r of neurons, D)
    inner_bias: torch.Tensor
    inner_scale: torch.Tensor | None
    outer: Mapping[Kind, Scorer]

    def tensors(self) -> list[torch.Tensor]:
        """All weights."""
        outer = [tensor for scorer in self.outer.values() for tensor in scorer]
        return [t for t in (self.inner, self.inner_bias, self.inner_scale, *outer) if t is not None]


def groups_of(
    predictor: Predictor, kinds: Sequence[Kind], dtype: torch.dtype, device: torch.device, bits: int = 16
) -> list[Group]:
    """A trained predictor's weights for the given kinds of unit as the kernels read them; bits: of a weight, 16 or 8.

    With 16 bits weights have `dtype`.
    """
    groups = []
    for index, (site, layers) in enumerate(predictor.groups):
        scorers: dict[Kind, UnitScorer] = {
            kind: deepcopy(predictor.scorers[kind][index]).to(device=device, dtype=torch.float32)
            for kind in KINDS
            if kind in kinds
        }
        with torch.no_grad():
            inner = [(s.inner.weight / s.feature_scale, s.inner.bias) for s in scorers.values()]
            biases = [bias - weight @ s.feature_mean for (weight, bias), s in zip(inner, scorers.values(), strict=True)]
            outer = {
                kind: (
                    s.outer.weight.view(s.layers, s.units, -1) * s.score_scale[:, :, None],
                    s.score_mean + s.score_scale * s.outer.bias.view(s.layers, s.units),
                )
                for kind, s in scorers.items()
            }
        groups.append(group(site, layers, torch.cat([w for w, _ in inner]), torch.cat(biases), outer, dtype, bits))
    return groups


def group(
    site: Site,
    layers: tuple[int, ...],
    inner: torch.Tensor,
    inner_bias: torch.Tensor,
    outer: Mapping[Kind, tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
    bits: int,
) -> Group:
    """A group with its weights in `dtype`, or in 8 bits with one scale a row."""

    def stored(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (weight.to(dtype), None) if bits == 16 else eight_bits(weight)

    scorers = {}
    for kind, (weight, bias) in outer.items():
        small, scale = stored(weight)
        scorers[kind] = Scorer(small, bias.float(), scale)
    small, scale = stored(inner)
    return Group(site, layers, small, inner_bias.float(), scale, scorers)
