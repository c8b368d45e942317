"""A predictor's weights as the kernels read them: standardising and scaling folded in, in 16 bits or in 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch

from shadowcore.errors import ConfigError
from shadowcore.method.predictors import Predictor
from shadowcore.method.weight_quantization import eight_bits
from shadowcore.models.families import KINDS, Kind
from shadowcore.models.recording import Site


class Scorer(NamedTuple):
    """One kind of unit's weights (layers, U, r), one scale a row where they are 8-bit, and biases (layers, U)."""

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None = None


class PackedGroup(NamedTuple):
    """Weights of one group of a predictor: D -> r of all kinds -> (layers, U) of each.

    Standardising the feature is folded into `inner`, scaling the scores into each kind's weights.
    """

    site: Site
    layers: tuple[int, ...]
    inner: torch.Tensor  # (r of heads + r of neurons, D)
    inner_bias: torch.Tensor
    inner_scale: torch.Tensor | None
    outer: Mapping[Kind, Scorer]

    def hidden(self, kind: Kind) -> slice:
        """Which of the hidden numbers belong to a kind of unit."""
        start = self.outer["heads"].weight.shape[-1] if kind == "neurons" and "heads" in self.outer else 0
        return slice(start, start + self.outer[kind].weight.shape[-1])


class PackedPredictor:
    """A predictor for the kinds of unit that its groups score; blocks[kind]: neighbouring units that share a score."""

    def __init__(self, design: str, groups: Sequence[PackedGroup], blocks: Mapping[Kind, int]):
        self.design, self.groups, self.blocks = design, list(groups), dict(blocks)
        self.group_at = {group.site: index for index, group in enumerate(groups)}

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit this predictor scores."""
        return tuple(self.groups[0].outer)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        tensors = []
        for group in self.groups:
            tensors += [group.inner, group.inner_bias, group.inner_scale]
            tensors += [tensor for scorer in group.outer.values() for tensor in scorer]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def read(self, site: Site, feature: torch.Tensor, kind: Kind) -> tuple[tuple[int, ...], torch.Tensor]:
        """The layers predicted from `site` and their scores (..., layers, U) in float32, for a feature (..., D)."""
        group = self.groups[self.group_at[site]]
        part, (weight, bias, scale) = group.hidden(kind), group.outer[kind]
        inner = _float(group.inner[part], None if group.inner_scale is None else group.inner_scale[part])
        hidden = torch.relu(feature.float() @ inner.T + group.inner_bias[part])
        scores = [  # one layer at a time: all of them in float32 may not fit into memory
            hidden @ _float(weight[i], None if scale is None else scale[i]).T + bias[i] for i in range(len(weight))
        ]
        return group.layers, torch.stack(scores, -2)

    def spread(self, values: torch.Tensor, kind: Kind) -> torch.Tensor:
        """Values of blocks (..., U / block) as those of units (..., U)."""
        return values.repeat_interleave(self.blocks[kind], -1)


def pack(predictor: Predictor, kinds: Sequence[Kind], dtype: torch.dtype, device: torch.device) -> PackedPredictor:
    """A trained predictor's weights for the given kinds of unit: in 8 bits, or in `dtype` where its `bits` are 16."""
    if any(scorer.per_example for kind in kinds for scorer in predictor.scorers[kind]):
        raise ConfigError("the predictor scales each example (`scaling: per_example`), which the kernels do not")
    groups = []
    for index, (site, layers) in enumerate(predictor.groups):
        scorers = {
            kind: deepcopy(predictor.scorers[kind][index]).to(device=device, dtype=torch.float32)
            for kind in KINDS
            if kind in kinds
        }
        with torch.no_grad():
            inner = [s.inner.weight / s.feature_scale for s in scorers.values()]
            biases = [s.inner.bias - weight @ s.feature_mean for weight, s in zip(inner, scorers.values(), strict=True)]
            outer = {
                kind: (
                    s.outer.weight.view(s.layers, s.units, -1) * s.score_scale[:, :, None],
                    s.score_mean + s.score_scale * s.outer.bias.view(s.layers, s.units),
                )
                for kind, s in scorers.items()
            }
        groups.append(pack_group(site, layers, torch.cat(inner), torch.cat(biases), outer, dtype, predictor.bits))
    return PackedPredictor(predictor.design, groups, predictor.blocks)


def pack_group(
    site: Site, layers: tuple[int, ...], inner: torch.Tensor, inner_bias: torch.Tensor,
    outer: Mapping[Kind, tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype, bits: int,
) -> PackedGroup:  # fmt: skip
    """A group with its weights in `dtype`, or in 8 bits with one scale a row."""

    def stored(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (weight.to(dtype), None) if bits == 16 else eight_bits(weight)

    scorers = {}
    for kind, (weight, bias) in outer.items():
        small, scale = stored(weight)
        scorers[kind] = Scorer(small, bias.float(), scale)
    small, scale = stored(inner)
    return PackedGroup(site, layers, small, inner_bias.float(), scale, scorers)


def _float(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Stored weights (rows, columns) as float32; `scale`, one number a row, multiplies 8-bit ones."""
    return weight.float() if scale is None else weight.float() * scale[:, None]
