"""Predictors: small MLPs that read the model early and score the units of later layers.

ShadowLLM and DejaVu are one design at two settings. A predictor is a list of groups; each group reads
one site of the model at each position and scores the units of its layers there:

    shadow          one group: reads layer 0's head outputs, scores layers 1 to L-1 (ShadowLLM, section 4)
    layerwise       L-1 groups: layer l is scored from the residual entering layer l-1   (Deja Vu, section 4.3)
    layerwise_own   L-1 groups: layer l is scored from its own head outputs         (ShadowLLM's own comparison)
    dejavu          L-1 groups: layer l is scored from the residual after the attention of layer l-1 (Deja Vu's code)
    segments        G groups of neighbouring layers, each scored from the residual entering its first layer
    static_tuned    one group that reads nothing: constant scores, which begin as those of `static` and are tuned
    proxyB_tuned    L-1 groups: layer l is scored by a copy of its weights in B bits, and a tuned gain of each neuron
                    (proxyB_ahead_tuned: from the residual entering the layer; `measure.ffn_selectors` makes the copies)

Segments lie between the first two: G = 1 is the shadow predictor reading a little later, G = L - 1 a predictor
per layer. layerwise_own sees the heads it should save, so it can rank them but not skip them.
Layer 0 is always dense: what it computes is the shadow predictor's input.

A predictor is read in every step, so its size is time: weights may have 8 bits (`weight_quantization.py`), and one
score may stand for a block of neighbouring neurons, which are then kept or removed together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self
from warnings import catch_warnings

import torch
from torch import nn

from shadowcore.errors import ConfigError
from shadowcore.method.low_bit import PROXIES
from shadowcore.models.families import KINDS, Dimensions, Kind, device_of
from shadowcore.models.recording import Site

FIRST_SPARSE_LAYER = 1
PREDICTOR_SCHEMA = "predictor/2"


class Group(NamedTuple):
    """One reading: where the input comes from, and the layers it is good for."""

    site: Site
    layers: tuple[int, ...]


def shadow(layers: int) -> list[Group]:
    """ShadowLLM: one predictor for the whole model, reading layer 0's head outputs."""
    return [Group(Site(0, "heads"), tuple(range(FIRST_SPARSE_LAYER, layers)))]


def per_layer(what: str, before: int = 0) -> Callable[[int], list[Group]]:
    """The groups of a design with a predictor per layer, which reads a site of the layer that many before it."""
    return lambda layers: [Group(Site(layer - before, what), (layer,)) for layer in range(FIRST_SPARSE_LAYER, layers)]


