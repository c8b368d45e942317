"""A penalty that makes a ReLU return more zeros: it acts in the backward pass alone.

It is the squared L1 norm of a token's activations over their squared L2 norm (Hoyer-square, Yang et al. 2020), which
does not depend on their scale.
"""

import torch
from torch import nn

from shadowcore.models.families import layers_of


class _Penalised(torch.autograd.Function):
    """Activations (..., F) as they are, with the gradient of the penalty: its mean over tokens, times a weight."""

    @staticmethod
    def forward(ctx, active: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(active, weight)
        return active.view_as(active)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        active, weight = ctx.saved_tensors
        return gradient + (weight * spread_gradient(active.float())).to(gradient.dtype), None


def spread_gradient(active: torch.Tensor) -> torch.Tensor:
    """The derivative of the mean over tokens of (sum a)^2 / (F sum a^2) by a >= 0 (..., F); 0 where a is 0."""
    total, squares = active.sum(-1, keepdim=True), active.square().sum(-1, keepdim=True).clamp(min=1e-12)
    slope = 2 * total / squares * (1 - total * active / squares)
    return torch.where(active > 0, slope / active.numel(), 0.0)


class PenalisedReLU(nn.Module):
    """ReLU whose backward pass adds the penalty's gradient, as a mean over a model's layers."""

    def __init__(self, weight: torch.Tensor, layers: int):
        super().__init__()
        self.layers = layers
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Penalised.apply(torch.relu(x), self.weight / self.layers)


def penalise(model: nn.Module, weight: torch.Tensor) -> None:
    """Put a penalised ReLU in place of every layer's; `weight` is a number that changes while the model trains."""
    for layer in layers_of(model):
        name = next(name for name, module in layer.named_modules() if isinstance(module, nn.ReLU))
        layer.set_submodule(name, PenalisedReLU(weight, len(layers_of(model))))
