"""A model's weights as a decoder wants them: one copy of each, every unit a contiguous block of rows.

Skipping a unit means not reading its weights, so they must lie together. Both projections of a unit are
stored with the unit first and D last; those that add to the residual are therefore transposed:

    query          (H, K, D)      output    (H, K, D)      a head's rows, twice
    fc1            (F, 1, D)      fc2       (F, D)         OPT neurons
    gate and up    (F, 2, D)      down      (F, D)         Llama neurons, the two rows side by side
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn import functional

from shadowcore.errors import ConfigError
from shadowcore.models.families import KINDS, Dimensions, Family, Kind, dimensions_of, family_of, layers_of

GATED = {"silu": "silu", "relu": "gated_relu"}  # a gated FFN by the activation of its gate
OPT_POSITION_OFFSET = 2  # OPT's table of positions starts with two rows that are never read
# model types that the decoder computes, and what their configuration must say
GATED_BY = {"hidden_act": tuple(GATED)}
DECODED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": GATED_BY,
    "mistral": GATED_BY,
    "opt": {"do_layer_norm_before": (True,), "_remove_final_layer_norm": (False,), "activation_function": ("relu",)},
    "qwen2": GATED_BY,
    "qwen3": GATED_BY,
}


@dataclass(frozen=True)
class Norm:
    """LayerNorm, or RMSNorm where `rms`."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    rms: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.rms:
            return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def to(self, dtype: torch.dtype) -> Norm:
        """The norm with its weights in another number format."""
        weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias)


