"""Names of the modules and configuration keys of each model family.

A unit is a slice of the *input of an output projection*: a head is K numbers of the input of the attention's output
projection, a neuron is one number of the input of the FFN's down projection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shadowcore.errors import ConfigError

Kind = Literal["heads", "neurons"]
KINDS: tuple[Kind, ...] = ("heads", "neurons")
KINDS_OF: dict[str, tuple[Kind, ...]] = {"neurons": ("neurons",), "heads": ("heads",), "both": KINDS}
GROUPED = ("num_key_value_heads", "head_dim")
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
    """Names of a model type's modules, as attribute paths, and of its sizes, as configuration keys.

    The defaults are Llama's. Paths begin at a layer, unless a comment says otherwise.
    """

    decoder_layers: str = "model.layers"  # the list of layers, from the causal model
    output_projection: str = "self_attn.o_proj"
    ffn_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")  # fc1, or gate and up
    ffn_down: str = "mlp.down_proj"
    neurons_key: str = "intermediate_size"  # configuration key of F
    activation_key: str = "hidden_act"  # ... and of the FFN's activation function
    own_keys: tuple[str, ...] = GROUPED  # keys that this family's class reads, but some other classes do not
    rotary: float = 1.0  # default share of a head with rotary positions; 0: learned positions
    # query, key, value; empty if a head's query does not have rows of its own: fused, or normed with other heads
    attention_projections: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attention_norm: str = "input_layernorm"  # these norms, but for ffn_norm, are for our decoder only
    ffn_norm: str = "post_attention_layernorm"  # between residual and FFN; empty where the FFN has none of its own
    final_norm: str = "model.norm"  # from the causal model
    head_norms: tuple[str, ...] = ()  # norms of each query head and each key head, if there are any


FAMILIES: dict[str, Family] = {
    "gemma": Family(),
    "gpt_neox": Family(
        decoder_layers="gpt_neox.layers", output_projection="attention.dense", ffn_in=("mlp.dense_h_to_4h",),
        ffn_down="mlp.dense_4h_to_h", own_keys=(), rotary=0.25, attention_projections=(),
    ),
    "llama": Family(),
    "mistral": Family(own_keys=(*GROUPED, "sliding_window")),
    "olmo2": Family(attention_projections=(), ffn_norm=""),
    "opt": Family(
        decoder_layers="model.decoder.layers", output_projection="self_attn.out_proj", ffn_in=("fc1",), ffn_down="fc2",
        neurons_key="ffn_dim", activation_key="activation_function", own_keys=(), rotary=0,
        attention_norm="self_attn_layer_norm", ffn_norm="final_layer_norm",
        final_norm="model.decoder.final_layer_norm",
    ),
    "phi": Family(
        output_projection="self_attn.dense", ffn_in=("mlp.fc1",), ffn_down="mlp.fc2", rotary=0.5, ffn_norm=""
    ),
    "qwen2": Family(own_keys=(*GROUPED, "sliding_window", "layer_types")),
    "qwen3": Family(
        own_keys=(*GROUPED, "sliding_window", "layer_types"), head_norms=("self_attn.q_norm", "self_attn.k_norm")
    ),
    "smollm3": Family(own_keys=(*GROUPED, "sliding_window", "layer_types")),
    "stablelm": Family(own_keys=("num_key_value_heads",), rotary=0.25),
}  # fmt: skip


def family_of(config) -> Family:
    """The family of a Hugging Face configuration, from its `model_type`.

    Raises ConfigError for a model type that is not in FAMILIES, and for rotary positions that depend on the longest row
    of a batch, because the likelihood of a text would depend on the other texts in the batch.
    """
    model_type = getattr(config, "model_type", None)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"model_type: '{model_type}' is not supported; it must be one of {', '.join(FAMILIES)}; docs/extend.md "
            "says which other types can be added, and how"
        )
    family = FAMILIES[model_type]
    if family.rotary and (rope := _rope_type(config)) not in FIXED_ROPE:
        raise ConfigError(
            f"model type '{model_type}': rope_type '{rope}' is not supported; it must be one of "
            f"{', '.join(FIXED_ROPE)}, whose frequencies do not depend on the longest row of a batch"
        )
    return family


def _rope_type(config) -> Any:
    """The type of rotary positions, under the key of this or of older transformers versions."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else "default"


def dimensions_of(config) -> Dimensions:
    """Sizes of the model of a Hugging Face configuration."""
    family = family_of(config)
    heads = config.num_attention_heads

    def own(key: str) -> Any:  # a key that the family's class does not read has no effect
        return getattr(config, key, None) if key in family.own_keys else None

    return Dimensions(
        layers=config.num_hidden_layers, width=config.hidden_size, heads=heads,
        kv_heads=own("num_key_value_heads") or heads, head_width=own("head_dim") or config.hidden_size // heads,
        neurons=getattr(config, family.neurons_key), vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
    )  # fmt: skip


def require_positions(positions: int, tokens: int, key: str, model: str) -> None:
    """Raise ConfigError, naming `key`, if a row of `tokens` tokens is longer than the model's usable positions.

    `positions` is Dimensions.positions. All families use `max_position_embeddings` of them: OPT's table has two more
    rows, which no token reads, and rotary models compute any position but were not trained on those beyond.
    """
    if tokens > positions:
        raise ConfigError(f"{key}: {tokens} is too large; it must be at most {positions}, the positions of {model}")


def ffn_activation(config) -> str:
    """Name of the activation function in the FFN of a Hugging Face configuration: "relu", "silu", ..."""
    return getattr(config, family_of(config).activation_key)


def layers_of(model):
    """The list of decoder layers of a causal model."""
    return model.get_submodule(family_of(model.config).decoder_layers)


def device_of(model, layer: int):
    """The device of a layer's weights; a model that is too large for one GPU is spread over several."""
    return next(layers_of(model)[layer].parameters()).device


def output_projection(model, layer: int, kind: Kind):
    """The linear module whose input holds the units of one kind in one layer."""
    family = family_of(model.config)
    name = family.output_projection if kind == "heads" else family.ffn_down
    return layers_of(model)[layer].get_submodule(name)
