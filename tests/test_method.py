"""Policies, score codes, ranking, predictor designs and magnitude thresholds."""

from itertools import combinations

import pytest
import torch
from conftest import refused
from scipy import stats

from shadowcore.method import ranking, score_quantization
from shadowcore.method.policies import POLICIES, floored, kept_units, top_units
from shadowcore.method.predictors import PREDICTORS, Group, groups_of
from shadowcore.method.thresholds import Magnitudes, neuron_magnitudes
from shadowcore.models.families import Dimensions, dimensions_of, family_of, layers_of
from shadowcore.models.recording import Site, visiting

SIZES = Dimensions(layers=4, width=8, heads=4, kv_heads=2, head_width=2, neurons=10, vocabulary=96, positions=64)


@pytest.mark.parametrize("pct", [0, 30, 50, 70, 99])
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_policies_keep_exactly_their_share_and_the_best(name, pct):
    scores = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    keep = POLICIES[name](scores, pct)
    assert keep.dtype == torch.bool and keep.shape == scores.shape
    if name == "per_layer":
        assert (keep.sum(-1) == kept_units(10, pct)).all()
    else:
        assert (keep.sum((-2, -1)) == kept_units(40, pct)).all()
    if name == "global":
        for row, mask in zip(scores, keep, strict=True):
            if mask.any() and not mask.all():
                assert row[mask].min() > row[~mask].max()


