"""Products by oneDNN are those of torch but for rounding, and have the same derivatives."""

import pytest
import torch
from torch import nn

from shadowcore.method.stacks import Linear
from shadowcore.models.products import FastLinear, make_fast, product


def derivatives(layer: nn.Linear, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, its gradient by x, and a second derivative by x."""
    made = layer(x)
    (first,) = torch.autograd.grad(made.square().sum(), x, create_graph=True)
    return [made, first, *torch.autograd.grad(first.square().sum(), x)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(64,), (0, 64), (3, 5, 64)])
def test_a_fast_layer_is_the_layer_with_the_same_derivatives(shape, bias):
    layer = nn.Linear(64, 33, bias).requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = derivatives(layer, x)
    make_fast(layer)
    assert type(layer) is FastLinear
    torch.testing.assert_close(derivatives(layer, x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x.mT.mT if x.dim() > 1 else x), wanted[0].detach())


def test_weights_of_a_fast_layer_can_learn():
    layer, x = make_fast(nn.Linear(8, 4)), torch.randn(5, 8)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 8))


def test_stacked_layers_have_the_derivatives_of_baddbmm():
    draw = torch.Generator().manual_seed(0)
    sizes = ((3, 5, 16), (3, 7, 16), (3, 7))  # x, weight and bias of three groups
    x, weight, bias = (torch.randn(size, generator=draw).requires_grad_() for size in sizes)
    found, wanted = Linear.apply(x, weight, bias), torch.baddbmm(bias[:, None], x, weight.mT)
    torch.testing.assert_close(found, wanted)
    gradients = (torch.autograd.grad(made.square().sum(), (x, weight, bias)) for made in (found, wanted))
    torch.testing.assert_close(*gradients)


def test_a_product_with_nothing_is_the_bias():
    bias = torch.randn(4)
    assert torch.equal(product(torch.empty(3, 0), torch.empty(4, 0), bias), bias.expand(3, 4))