@dataclass(frozen=True)
class Layer:
    """Weights of one layer. G KV heads; P rows a neuron: 1 (fc1) or 2 (gate, up)."""

    attention_norm: Norm
    query_key_value: torch.Tensor  # (H + 2 G, K, D)
    query_key_value_bias: torch.Tensor | None  # (H + 2 G, K)
    output: torch.Tensor  # (H, K, D)
    output_bias: torch.Tensor | None  # (D,)
    ffn_norm: Norm
    ffn_in: torch.Tensor  # (F, P, D)
    ffn_in_bias: torch.Tensor | None  # (F, P)
    ffn_down: torch.Tensor  # (F, D)
    ffn_down_bias: torch.Tensor | None  # (D,)
    present: Mapping[Kind, torch.Tensor]  # which of the model's units these are, ascending; all unless compacted
    query_norm: Norm | None = None  # RMSNorm of each head's K numbers, before rotary positions
    key_norm: Norm | None = None

    def normed(self, qkv: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values (..., n + 2 G, K) with the norms of each head, where there are any."""
        if self.query_norm is None:
            return qkv
        groups = (len(self.query_key_value) - len(self.output)) // 2
        query, key, value = qkv.split((qkv.shape[-2] - 2 * groups, groups, groups), -2)
        return torch.cat((self.query_norm(query), self.key_norm(key), value), -2)

    def of_unit(self, kind: Kind) -> list[torch.Tensor]:
        """The tensors whose row u belongs to unit u: what skipping the unit leaves unread."""
        if kind == "heads":
            tensors = (self.query_key_value, self.query_key_value_bias, self.output)
        else:
            tensors = (self.ffn_in, self.ffn_in_bias, self.ffn_down)
        return [tensor for tensor in tensors if tensor is not None]


@dataclass(frozen=True)
class Layout:
    """Weights of a whole model. Embedding, norms and LM head are the model's own tensors, not copies."""

    sizes: Dimensions
    activation: str  # relu; with a gate: silu or gated_relu
    embedding: torch.Tensor  # (V, D)
    positions: torch.Tensor | None  # (P, D), learned
    inverse_frequencies: torch.Tensor | None  # (K/2,), of rotary positions
    rotary_scale: float
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: torch.Tensor  # (V, D); the embedding itself where tied

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.embedding.dtype

    @property
    def exact_zeros(self) -> bool:
        """Whether neurons can be exactly zero: after ReLU."""
        return self.activation != "silu"

    def keep_masks(self) -> dict[Kind, torch.Tensor]:
        """Which of the model's units have weights here, (L, U) per kind: all, unless compacted."""
        masks = {
            kind: torch.zeros(self.sizes.layers, self.sizes.units(kind), dtype=torch.bool, device=self.device)
            for kind in KINDS
        }
        for index, layer in enumerate(self.layers):
            for kind in KINDS:
                masks[kind][index, layer.present[kind]] = True
        return masks


def from_model(model: torch.nn.Module, release: bool = False) -> Layout:
    """The layout of a loaded Hugging Face causal model.

    With `release` every layer of the model gives its memory back once it is copied, so that no more than one layer
    exists twice; the model cannot be run afterwards. Raises ConfigError for variants the decoder does not compute.
    """
    config, family = model.config, family_of(model.config)
    check_variant(config)
    sizes = replace(dimensions_of(config), positions=decoded_positions(config))
    opt = config.model_type == "opt"
    rotary = None if opt else model.model.rotary_emb
    layers = []
    for module in layers_of(model):
        layers.append(_layer(module, family, sizes))
        if release:
            module.to("meta")
    return Layout(
        sizes=sizes,
        activation="relu" if opt else GATED[config.hidden_act],
        embedding=model.get_input_embeddings().weight.detach(),
        positions=model.model.decoder.embed_positions.weight.detach()[OPT_POSITION_OFFSET:] if opt else None,
        inverse_frequencies=None if opt else rotary.inv_freq.detach(),
        rotary_scale=1.0 if opt else rotary.attention_scaling,
        layers=tuple(layers),
        final_norm=_norm(model.get_submodule(family.final_norm)),
        head=model.get_output_embeddings().weight.detach(),
    )


def compacted(layout: Layout, keep: Mapping[Kind, torch.Tensor]) -> Layout:
    """A layout that has weights of the kept units only: `keep[kind]` is a mask (L, U).

    Keys and values of all heads stay. The prompt's pass computes the kept units only, too.
    """
    layers = []
    for index, layer in enumerate(layout.layers):
        for kind, mask in keep.items():
            layer = with_units(layer, kind, mask[index].nonzero().squeeze(1))
        layers.append(layer)
    return replace(layout, layers=tuple(layers))


def with_units(layer: Layer, kind: Kind, units: torch.Tensor | slice) -> Layer:
    """A layer with some units of a kind: those at indices, copied, or in views the last ones, `slice(start, None)`."""
    present = {**layer.present, kind: layer.present[kind][units]}
    if kind == "neurons":
        bias = _rows(layer.ffn_in_bias, units)
        ffn_in, ffn_down = layer.ffn_in[units], layer.ffn_down[units]
        return replace(layer, present=present, ffn_in=ffn_in, ffn_in_bias=bias, ffn_down=ffn_down)
    rows, weight = units, layer.query_key_value
    if isinstance(units, torch.Tensor):  # keys and values come after the heads, and all of them stay
        rows = torch.cat((units, torch.arange(len(layer.output), len(weight), device=units.device)))
    bias, output = _rows(layer.query_key_value_bias, rows), layer.output[units]
    return replace(layer, present=present, query_key_value=weight[rows], query_key_value_bias=bias, output=output)


def weights_of(part: Layer | Norm) -> Iterator[torch.Tensor]:
    """Every weight tensor of a layer or a norm."""
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Norm):
            yield from weights_of(value)
        elif isinstance(value, torch.Tensor):
            yield value


def decoded_positions(config) -> int:
    """Positions of a model in the decoder: it attends to all, so they are no more than a sliding window holds."""
    window = config.sliding_window if "sliding_window" in family_of(config).own_keys else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def require_decoded(model_type: str) -> None:
    """Raise ConfigError for a model type that the decoder does not compute."""
    if model_type not in DECODED:
        raise ConfigError(
            f"model_type: '{model_type}' is not supported by the decoder, which supports {', '.join(DECODED)}; "
            "evaluate the model without timing it, or extend the decoder (docs/extend.md)"
        )