@pytest.mark.parametrize(("units", "pct", "floor"), [(4, 60, 1), (4, 90, 0), (4, 70, 1), (4, 0, 4), (6, 95, 0)])
def test_floored_keeps_the_best_that_its_floors_allow(units, pct, floor):
    """Against every mask there is: 3 layers, each keeping a unit at least, if that many are kept at all."""
    scores = torch.randn(5, 3, units, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 5  # global leaves the last layer nothing
    scores[:, 2] -= 5
    keep = floored(scores, pct)
    total = kept_units(3 * units, pct)
    assert (keep.sum((-2, -1)) == total).all() and (keep.sum(-1) >= floor).all()
    for row, mask in zip(scores, keep, strict=True):
        best = max(
            row.flatten()[list(kept)].sum().item()
            for kept in combinations(range(3 * units), total)
            if min(sum(unit // units == layer for unit in kept) for layer in range(3)) >= min(floor, 1)
        )
        assert row[mask].sum().item() == pytest.approx(best, rel=1e-5)


def test_floored_guards_a_32nd_of_the_neurons_and_is_global_where_nothing_falls_short():
    scores = torch.randn(2, 3, 320, generator=torch.Generator().manual_seed(0))
    assert torch.equal(floored(scores, 50), POLICIES["global"](scores, 50))
    scores[:, 1] -= 100
    keep = floored(scores, 80)
    assert (keep[:, 1].sum(-1) == 10).all() and (keep.sum((-2, -1)) == kept_units(960, 80)).all()
    assert torch.equal(keep[:, 1], top_units(scores[:, 1], 10))


def test_halves_are_rounded_up_and_ties_go_to_the_lower_index():
    assert [kept_units(9, pct) for pct in (0, 30, 50, 70)] == [9, 6, 5, 3]
    scores = torch.tensor([[1.0, 2, 2, 2, 0], [1, 1, 1, 1, 1], [5, 4, 3, 2, 1]])
    assert top_units(scores, 2).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert top_units(scores, 0).sum() == 0 and top_units(scores, 5).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_closer_than_float32_tells_apart_are_counted_exactly(dtype):
    scores = (1 + 1e-9 * torch.randperm(64, generator=torch.Generator().manual_seed(0)).double()).to(dtype)
    for count in range(65):
        keep = top_units(scores, count)
        assert keep.sum() == count
        assert count in (0, 64) or scores[keep].min() >= scores[~keep].max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("units", [1, 6, 7])
def test_codes_are_steps_of_a_ladder_and_come_back_within_half_a_step(bits, units):
    """By the definition, a code at a time, bit by bit."""
    scores = torch.rand(5, 3, units, generator=torch.Generator().manual_seed(0)).mul(6).exp()
    scores[0, 0] = 0
    codes, top = score_quantization.encode(scores, bits)
    back, ratio = score_quantization.decode(codes, top, bits, units), score_quantization.step_ratio(bits)
    assert torch.equal(back == 0, scores == 0)
    error = (back / scores)[scores > 0].log().abs().exp()
    assert error.max() <= ratio**0.5 * 1.0001
    ladder = ratio ** (torch.arange(2**bits, dtype=torch.float32) - (2**bits - 1))
    ladder[0] = 0
    single = codes if bits == 8 else torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :units]
    expected = torch.tensor([ladder[code].item() for code in single.flatten().tolist()]).view(scores.shape) * top
    assert torch.equal(back, expected)


def test_spearman_equals_scipys_with_ties():
    generator = torch.Generator().manual_seed(0)
    predicted, true = torch.randint(0, 6, (2, 5, 20), generator=generator).double()
    want = [stats.spearmanr(p, t).statistic for p, t in zip(predicted, true, strict=True)]
    torch.testing.assert_close(ranking.correlation(ranking.ranks(predicted), ranking.ranks(true)), torch.tensor(want))


def test_precision_is_recall_the_other_way_round():
    wanted = torch.tensor([[True, True, True, False], [False] * 4, [True] * 4])
    kept = torch.tensor([[True, False, False, True], [True] * 4, [False] * 4])
    assert ranking.recall(kept, wanted).tolist() == [pytest.approx(1 / 3), 1, 0]
    assert ranking.recall(wanted, kept).tolist() == [1 / 2, 0, 1]


@pytest.mark.parametrize("design", sorted(PREDICTORS))
def test_predictors_cover_every_layer_but_the_first_once(design):
    groups = PREDICTORS[design](SIZES.layers)
    assert sorted(layer for group in groups for layer in group.layers) == [1, 2, 3]
    # causal: nothing is read after what it decides, neurons or (but for layerwise_own) heads
    order = {"residual": 0, "heads": 1, "ffn_residual": 2, "neurons": 3}
    decided = "neurons" if design == "layerwise_own" else "heads"
    for group in groups:
        assert (group.site.layer, order[group.site.what]) < (min(group.layers), order[decided])


def test_segments_lie_between_one_predictor_and_one_per_layer():
    assert groups_of("segments", 30, 1) == [Group(Site(1, "residual"), tuple(range(1, 30)))]
    assert groups_of("segments", 30, 29) == [Group(Site(layer, "residual"), (layer,)) for layer in range(1, 30)]
    for count in (2, 3, 6, 10):
        groups = groups_of("segments", 30, count)
        assert [layer for group in groups for layer in group.layers] == list(range(1, 30))
        assert all(group.site == Site(group.layers[0], "residual") for group in groups)
        sizes = {len(group.layers) for group in groups}
        assert len(groups) == count and max(sizes) - min(sizes) <= 1
    refused("predictors.segments: 4 .*4 layers.* 1 to 3", groups_of, "segments", 4, 4)


@pytest.mark.parametrize("pct", [0, 1, 30, 50, 99])
def test_a_threshold_is_a_bin_from_the_exact_quantile(pct):
    values = torch.randn(7, 300, generator=torch.Generator().manual_seed(0)).exp()
    values *= (-1.0) ** torch.arange(300)
    found = Magnitudes(2)
    for part in values.split([3, 4]):
        found.add(1, part)
    threshold, ordered = found.threshold(1, pct), values.abs().flatten().sort().values
    needed = -(-pct * len(ordered) // 100)  # rounded up
    assert (ordered <= threshold).sum() >= needed
    assert needed == 0 or threshold < ordered[needed - 1] * (1 + 2**-9)


def test_a_share_of_zeros_above_the_sparsity_has_a_threshold_that_removes_just_them():
    found = Magnitudes(1)
    found.add(0, torch.cat((torch.zeros(60), torch.full((40,), 1e-6))))
    assert 0 <= found.threshold(0, 50) < 1e-6 <= found.threshold(0, 61)


def test_magnitudes_of_a_model_are_of_every_token_that_predicts(tiny):
    windows = torch.randint(3, 96, (3, 10), generator=torch.Generator().manual_seed(0))
    (found, gates), seen = neuron_magnitudes(tiny, windows, 2, ["threshold", "cats"]).values(), {}
    family, gate_outputs = family_of(tiny.config), []
    for layer in layers_of(tiny):
        gate = layer.get_submodule(family.ffn_in[0])
        gate.register_forward_hook(lambda module, args, out: gate_outputs.append(out))
    with torch.no_grad(), visiting(tiny, lambda site, x: seen.update({site: x})):
        tiny(windows[:, :-1])
    for layer in range(4):
        again = Magnitudes(4)
        again.add(layer, seen[Site(layer, "neurons")])
        assert found.counts[layer].sum() == 27 * dimensions_of(tiny.config).neurons
        for pct in (30, 70):  # a batch of another size rounds otherwise
            assert found.threshold(layer, pct) == pytest.approx(again.threshold(layer, pct), rel=0.01)
        of_gate = Magnitudes(4)
        act = torch.nn.functional.silu if tiny.config.model_type == "llama" else torch.relu
        of_gate.add(layer, act(gate_outputs[layer]))
        assert gates.threshold(layer, 70) == pytest.approx(of_gate.threshold(layer, 70), rel=0.01)
