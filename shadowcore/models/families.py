"""Where heads and neurons live in each model family: a table of names, no behaviour.

A unit is a slice of the *input of an output projection*: a head is K numbers of the attention output
projection's input, a neuron is one number of the FFN down projection's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shadowcore.errors import ConfigError, near_miss

Kind = Literal["heads", "neurons"]
KINDS: tuple[Kind, ...] = ("heads", "neurons")
KINDS_OF: dict[str, tuple[Kind, ...]] = {"neurons": ("neurons",), "heads": ("heads",), "both": KINDS}
FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the length of a batch


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model, named as in the paper: L, D, H, K, F, V."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    neurons: int
    vocabulary: int
    positions: int

    def units(self, kind: Kind) -> int:
        """Units of one kind in one layer: H or F."""
        return self.heads if kind == "heads" else self.neurons

    def unit_width(self, kind: Kind) -> int:
        """Numbers in one unit's activation: K for a head, 1 for a neuron."""
        return self.head_width if kind == "heads" else 1


@dataclass(frozen=True)
class Family:
    """Names of a model type's parts, as attribute paths, and of its sizes, as configuration keys."""

    decoder_layers: str  # from the causal model to its list of layers
    attention: str  # the rest: from one layer
    attention_projections: tuple[str, str, str]  # query, key, value
    output_projection: str
    attention_norm: str
    ffn_in: tuple[str, ...]  # fc1, or gate and up
    ffn_down: str
    ffn_norm: str
    final_norm: str  # from the causal model
    neurons_key: str  # configuration key of F
    activation_key: str  # ... and of the FFN's activation function
    rotary: bool = True  # rotary positions, and it reads num_key_value_heads and head_dim; OPT ignores all three


OPT = Family(
    decoder_layers="model.decoder.layers",
    attention="self_attn",
    attention_projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output_projection="self_attn.out_proj",
    attention_norm="self_attn_layer_norm",
    ffn_in=("fc1",),
    ffn_down="fc2",
    ffn_norm="final_layer_norm",
    final_norm="model.decoder.final_layer_norm",
    neurons_key="ffn_dim",
    activation_key="activation_function",
    rotary=False,
)

LLAMA = Family(
    decoder_layers="model.layers",
    attention="self_attn",
    attention_projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output_projection="self_attn.o_proj",
    attention_norm="input_layernorm",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_down="mlp.down_proj",
    ffn_norm="post_attention_layernorm",
    final_norm="model.norm",
    neurons_key="intermediate_size",
    activation_key="hidden_act",
)

FAMILIES: dict[str, Family] = {"opt": OPT, "llama": LLAMA}


def family_of(config) -> Family:
    """The family of a Hugging Face configuration, by its `model_type`.

    Raises ConfigError for a model type that has no row in FAMILIES, and for rotary positions that depend on the
    longest row of a batch: the same text would have another likelihood in another batch.
    """
    model_type = getattr(config, "model_type", None)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(f"model type '{model_type}' is not supported; {near_miss(str(model_type), FAMILIES)}")
    family = FAMILIES[model_type]
    if family.rotary and (rope := _rope_type(config)) not in FIXED_ROPE:
        raise ConfigError(
            f"model type '{model_type}': rope_type '{rope}' is not supported; it must be one of "
            f"{', '.join(FIXED_ROPE)}, whose frequencies do not depend on the longest row of a batch"
        )
    return family


def _rope_type(config) -> Any:
    """The kind of rotary positions, under the key of this transformers version or of older ones."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else "default"


def dimensions_of(config) -> Dimensions:
    """Sizes of the model a Hugging Face configuration describes."""
    family = family_of(config)
    heads = config.num_attention_heads
    own = config if family.rotary else None  # where its class does not read a key, that key says nothing
    return Dimensions(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        kv_heads=getattr(own, "num_key_value_heads", None) or heads,
        head_width=getattr(own, "head_dim", None) or config.hidden_size // heads,
        neurons=getattr(config, family.neurons_key),
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
    )


def require_positions(positions: int, tokens: int, key: str, model: str) -> None:
    """Raise ConfigError, naming `key`, if a row of `tokens` tokens is longer than the model's usable positions.

    `positions` is Dimensions.positions. Both families use `max_position_embeddings` of them: OPT's table has two more
    rows, which no token reads, and Llama computes any position but was not trained on those beyond.
    """
    if tokens > positions:
        raise ConfigError(f"{key}: {tokens} is too large; it must be at most {positions}, the positions of {model}")


def ffn_activation(config) -> str:
    """Name of the activation function in the FFN of a Hugging Face configuration: "relu", "silu", ..."""
    return getattr(config, family_of(config).activation_key)


def layers_of(model):
    """The list of decoder layers of a causal model."""
    return model.get_submodule(family_of(model.config).decoder_layers)


def output_projection(model, layer: int, kind: Kind):
    """The linear module whose input holds the units of one kind in one layer."""
    family = family_of(model.config)
    name = family.output_projection if kind == "heads" else family.ffn_down
    return layers_of(model)[layer].get_submodule(name)