def check_variant(config) -> None:
    """Raise ConfigError if the decoder would not compute what this configuration describes."""
    require_decoded(model_type := config.model_type)
    wanted = DECODED[model_type]
    if model_type == "opt":
        wanted = wanted | {"word_embed_proj_dim": (config.hidden_size,)}
    if wrong := [
        f"{key} is {getattr(config, key)!r}, the decoder needs {' or '.join(map(repr, values))}"
        for key, values in wanted.items()
        if getattr(config, key) not in values
    ]:
        raise ConfigError(f"model type '{model_type}': {'; '.join(wrong)}")


def _layer(module: torch.nn.Module, family: Family, sizes: Dimensions) -> Layer:
    """One layer's weights, copied into their places."""
    projections = [module.get_submodule(name) for name in family.attention_projections]
    output, down = module.get_submodule(family.output_projection), module.get_submodule(family.ffn_down)
    ffn_in = [module.get_submodule(name) for name in family.ffn_in]
    head_norms = [_norm(module.get_submodule(name)) for name in family.head_norms] or [None, None]
    device = output.weight.device
    return Layer(
        attention_norm=_norm(module.get_submodule(family.attention_norm)),
        query_key_value=torch.cat([p.weight.detach() for p in projections]).unflatten(0, (-1, sizes.head_width)),
        query_key_value_bias=_fused_bias(projections, lambda b: torch.cat(b).unflatten(0, (-1, sizes.head_width))),
        output=output.weight.detach().T.contiguous().unflatten(0, (-1, sizes.head_width)),
        output_bias=_fused_bias([output], lambda b: b[0]),
        ffn_norm=_norm(module.get_submodule(family.ffn_norm)),
        ffn_in=torch.stack([p.weight.detach() for p in ffn_in], 1),
        ffn_in_bias=_fused_bias(ffn_in, lambda b: torch.stack(b, 1)),
        ffn_down=down.weight.detach().T.contiguous(),
        ffn_down_bias=_fused_bias([down], lambda b: b[0]),
        present={kind: torch.arange(sizes.units(kind), device=device) for kind in KINDS},
        query_norm=head_norms[0],
        key_norm=head_norms[1],
    )


def _norm(module: torch.nn.Module) -> Norm:
    rms = not isinstance(module, torch.nn.LayerNorm)
    weight, bias = (None if p is None else p.detach() for p in (module.weight, getattr(module, "bias", None)))
    return Norm(weight, bias, module.variance_epsilon if rms else module.eps, rms)


def _fused_bias(linears: list[torch.nn.Linear], fuse) -> torch.Tensor | None:
    """The biases of linear modules through `fuse`, or None where they have none."""
    return None if linears[0].bias is None else fuse([linear.bias.detach() for linear in linears])


def _rows(bias: torch.Tensor | None, rows: torch.Tensor | slice) -> torch.Tensor | None:
    return None if bias is None else bias[rows]


class Upcast(Sequence):
    """Layers in float32, each made when it is asked for."""

    def __init__(self, layers: Sequence[Layer]):
        self._layers = layers

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> Layer:
        layer = self._layers[index]
        changes: dict[str, Any] = {}
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                changes[name] = value.float()
            elif isinstance(value, Norm):
                changes[name] = value.to(torch.float32)
        return replace(layer, **changes)


def upcast(layout: Layout) -> Layout:
    """The same weights in float32, no more than one layer of them at a time."""
    if layout.dtype == torch.float32:
        return layout
    embedding = layout.embedding.float()
    return replace(
        layout,
        embedding=embedding,
        positions=None if layout.positions is None else layout.positions.float(),
        head=embedding if layout.head is layout.embedding else layout.head.float(),
        layers=Upcast(layout.layers),
        final_norm=layout.final_norm.to(torch.float32),
    )