def segments(layers: int, count: int = 1) -> list[Group]:
    """`count` predictors, each reading the residual where its layers begin; ConfigError unless each has a layer."""
    predicted = layers - FIRST_SPARSE_LAYER
    if not 1 <= count <= predicted:
        raise ConfigError(
            f"predictors.segments: {count} is not allowed; a model of {layers} layers has 1 to {predicted}"
        )
    borders = [FIRST_SPARSE_LAYER + predicted * i // count for i in range(count + 1)]
    return [Group(Site(first, "residual"), tuple(range(first, end))) for first, end in pairwise(borders)]


def proxied(layers: int, ahead: bool) -> list[Group]:
    """A group per layer, which reads the input of that layer's FFN or, ahead of its attention, the layer's input."""
    return per_layer("residual" if ahead else "ffn_input")(layers)


PREDICTORS: dict[str, Callable[..., list[Group]]] = {
    "shadow": shadow,
    "layerwise": per_layer("residual", before=1),
    "layerwise_own": per_layer("heads"),
    "segments": segments,
    "dejavu": per_layer("ffn_residual", before=1),
    "static_tuned": shadow,  # its scorers ignore what they read
}
TUNED_PROXIES = {f"{name}_tuned": proxy for name, proxy in PROXIES.items()}
TUNED_ONLY = ("static_tuned", *TUNED_PROXIES)  # designs with nothing to learn from traces
DECODED = tuple(name for name in PREDICTORS if name not in ("dejavu", *TUNED_ONLY))  # designs that our decoders run


def groups_of(design: str, layers: int, count: int = 1) -> list[Group]:
    """The groups of a design in a model of `layers` layers; `count` is the number of segments."""
    if design in TUNED_PROXIES:
        return proxied(layers, *TUNED_PROXIES[design][1:])
    return segments(layers, count) if design == "segments" else PREDICTORS[design](layers)


def unit_range(values: torch.Tensor) -> torch.Tensor:
    """Values (..., n) moved and scaled so that the least is 0 and the largest is 1."""
    low, high = values.aminmax(dim=-1, keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-30)


def reads_own_heads(groups: Iterable[Any]) -> bool:
    """Whether a group, ours or a decoder's, reads the heads that it scores, which cannot be skipped then."""
    return any(group.site.what == "heads" and group.site.layer in group.layers for group in groups)


class UnitScorer(nn.Module):
    """D -> r -> (layers, U): scores of one kind of unit, or block of units, in a group's layers from one feature.

    The feature is standardised on the way in; on the way out, the learned deviation is scaled and
    added to the units' mean scores. With its last weights at zero it is the constant predictor, which
    is where training starts: whatever it learns is contextual. With rank 0 it stays constant.
    """

    def __init__(self, width: int, rank: int, layers: int, units: int, per_example: bool = False):
        """per_example: every feature is first scaled to the range from 0 to 1, by its own extremes."""
        super().__init__()
        self.layers, self.units, self.per_example = layers, units, per_example
        with catch_warnings(category=UserWarning, action="ignore"):  # torch's, that rank 0 has no weights
            self.inner = nn.Linear(width, rank)
            self.outer = nn.Linear(rank, layers * units)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_scale", torch.ones(width))
        self.register_buffer("score_mean", torch.zeros(layers, units))
        self.register_buffer("score_scale", torch.ones(layers, 1))

    def deviation(self, feature: torch.Tensor) -> torch.Tensor:
        """Scaled deviation from the mean scores, (..., layers, U), for a feature (..., D)."""
        feature = unit_range(feature) if self.per_example else feature
        hidden = torch.relu(self.inner((feature - self.feature_mean) / self.feature_scale))
        return self.outer(hidden).unflatten(-1, (self.layers, self.units))

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Scores (..., layers, U), comparable across layers."""
        # in place: for a whole model the scores of a batch are larger than anything the model itself makes
        return self.deviation(feature).mul_(self.score_scale).add_(self.score_mean)


class Gains(UnitScorer):
    """Log scores of a proxy, which are made of what it reads, plus a learned log gain of each neuron."""

    def __init__(self, units: int):
        super().__init__(units, 0, 1, units)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Log scores (..., 1, U) of a proxy's scores (..., U)."""
        return super().forward(feature) + feature.clamp(min=1e-30).log()[..., None, :]


class Predictor(nn.Module):
    """Scorers of each kind for every group of a predictor design."""

    def __init__(
        self, design: str, sizes: Dimensions, ranks: Mapping[Kind, int], count: int = 1, bits: int = 16, block: int = 1,
        per_example: bool = False,
    ):  # fmt: skip
        """ranks: hidden width per kind to score; count: number of groups where the design has a choice; bits: of a
        weight in files and decoders, 16 or 8; block: neighbouring neurons that share a score; per_example: scaling of
        features, as in UnitScorer. A design that is only tuned has none of these.

        Raises ConfigError unless the blocks divide a layer's neurons.
        """
        super().__init__()
        if design in TUNED_ONLY:
            kinds = ("neurons",) if design in TUNED_PROXIES else tuple(ranks)
            ranks, bits, block, per_example = dict.fromkeys(kinds, 0), 16, 1, False
        self.proxy: Callable[[int, torch.Tensor], torch.Tensor] | None = None  # of a layer and what its site has
        self.design, self.sizes, self.ranks, self.bits = design, sizes, dict(ranks), bits
        self.blocks: dict[Kind, int] = {"heads": 1, "neurons": block}
        if sizes.neurons % block:
            raise ConfigError(
                f"predictors.block: {block} is not allowed; it must divide the model's {sizes.neurons} neurons"
            )
        self.groups = groups_of(design, sizes.layers, count)

        def scorer(kind: Kind, group: Group) -> UnitScorer:
            if design in TUNED_PROXIES:
                return Gains(sizes.units(kind))
            units = sizes.units(kind) // self.blocks[kind]
            return UnitScorer(feature_width(sizes, group.site), ranks[kind], len(group.layers), units, per_example)

        scorers = {kind: nn.ModuleList(scorer(kind, one) for one in self.groups) for kind in KINDS if kind in ranks}
        self.scorers = nn.ModuleDict(scorers)
        self.group_at = {group.site: index for index, group in enumerate(self.groups)}

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit this predictor scores."""
        return tuple(self.scorers)

    def put_on(self, model: nn.Module) -> Self:
        """Move every scorer to the device of the layer that it reads."""
        for scorers in self.scorers.values():
            for group, scorer in zip(self.groups, scorers, strict=True):
                scorer.to(device_of(model, group.site.layer))
        return self

    def feature(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        """What a group reads (B, T, D) of a site's activations (B, T, ...): a proxy's scores, if it has one."""
        return x.flatten(2) if self.proxy is None else self.proxy(site.layer, x)

    def read(self, site: Site, feature: torch.Tensor, kind: Kind) -> tuple[tuple[int, ...], torch.Tensor] | None:
        """If a group reads `site`: its layers and their scores (..., layers, U) for a feature (..., D).

        U counts blocks where a score stands for one: `spread` makes them units again.
        """
        index = self.group_at.get(site)
        if index is None:
            return None
        return self.groups[index].layers, self.scorers[kind][index](feature)

    def constants(self, kinds: Sequence[Kind]) -> dict[Kind, torch.Tensor]:
        """Scores (L, U) of scorers that add nothing to a feature of ones; 0 in layers that they do not score."""
        with torch.no_grad():
            found = {
                kind: torch.cat([scorer(torch.ones_like(scorer.feature_mean)) for scorer in self.scorers[kind]])
                for kind in kinds
            }
        return {kind: nn.functional.pad(scores, (0, 0, FIRST_SPARSE_LAYER, 0)) for kind, scores in found.items()}

    def spread(self, values: torch.Tensor, kind: Kind) -> torch.Tensor:
        """Scores or masks (..., U / block) as those of units (..., U): every unit has its block's."""
        block = self.blocks[kind]
        return values if block == 1 else values.repeat_interleave(block, -1)

    def gathered(self, values: torch.Tensor, kind: Kind) -> torch.Tensor:
        """Sums over blocks (..., U / block) of values of units (..., U)."""
        block = self.blocks[kind]
        return values if block == 1 else values.unflatten(-1, (-1, block)).sum(-1)

    def step_bytes(self, kinds: Sequence[Kind]) -> int:
        """Bytes that a decoder reads of it per token: weights, and what goes with each of their rows in 32 bits.

        None of a design that is only tuned: constants are known before, and gains are multiplied into norms.
        """
        if self.design in TUNED_ONLY:
            return 0
        matrices = [
            layer.weight for kind in kinds for scorer in self.scorers[kind] for layer in (scorer.inner, scorer.outer)
        ]
        constants = 4 if self.bits == 16 else 8  # of each row: a bias; with 8 bits also the step size
        return sum(weight.numel() * self.bits // 8 + len(weight) * constants for weight in matrices)


def feature_width(sizes: Dimensions, site: Site) -> int:
    """Numbers a predictor reads at a site: D of the residual, H K of the concatenated head outputs."""
    return sizes.heads * sizes.head_width if site.what == "heads" else sizes.width
