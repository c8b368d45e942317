"""Tuning on the sparse model: what its gradient is, and that it brings the sparse model nearer to the dense one."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.methods import METHODS
from shadowcore.measure.sparsity import FixedMasks, PredictedMasks
from shadowcore.method.policies import POLICIES, per_layer
from shadowcore.method.predictors import TUNED_PROXIES, Predictor
from shadowcore.method.tracing import TracePlan, trace
from shadowcore.method.training import set_constants
from shadowcore.method.training_state import Checkpoint
from shadowcore.method.tuning import Tuning, gate_losses, tune
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.models.losses import divergences
from shadowcore.models.recording import Site, visiting


def test_a_divergence_is_the_sum_over_the_vocabulary():
    generator = torch.Generator().manual_seed(0)
    dense, sparse = torch.randn(2, 2, 5, 7, generator=generator)
    scored = torch.ones(2, 6, dtype=torch.bool)
    scored[0, 3:] = False
    found = divergences(sparse, dense, scored)
    p, q = dense.softmax(-1), sparse.softmax(-1)
    by_hand = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(found, torch.stack([by_hand[0, :2].mean(), by_hand[1].mean()]))
    torch.testing.assert_close(divergences(dense, dense, scored), torch.zeros(2))


@pytest.mark.parametrize("block", [1, 8])
def test_a_gate_opens_where_a_score_passes_the_lowest_kept(tiny, block):
    """The gradient by one score is slope x sigmoid'((score - lowest kept) / temperature) / (temperature x scale).

    A block's slope is that of all its units: they open together.
    """
    sizes = dimensions_of(tiny.config)
    predictor = Predictor("segments", sizes, {"neurons": 3}, block=block)
    (group,), (scorer,) = predictor.groups, predictor.scorers["neurons"]
    generator = torch.Generator().manual_seed(0)
    layers, units = len(group.layers), sizes.neurons // block
    scorer.score_mean.copy_(torch.rand(layers, units, generator=generator))
    scorer.score_scale.fill_(0.5)
    features = {group.site: torch.randn(1, 1, sizes.width, generator=generator)}
    slopes = {Site(layer, "neurons"): torch.randn(1, 1, sizes.neurons, generator=generator) for layer in group.layers}
    gate_losses(predictor, "neurons", features, slopes, 50, temperature=0.3).backward()
    scores = scorer.score_mean / 0.5  # an untrained predictor is the constant one
    lowest = scores.sort(descending=True).values[:, (units + 1) // 2 - 1, None]
    gates = torch.sigmoid((scores - lowest) / 0.3)
    slope = (
        torch.stack([slopes[Site(layer, "neurons")][0, 0] for layer in group.layers]).unflatten(1, (-1, block)).sum(2)
    )
    # the outer layer's bias is a deviation, in the same units as `scores`
    torch.testing.assert_close(scorer.outer.bias.grad.view(layers, units), slope * gates * (1 - gates) / 0.3)


@torch.no_grad()
def test_tuned_constants_begin_as_static_and_read_nothing(tiny):
    """The masks of `static` at every policy and sparsity, whatever the features are."""
    windows = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(0))
    found = trace(tiny, windows, TracePlan(["plainact", "l2_norm"], [], 4, 2, [], 0), 2)
    sizes = dimensions_of(tiny.config)
    for criterion, kind in product(("plainact", "l2_norm"), KINDS):
        predictor = Predictor("static_tuned", sizes, {"heads": 3, "neurons": 5}, bits=8, block=8)
        set_constants(predictor, [Opened(found)], criterion)
        means = {kind: found[f"sequence.{criterion}.{kind}.mean"]}
        for policy, pct in product(POLICIES, (0, 30, 50, 90)):
            static = FixedMasks(means, policy, pct)
            ours = METHODS["static_tuned"].masks(
                tiny, SimpleNamespace(kinds=(kind,), policy=policy, sparsity_pct=pct), predictor
            )
            assert torch.equal(ours.keep[kind], static.keep[kind]) and ours.selector_bytes(tiny) == 0
            tuned = PredictedMasks(predictor, (kind,), policy, pct)  # as they act while they are tuned
            _, keep = tuned._chosen(predictor.groups[0].site, torch.randn(2, 1, sizes.width), kind)
            assert torch.equal(keep, static.keep[kind][1:].expand_as(keep))


@pytest.mark.parametrize("name", ["proxy3_tuned", "proxy2_ahead_tuned"])
def test_tuned_gains_begin_as_the_proxy_and_multiply_its_norms(tiny, tokens, name):
    """Before tuning the masks are the proxy's; afterwards those of the scores times the gains. No byte is added."""
    bits, ahead = TUNED_PROXIES[name]
    predictor, proxy = Predictor(name, dimensions_of(tiny.config), {"heads": 2, "neurons": 8}), None
    for gains in (torch.zeros(3, predictor.sizes.neurons), torch.randn(3, predictor.sizes.neurons)):
        for scorer, values in zip(predictor.scorers["neurons"], gains, strict=True):
            scorer.outer.bias.data.copy_(values)
        seen = {}
        with torch.no_grad(), visiting(tiny, lambda site, x, seen=seen: seen.update({site: x})):
            tiny(tokens)
        one = SimpleNamespace(sparsity_pct=50)
        ours, proxy = METHODS[name].masks(tiny, one, predictor), ProxyMasks(tiny, bits, 50, ahead)
        predictor.proxy = proxy.scores
        tuned = PredictedMasks(predictor, ("neurons",), "per_layer", 50)
        for layer, values in enumerate(gains, 1):
            site = Site(layer, proxy.read_at)
            with torch.no_grad():
                scores = proxy.scores(layer, seen[site])
                wanted = per_layer(scores * values.exp(), 50)
                _, keep = tuned._chosen(site, predictor.feature(site, seen[site]), "neurons")
                assert torch.equal(ours.keep(layer, seen[site]), wanted)
            above = scores > 0  # of the zeros that ReLU makes, any may be kept
            assert torch.equal(keep.squeeze(-2) & above, wanted & above)
        assert ours.selector_bytes(tiny) == proxy.selector_bytes(tiny)


