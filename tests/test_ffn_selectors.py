"""Neurons chosen by the FFN's own matrices or a cheap copy of them: the choice and the bytes by hand."""

import pytest
import torch
from conftest import EVERY, family_model, refused
from test_read_bytes import by_hand, read

from shadowcore import artifacts
from shadowcore.measure.ffn_selectors import GateMasks, ProxyMasks, SignMasks
from shadowcore.measure.methods import METHODS
from shadowcore.measure.predictor_free import ThresholdMasks
from shadowcore.measure.sparsity import SparseModel
from shadowcore.method.low_bit import CLIPS, low_bit, row_steps
from shadowcore.models.families import dimensions_of, family_of, layers_of
from shadowcore.models.ffn import ffn_norm
from shadowcore.models.losses import all_scored
from shadowcore.models.masking import cut_out
from shadowcore.models.recording import SITES, Site, visiting
from shadowcore.schemas import THRESHOLDS
from shadowcore.stages.inputs import read_thresholds

LIMITS = torch.tensor([-1, 0.1, 0.2, 0.3])


@pytest.fixture
def relu():
    """A tiny gated model with ReLU, in float64: two computations of a mask must not differ by rounding."""
    torch.manual_seed(0)
    return family_model("llama", hidden_act="relu").double()


def made(model):
    yield GateMasks(model, LIMITS)
    yield ProxyMasks(model, 3, 50)
    yield ProxyMasks(model, 3, 50, ahead=True)
    yield SignMasks(model)


def inputs(model, layer):
    return [layers_of(model)[layer].get_submodule(name) for name in family_of(model.config).ffn_in]


def kept(model, masks, tokens):
    """Logits under masks, the masks (T, F) of every layer of one row, and what flowed at every site, unmasked."""
    keep, seen, begin = {}, {}, masks.begin

    def recording(*asked):
        choose = begin(*asked)

        def recorded(site, x):
            seen[site] = x.flatten(2)[0]
            if (mask := choose(site, x)) is not None:
                keep[site.layer] = mask[0]
            return mask

        return recorded

    masks.begin, masks.sites = recording, SITES
    logits = SparseModel(model, masks).logits(tokens, all_scored(tokens))
    return logits, keep, seen


def test_masked_equals_cut_out(relu, tokens):
    """One token, so that a layer has one mask, which can be cut into the weights."""
    for masks in made(relu):
        logits, keep, _ = kept(relu, masks, tokens[:1, :2])
        whole = torch.ones(1, dimensions_of(relu.config).neurons, dtype=torch.bool)
        keep = torch.cat([whole, *(keep[layer] for layer in (1, 2, 3))])
        assert 0.2 < keep[1:].double().mean() < 0.8
        with torch.no_grad():
            torch.testing.assert_close(logits, cut_out(relu, {"neurons": keep})(tokens[:1, :1]).logits)


def test_cats_keeps_neurons_with_a_large_gate(relu, tokens):
    _, keep, seen = kept(relu, GateMasks(relu, LIMITS), tokens[:1])
    for layer in (1, 2, 3):
        gate = torch.relu(seen[Site(layer, "ffn_input")] @ inputs(relu, layer)[0].weight.T)
        assert torch.equal(keep[layer], gate > LIMITS[layer])


def test_without_a_gate_cats_is_the_threshold(tokens):
    model = family_model("opt").double()
    one, other = (masks for masks in (GateMasks(model, LIMITS), ThresholdMasks(LIMITS)))
    results = [SparseModel(model, masks).logits(tokens, all_scored(tokens)) for masks in (one, other)]
    torch.testing.assert_close(*results)
    assert read(model, one, tokens) == read(model, other, tokens)


def test_sparseinfer_counts_signs(relu, tokens):
    _, keep, seen = kept(relu, SignMasks(relu), tokens[:1, :5])
    for layer in (1, 2, 3):
        for x, mask in zip(seen[Site(layer, "ffn_input")].tolist(), keep[layer].tolist(), strict=True):
            rows = inputs(relu, layer)[0].weight.tolist()
            agreeing = [sum((a < 0) == (w < 0) for a, w in zip(x, row, strict=True)) for row in rows]
            assert mask == [2 * count >= len(x) for count in agreeing]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_proxy_keeps_what_its_copy_says(tiny, tokens, ahead):
    model, count = tiny.double(), dimensions_of(tiny.config).neurons // 2
    _, keep, seen = kept(model, ProxyMasks(model, 3, 50, ahead), tokens[:1])
    act = torch.nn.functional.silu if model.config.model_type == "llama" else torch.relu
    for layer in (1, 2, 3):
        x = seen[Site(layer, "ffn_input")]
        if ahead:
            x = layers_of(model)[layer].get_submodule(family_of(model.config).ffn_norm)(seen[Site(layer, "residual")])
        products = []
        for one in inputs(model, layer):
            step = row_steps(one.weight, 3)
            levels = (torch.arange(-4, 4) + 0.5) * step  # (F, 8); the nearest of them
            nearest = (one.weight[..., None] - levels[:, None]).abs().argmin(-1)
            products.append(x @ levels.gather(1, nearest).T + (0 if one.bias is None else one.bias))
        down = layers_of(model)[layer].get_submodule(family_of(model.config).ffn_down).weight
        neurons = act(products[0]) * (products[1] if len(products) > 1 else 1)
        best = (neurons.abs() * down.norm(dim=0)).argsort(dim=-1, descending=True, stable=True)[:, :count]
        assert torch.equal(keep[layer], torch.zeros_like(keep[layer]).scatter(-1, best, True))


