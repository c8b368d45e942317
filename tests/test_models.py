"""Units are where we say: masked equals physically removed, and the model is left as it was."""

import pytest
import torch

from shadowcore.models.families import KINDS, dimensions_of, layers_of, output_projection
from shadowcore.models.masking import cut_out, masked
from shadowcore.models.recording import frozen, visiting


@pytest.fixture
def tiny(of_family):
    return of_family


def random_keep(model, kinds=KINDS, share=0.5):
    sizes = dimensions_of(model.config)
    generator = torch.Generator().manual_seed(2)
    return {kind: torch.rand(sizes.layers, sizes.units(kind), generator=generator) < share for kind in kinds}


def hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("kinds", [("heads",), ("neurons",), KINDS])
@torch.no_grad()
def test_masked_equals_weights_cut_out(tiny, tokens, kinds):
    keep = random_keep(tiny, kinds)
    with masked(tiny, keep):
        got = tiny(tokens).logits
        assert hooks(layers_of(tiny)[1]) == 1 + len(kinds)  # at the layer, and at the units of these kinds
    narrow = cut_out(tiny, keep)
    want = narrow(tokens).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got - tiny(tokens).logits).abs().max() > 0.1  # the mask matters at all
    for layer, mask in enumerate(keep.get("neurons", ())):
        assert output_projection(narrow, layer, "neurons").weight.shape[1] == mask.sum()


def test_hooks_and_flags_are_gone_after_an_exception(tiny, tokens):
    list(tiny.parameters())[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in tiny.parameters()]

    def fails(site, x):
        raise RuntimeError("inside a hook")

    with pytest.raises(RuntimeError, match="inside a hook"), frozen(tiny), visiting(tiny, fails):
        tiny(tokens)
    assert hooks(tiny) == 0
    assert [parameter.requires_grad for parameter in tiny.parameters()] == flags


@torch.no_grad()
def test_sites_come_in_order_with_their_shapes(tiny, tokens):
    sizes, seen = dimensions_of(tiny.config), []
    with visiting(tiny, lambda site, x: seen.append((site, x.shape))):
        tiny(tokens)
    batch = tokens.shape
    want = []
    for layer in range(sizes.layers):
        want.append(((layer, "residual"), (*batch, sizes.width)))
        want.append(((layer, "heads"), (*batch, sizes.heads, sizes.head_width)))
        if tiny.config.model_type not in ("olmo2", "phi"):  # whose FFN has no norm of its own
            want.append(((layer, "ffn_residual"), (*batch, sizes.width)))
        want.append(((layer, "ffn_input"), (*batch, sizes.width)))
        want.append(((layer, "neurons"), (*batch, sizes.neurons, 1)))
    assert seen == want
    assert len(layers_of(tiny)) == sizes.layers