class Opened(dict):
    """Tensors in memory as an open file has them."""

    get_tensor = dict.__getitem__

    def get_slice(self, name):
        return SimpleNamespace(get_shape=lambda: list(self[name].shape))


@pytest.mark.parametrize(
    "tiny, design",
    [("opt", "shadow"), ("llama", "layerwise"), ("opt", "segments"), ("llama", "dejavu"), ("opt", "static_tuned"),
     ("llama", "proxy2_tuned"), ("opt", "proxy2_ahead_tuned")],
    indirect=["tiny"],
)  # fmt: skip
def test_tuning_brings_the_sparse_model_nearer_to_the_dense_one_and_repeats_itself(tiny, design, tmp_path):
    sizes = dimensions_of(tiny.config)
    windows = torch.randint(tiny.config.vocab_size, (8, 12), generator=torch.Generator().manual_seed(3))
    tuning = Tuning(epochs=4, batch=2, learning_rate=0.02, lowest_pct=50, highest_pct=50, temperature=0.5)

    def tuned(progress=lambda done, total: None):
        torch.manual_seed(0)
        predictor = Predictor(design, sizes, {"neurons": 8, "heads": 2}, 2)
        if design in TUNED_PROXIES:
            predictor.proxy = ProxyMasks(tiny, *TUNED_PROXIES[design][:1], 0, *TUNED_PROXIES[design][1:]).scores
        others = predictor.scorers["heads"] if "heads" in predictor.kinds else torch.nn.Module()
        before = {name: value.clone() for name, value in others.state_dict().items()}

        def masking(pct, ids, scored):
            return PredictedMasks(predictor, ("neurons",), "per_layer", pct).begin(ids, scored)

        checkpoint = Checkpoint(tmp_path / "predictor", {}, seconds=0.0)
        found = tune(tiny, predictor, ("neurons",), windows, windows, tuning, 0, masking, progress, checkpoint)
        for name, value in others.state_dict().items():  # not tuned, only stored in 16 bits
            torch.testing.assert_close(value, before[name], rtol=2**-8, atol=1e-6)
        return found, predictor.state_dict()

    def killed(done, total):
        if done == 2:
            raise KeyboardInterrupt

    found, state = tuned()
    (tmp_path / ".predictor.checkpoint.safetensors").unlink()
    with pytest.raises(KeyboardInterrupt):
        tuned(killed)
    again, same = tuned(lambda done, total: done > 2 or pytest.fail("began anew"))
    assert found.loss < found.loss_constant and found.best_epoch > 0
    assert found == again and all(torch.equal(value, same[name]) for name, value in state.items())
    assert all(not parameter.grad for parameter in tiny.parameters() if parameter.grad is not None)
