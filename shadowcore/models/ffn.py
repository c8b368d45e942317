"""The first half of a layer's FFN: its input matrices, its activation function, and the norm before it."""

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from shadowcore.errors import ConfigError
from shadowcore.models.families import family_of, ffn_activation, layers_of


def ffn_inputs(model: torch.nn.Module, layer: int) -> list[torch.nn.Linear]:
    """Gate and up projection of a layer, or fc1 alone."""
    return [layers_of(model)[layer].get_submodule(name) for name in family_of(model.config).ffn_in]


def activation_function(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation function of the model's FFN."""
    from transformers.activations import ACT2FN  # takes over a second, which every start of Snakemake would pay

    return ACT2FN[ffn_activation(model.config)]


def gate_activation(model: torch.nn.Module, layer: int, x: torch.Tensor) -> torch.Tensor:
    """act(gate x) (..., F) of the FFN's input x (..., D); without a gate act(fc1 x), the neurons themselves."""
    gate = ffn_inputs(model, layer)[0]
    # not by calling the module: its hooks are who asks
    return activation_function(model)(linear(x, gate.weight, gate.bias))


def norm_before_ffn(model: torch.nn.Module, layer: int) -> torch.nn.Module | None:
    """The norm between a layer's residual and its FFN; None for a family whose FFN reads something else."""
    name, before = family_of(model.config).ffn_norm, getattr(model.config, "do_layer_norm_before", True)  # OPT's key
    return dict(layers_of(model)[layer].named_modules()).get(name) if name and before else None


def ffn_norm(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    """`norm_before_ffn`; ConfigError for a family without it."""
    module = norm_before_ffn(model, layer)
    if module is None:
        raise ConfigError(
            f"model type '{model.config.model_type}': its FFN has no norm of its own before it, which the methods "
            "dejavu and proxy4_ahead, proxy3_ahead and proxy2_ahead need; use the method without '_ahead', or layerwise"
        )
    return module


def require_relu(model: torch.nn.Module, method: str, reason: str) -> None:
    """Raise ConfigError unless the FFN's activation is ReLU."""
    if (activation := ffn_activation(model.config)) != "relu":
        raise ConfigError(
            f"conditions.methods: {method} needs an FFN with the activation 'relu', because {reason}; "
            f"'{model.config.model_type}' has '{activation}' here; name models with ReLU in `models` of its grid"
        )