@pytest.mark.parametrize("family", EVERY)
def test_the_norm_before_the_ffn_makes_the_ffns_input(family, tokens):
    """Or there is none, and choosing ahead is refused in one sentence."""
    model = EVERY[family]()
    if family in ("olmo2", "phi"):
        refused(rf"'{family}'.*no norm of its own", ProxyMasks, model, 4, 50, ahead=True)
        return
    normed, seen = {}, {}
    for layer in range(4):
        ffn_norm(model, layer).register_forward_hook(lambda module, args, out, layer=layer: normed.update({layer: out}))
    with torch.no_grad(), visiting(model, lambda site, x: seen.update({site: x})):
        model(tokens)
    for layer in range(4):
        assert torch.equal(seen[Site(layer, "ffn_input")], normed[layer].view(*tokens.shape, -1))


def test_an_opt_with_norms_behind_cannot_choose_ahead():
    refused("'opt'.*no norm of its own", ProxyMasks, family_model("opt", do_layer_norm_before=False), 4, 50, ahead=True)


def test_sparseinfer_is_refused_without_relu():
    refused("sparseinfer needs .*'relu'.*'silu'", METHODS["sparseinfer"].masks, family_model("llama"), None, None)


def test_reads_are_counted_by_hand(tiny, tokens):
    """In 32 bits, 32 numbers wide; layer 0 has no copy."""
    family, neurons = tiny.config.model_type, dimensions_of(tiny.config).neurons
    whole, _, neuron = by_hand(family)
    matrices, bias = (2, 0) if family == "llama" else (1, neurons)
    for bits in (4, 3, 2):
        own = matrices * neurons * (32 * bits // 8 + 4) + 4 * bias + 4 * neurons  # weights, steps; biases; norms
        for ahead in (False, True):
            wanted = 4 * whole + 3 * (own - 4 * neurons // 2 * neuron)
            assert read(tiny, ProxyMasks(tiny, bits, 50, ahead), tokens) == wanted
    masks = GateMasks(tiny, LIMITS)
    sparse = SparseModel(tiny, masks)
    sparse.logits(tokens, all_scored(tokens))
    removed = int(sparse.removed["neurons"]) / 22
    spared = 32 * matrices  # up and down, or fc2
    assert sparse.measured_sparsity(("neurons",))["read_bytes"] == pytest.approx(4 * (whole - removed * spared))
    if family == "opt":
        sparse = SparseModel(tiny, SignMasks(tiny))
        sparse.logits(tokens, all_scored(tokens))
        removed = int(sparse.removed["neurons"]) / 22
        wanted = 4 * (whole - removed * neuron) + 3 * neurons * 32 / 8
        assert sparse.measured_sparsity(("neurons",))["read_bytes"] == pytest.approx(wanted)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_copy_has_few_values_and_the_least_error_of_the_clips(bits):
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    step = row_steps(weight, bits)
    copy = low_bit(weight, step, bits)
    assert all(len(row.unique()) <= 2**bits for row in copy)

    def error(step, bits=bits):
        return (low_bit(weight, step, bits) - weight).square().sum(1)

    for clip in CLIPS:
        other = weight.abs().amax(1, keepdim=True) * clip / (2 ** (bits - 1) - 0.5)
        assert (error(step) <= error(other) * (1 + 1e-5)).all()
    torch.testing.assert_close(low_bit(copy, row_steps(copy, bits), bits), copy)  # it is a copy of itself
    assert bits == 1 or (error(step) < error(row_steps(weight, bits - 1), bits - 1)).all()


def test_thresholds_are_read_by_method_and_sparsity_or_refused(tmp_path):
    keys = {"model": "tiny", "calibration": "text", "n": 9}
    rows = [
        keys | {"method": method, "layer": layer, "sparsity_pct": pct, "threshold": scale * pct + layer}
        for scale, method in enumerate(("threshold", "cats"), 1) for layer in (2, 0, 1) for pct in (30, 50)
    ]  # fmt: skip
    path = tmp_path / "thresholds.parquet"
    artifacts.write_table(path, THRESHOLDS.schema, THRESHOLDS.build(rows), {})
    assert read_thresholds(path, "cats", 50).tolist() == [-1, 101, 102]  # layer 0 keeps all
    assert read_thresholds(path, "threshold", 30).tolist() == [-1, 31, 32]
    refused("thresholds.parquet: no thresholds of method 'cats' at 70 %", read_thresholds, path, "cats", 70)
