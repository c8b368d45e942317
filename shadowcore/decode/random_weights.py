"""Models and predictors by their dimensions alone, with random weights made where they are used.

Time does not depend on the values of weights, so a published model's speed is measured without downloading it. Weights
are normal, scaled so that activations neither vanish nor grow. They are not zeros, which some hardware reads faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist

import torch

from shadowcore.decode.layout import Layer, Layout, Norm, with_units
from shadowcore.decode.packed_predictor import PackedPredictor, pack_group
from shadowcore.errors import ConfigError
from shadowcore.method.predictors import Predictor, feature_width, groups_of
from shadowcore.models.families import KINDS, Dimensions, Kind

ROPE_BASE = 10000.0


def weight_numbers(family: str, sizes: Dimensions) -> int:
    """Weights of a model with these sizes, biases and norms left out: at most a thousandth more."""
    attention = 2 * (sizes.heads + sizes.kv_heads) * sizes.head_width * sizes.width
    ffn = (2 if family == "opt" else 3) * sizes.neurons * sizes.width
    vocabulary = sizes.vocabulary * (1 if family == "opt" else 2) + (sizes.positions if family == "opt" else 0)
    return sizes.layers * (attention + ffn) + vocabulary * sizes.width


def require_room(family: str, sizes: Dimensions, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ConfigError, with the bytes needed and free, unless a model of these sizes fits on a CUDA device."""
    require_bytes(weight_numbers(family, sizes) * dtype.itemsize, device)


def require_bytes(needed: int, device: torch.device) -> None:
    """Raise ConfigError, with the bytes needed and free, unless a model's weights fit on a CUDA device."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise ConfigError(
            f"model: its weights need {needed:,} bytes, {torch.cuda.get_device_name(device)} has {free:,} free"
        )


def random_layout(
    family: str, sizes: Dimensions, dtype: torch.dtype, device: torch.device, seed: int, active: float = 0.5
) -> Layout:
    """A layout with these sizes. active: the fraction of ReLU neurons above zero, set by fc1's bias.

    Raises ConfigError where it does not fit.
    """
    require_room(family, sizes, dtype, device)
    generator = torch.Generator(device).manual_seed(seed)
    opt = family == "opt"

    def normal(*shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(mean, std, generator=generator)

    def bias(*shape: int, mean: float = 0.0) -> torch.Tensor | None:
        return normal(*shape, std=0.02, mean=mean) if opt else None

    def norm() -> Norm:
        return Norm(normal(sizes.width, std=0.1, mean=1.0), bias(sizes.width), 1e-5, not opt)

    inward = sizes.width**-0.5  # a normed vector in, numbers of size 1 out
    parts = 1 if opt else 2

    def layer() -> Layer:
        rows = sizes.heads + 2 * sizes.kv_heads
        return Layer(
            attention_norm=norm(),
            query_key_value=normal(rows, sizes.head_width, sizes.width, std=inward),
            query_key_value_bias=bias(rows, sizes.head_width),
            output=normal(sizes.heads, sizes.head_width, sizes.width, std=inward),
            output_bias=bias(sizes.width),
            ffn_norm=norm(),
            ffn_in=normal(sizes.neurons, parts, sizes.width, std=inward),
            ffn_in_bias=bias(sizes.neurons, parts, mean=NormalDist().inv_cdf(active)),
            ffn_down=normal(sizes.neurons, sizes.width, std=sizes.neurons**-0.5),
            ffn_down_bias=bias(sizes.width),
            present={kind: torch.arange(sizes.units(kind), device=device) for kind in KINDS},
        )

    embedding = normal(sizes.vocabulary, sizes.width, std=1.0)
    frequencies = ROPE_BASE ** -(torch.arange(0, sizes.head_width, 2, device=device) / sizes.head_width)
    return Layout(
        sizes=sizes,
        activation="relu" if opt else "silu",
        embedding=embedding,
        positions=normal(sizes.positions, sizes.width, std=0.1) if opt else None,
        inverse_frequencies=None if opt else frequencies,
        rotary_scale=1.0,
        layers=tuple(layer() for _ in range(sizes.layers)),
        final_norm=norm(),
        head=embedding if opt else normal(sizes.vocabulary, sizes.width, std=inward),
    )


def random_packed_predictor(
    design: str, sizes: Dimensions, ranks: Mapping[Kind, int], segments: int, bits: int, dtype: torch.dtype,
    device: torch.device, seed: int,
) -> PackedPredictor:  # fmt: skip
    """A random predictor of a design (`method.predictors`) for the kinds of unit in `ranks`, for the kernels."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        weight = torch.empty(shape, dtype=dtype, device=device)
        return weight.normal_(0.0, shape[-1] ** -0.5, generator=generator)

    groups = []
    for site, layers in groups_of(design, sizes.layers, segments):
        kinds = [kind for kind in KINDS if kind in ranks]
        outer = {
            kind: (
                normal(len(layers), sizes.units(kind), ranks[kind]),
                torch.zeros(len(layers), sizes.units(kind), device=device),
            )
            for kind in kinds
        }
        rank = sum(ranks[kind] for kind in kinds)
        inner = normal(rank, feature_width(sizes, site))
        groups.append(pack_group(site, layers, inner, torch.zeros(rank, device=device), outer, dtype, bits))
    return PackedPredictor(design, groups, dict.fromkeys(KINDS, 1))


def random_predictor(
    design: str, sizes: Dimensions, ranks: Mapping[Kind, int], segments: int, dtype: torch.dtype, seed: int
) -> Predictor:
    """A random predictor as the torch decoder reads it."""
    predictor = Predictor(design, sizes, ranks, segments)
    generator = torch.Generator().manual_seed(seed)
    for parameter in predictor.parameters():
        parameter.data.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return predictor.to(dtype).eval()


def last_units(layout: Layout, kept: Mapping[Kind, int], first_layer: int) -> Layout:
    """The layout with only the last `kept` units of each kind from `first_layer` on: views, no copies.

    With random weights, any choice of this many units takes the same time.
    """

    def cut(layer: Layer) -> Layer:
        for kind, count in kept.items():
            layer = with_units(layer, kind, slice(layout.sizes.units(kind) - count, None))
        return layer

    layers = [cut(layer) if index >= first_layer else layer for index, layer in enumerate(layout.layers)]
    return replace(layout, layers=tuple(layers))
