"""Policies, score codes, ranking, predictors and their training."""

from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from scipy import stats

from shadowcore import artifacts
from shadowcore.errors import ConfigError
from shadowcore.method import ranking, score_quantization, trace_dataset, training
from shadowcore.method.policies import POLICIES, floored, kept_units, top_units
from shadowcore.method.predictors import PREDICTORS, Group, Predictor, groups_of
from shadowcore.method.stacks import stacks_of
from shadowcore.method.thresholds import Magnitudes, neuron_magnitudes
from shadowcore.method.trace_dataset import TraceDataset
from shadowcore.method.tracing import codes_name, feature_name, top_name
from shadowcore.method.training_state import Checkpoint
from shadowcore.method.weight_quantization import eight_bits, power_of_two, restored, stored
from shadowcore.models.families import KINDS, Dimensions, dimensions_of, family_of, layers_of
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


def test_kept_units_rounds_halves_up():
    assert [kept_units(9, pct) for pct in (0, 30, 50, 70)] == [9, 6, 5, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_closer_than_float32_tells_apart_are_counted_exactly(dtype):
    scores = (1 + 1e-9 * torch.randperm(64, generator=torch.Generator().manual_seed(0)).double()).to(dtype)
    for count in range(65):
        keep = top_units(scores, count)
        assert keep.sum() == count
        assert count in (0, 64) or scores[keep].min() >= scores[~keep].max()


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 2, 2, 2, 0], [1, 1, 1, 1, 1], [5, 4, 3, 2, 1]])
    assert top_units(scores, 2).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
        [True, True, False, False, False],
    ]
    assert top_units(scores, 0).sum() == 0 and top_units(scores, 5).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("units", [6, 7])
def test_codes_come_back_within_half_a_step(bits, units):
    scores = torch.rand(5, 3, units, generator=torch.Generator().manual_seed(0)).mul(6).exp()
    scores[0, 0] = 0
    scores[1, 1, 2] = 0
    back = score_quantization.decode(*score_quantization.encode(scores, bits), bits, units)
    assert torch.equal(back == 0, scores == 0)
    ratio = (back / scores)[scores > 0]
    half = score_quantization.step_ratio(bits) ** 0.5 * 1.0001
    assert ratio.min() >= 1 / half and ratio.max() <= half


def test_spearman_equals_scipys_with_ties():
    generator = torch.Generator().manual_seed(0)
    predicted, true = torch.randint(0, 6, (2, 5, 20), generator=generator).double()
    want = [stats.spearmanr(p, t).statistic for p, t in zip(predicted, true, strict=True)]
    torch.testing.assert_close(ranking.correlation(ranking.ranks(predicted), ranking.ranks(true)), torch.tensor(want))


def test_recall_of_the_truth_is_one_and_of_its_opposite_none():
    true = torch.arange(10.0).expand(3, 10)
    wanted, opposite = top_units(true, 5), top_units(-true, 5)
    assert (ranking.recall(wanted, wanted) == 1).all()
    assert (ranking.recall(opposite, wanted) == 0).all()


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
    with pytest.raises(ConfigError, match="predictors.segments: 4 found; 1 to 3 fit a model of 4 layers"):
        groups_of("segments", 4, 4)


@pytest.mark.parametrize("design", sorted(PREDICTORS))
def test_an_untrained_predictor_is_the_constant_one(design):
    predictor = Predictor(design, SIZES, {"heads": 3, "neurons": 5})
    for kind in KINDS:
        for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True):
            scorer.score_mean.normal_()
            layers, scores = predictor.read(group.site, torch.randn(2, 6, 8), kind)
            assert layers == group.layers and scores.shape == (2, 6, len(layers), SIZES.units(kind))
            assert torch.equal(scores, scorer.score_mean.expand_as(scores))


def learnable(count, seed):
    """Features (M, D) of layer 0's heads, and scores (M, L, U) that are a fixed function of them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 8, generator=generator).bfloat16()
    weights = torch.randn(8, 40, generator=torch.Generator().manual_seed(9))
    return features, (features.float() @ weights).square().view(count, 4, 10)


@pytest.fixture
def traces(tmp_path):
    """Opens token traces (8 bits) of given features and scores, a file for each pair."""
    with ExitStack() as stack:

        def opened(*shards, most=None):
            files = []
            for features, scores in shards:
                codes_of, top = score_quantization.encode(scores, 8)
                path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
                names = (
                    codes_name("plainact", "neurons"),
                    top_name("plainact", "neurons"),
                    feature_name(Site(0, "heads")),
                )
                tensors = dict(zip(names, (codes_of, top, features), strict=True))
                artifacts.write_tensors(path, "trace", tensors, {})
                files.append(stack.enter_context(artifacts.open_tensors(path, "trace")))
            return TraceDataset(
                files, "plainact", 8, SIZES, ["neurons"], [Site(0, "heads")], torch.device("cpu"), most=most
            )

        yield opened


RECIPE = training.Recipe(
    rank={"neurons": 64}, segments=1, target="score", epochs={"neurons": 12}, batch=32, learning_rate=0.01,
    weight_decay=0.0,
)  # fmt: skip
SHAPES = [
    {},
    {"target": "rank"},
    {"scaling": "min_max"},
    {"bits": 8},
    {"bits": 8, "scaling": "min_max"},
    {"block": 5, "bits": 8},
    {"target": "active", "active_pct": 30},
    {"target": "active", "bits": 8},
    {"scaling": "per_example"},
    {"scaling": "per_example", "epoch_kept": "last", "bits": 8},
]


def shaped(recipe):
    per_example = recipe.scaling == "per_example"
    return Predictor("shadow", SIZES, {"neurons": 64}, 1, recipe.bits, recipe.block, per_example)


def trained(traces, seed=0, **more):
    features, scores = learnable(1024, 1)
    recipe = replace(RECIPE, **more)
    torch.manual_seed(seed)
    predictor = shaped(recipe)
    train = traces((features[:500], scores[:500]), (features[500:], scores[500:]))
    (fit,) = training.fit(predictor, train, traces(learnable(256, 2)), recipe, seed)["neurons"]
    return predictor, fit


@pytest.mark.parametrize("more", SHAPES, ids=str)
def test_training_beats_the_constant_predictor_and_repeats_itself(traces, more):
    predictor, fit = trained(traces, **more)
    assert fit.loss < 0.6 * fit.loss_constant and fit.best_epoch > 0
    again, _ = trained(traces, **more)
    assert all(torch.equal(a, b) for a, b in zip(predictor.parameters(), again.parameters(), strict=True))


class Killed(Exception):
    """In place of a signal."""


def killed_after(epoch):
    def progress(done, total):
        if done == epoch:
            raise Killed

    return progress


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(traces, tmp_path):
    features, scores = learnable(256, 1)
    train, held = traces((features, scores)), traces(learnable(64, 2))
    recipe, result = replace(RECIPE, epochs={"neurons": 6}), tmp_path / "predictor.safetensors"

    def learn(progress=lambda done, total: None, spec=1, seconds=0.0):
        torch.manual_seed(0)
        predictor = Predictor("shadow", SIZES, {"neurons": 64})
        checkpoint = Checkpoint(result, {"spec": spec}, seconds)
        (fit,) = training.fit(predictor, train, held, recipe, 0, progress, checkpoint)["neurons"]
        return fit, predictor.state_dict()

    def same(one, other):
        (fit, state), (again, values) = one, other
        return fit == again and all(torch.equal(value, values[name]) for name, value in state.items())

    whole = learn(seconds=60.0)
    assert not list(tmp_path.glob(".*.checkpoint.safetensors"))  # it took less
    for last in (2, 5):  # killed twice
        with pytest.raises(Killed):
            learn(killed_after(last))
    seen = []
    assert same(learn(lambda done, total: seen.append(done)), whole) and seen == [6]
    # of other inputs it is passed over
    seen.clear()
    assert same(learn(lambda done, total: seen.append(done), 2), whole) and seen == [1, 2, 3, 4, 5, 6]
    Checkpoint(result, {}).remove()
    assert not list(tmp_path.glob(".*.checkpoint.safetensors"))


@pytest.mark.parametrize("more", SHAPES, ids=str)
def test_a_trained_predictor_is_exactly_what_its_file_holds(traces, more):
    predictor, fit = trained(traces, **more, epochs={"neurons": 2})
    assert more.get("epoch_kept") != "last" or fit.best_epoch == 2
    file = stored(predictor.state_dict(), predictor.bits)
    weights = {str(value.dtype) for name, value in file.items() if name.endswith("weight")}
    assert weights == {"torch.int8" if predictor.bits == 8 else "torch.bfloat16"}
    assert {str(value.dtype) for name, value in file.items() if not name.endswith("weight")} == {"torch.float32"}
    again = shaped(replace(RECIPE, **more))
    again.load_state_dict(restored(file))
    assert all(torch.equal(value, file[name]) for name, value in stored(again.state_dict(), again.bits).items())
    features = learnable(16, 5)[0].float()
    site = Site(0, "heads")
    assert torch.equal(again.read(site, features, "neurons")[1], predictor.read(site, features, "neurons")[1])


def test_training_on_noise_never_ends_worse_than_the_constant_predictor(traces):
    generator = torch.Generator().manual_seed(3)
    noise = [
        (torch.randn(64, 8, generator=generator).bfloat16(), torch.rand(64, 4, 10, generator=generator))
        for _ in range(2)
    ]
    predictor = Predictor("shadow", SIZES, {"neurons": 64})
    (fit,) = training.fit(predictor, traces(noise[0]), traces(noise[1]), RECIPE, 0)["neurons"]
    assert fit.loss <= fit.loss_constant


def scaled(predictor, train, recipe):
    training._scale(predictor, {kind: stacks_of(predictor, kind, recipe.batch) for kind in train.kinds}, train, recipe)


def test_scalings_are_the_means_and_deviations_of_all_tokens(traces):
    features, scores = learnable(100, 1)
    predictor = Predictor("shadow", SIZES, {"neurons": 4})
    train = traces((features[:70], scores[:70]), (features[70:], scores[70:]))
    scaled(predictor, train, RECIPE)
    (scorer,) = predictor.scorers["neurons"]
    kept = score_quantization.decode(*score_quantization.encode(scores, 8), 8, 10)[:, 1:]
    torch.testing.assert_close(scorer.feature_mean, features.float().mean(0))
    torch.testing.assert_close(scorer.feature_scale, features.float().std(0, correction=0))
    torch.testing.assert_close(scorer.score_mean, kept.mean(0))
    torch.testing.assert_close(scorer.score_scale, kept.var(0, correction=0).mean(-1, keepdim=True).sqrt())
    torch.testing.assert_close(training.mean_scores(train, "neurons", 32)[1:], kept.mean(0))


@pytest.mark.parametrize("scaling", training.SCALINGS)
def test_scores_of_any_size_are_learned_alike(traces, scaling):
    """Squared gradients (fisher) are tiny: a power of two times smaller, they train the same predictor."""
    features, scores = learnable(256, 1)
    found = []
    for size in (1.0, 2.0**-46):
        torch.manual_seed(0)
        predictor = Predictor("shadow", SIZES, {"neurons": 16})
        some, recipe = traces((features, scores * size)), replace(RECIPE, epochs={"neurons": 2}, scaling=scaling)
        (fit,) = training.fit(predictor, some, some, recipe, 0)["neurons"]
        unit = 1.0 if scaling == "per_example" else size  # scaled scores have no unit
        found.append((fit, predictor.scorers["neurons"][0](features.float()) / unit))
    torch.testing.assert_close(*(values for _, values in found), rtol=1e-4, atol=1e-3)
    assert found[1][0].loss == pytest.approx(found[0][0].loss, rel=1e-4)


@pytest.mark.parametrize("target", training.TARGETS)
def test_targets_leave_the_order_of_units(target):
    scores = torch.rand(3, 4, 10, generator=torch.Generator().manual_seed(0)) ** 3
    found = training.TARGETS[target](scores, RECIPE).gather(-1, scores.argsort(-1))
    assert (found.diff(dim=-1) >= 0).all()
    assert len(found[0, 0].unique()) == (2 if target == "active" else 10)


def test_published_scaling_is_from_the_least_to_the_most(traces):
    features, scores = learnable(100, 1)
    predictor = Predictor("shadow", SIZES, {"neurons": 4})
    train = traces((features[:70], scores[:70]), (features[70:], scores[70:]))
    scaled(predictor, train, replace(RECIPE, scaling="min_max"))
    (scorer,), features = predictor.scorers["neurons"], features.float()
    kept = score_quantization.decode(*score_quantization.encode(scores, 8), 8, 10)[:, 1:]
    (low, high), (least, most) = features.aminmax(dim=0), kept.transpose(0, 1).flatten(1).aminmax(dim=1)
    torch.testing.assert_close((scorer.feature_mean, scorer.feature_scale), (low, high - low))
    torch.testing.assert_close(scorer.score_mean, least[:, None].expand(3, 10))
    torch.testing.assert_close(scorer.score_scale, (most - least)[:, None])
    # training starts at the constant predictor all the same
    torch.testing.assert_close(scorer(features[:5]), kept.mean(0).expand(5, 3, 10))


def test_kinds_of_unit_learn_for_epochs_of_their_own(tmp_path):
    """Heads that stop at epoch 2 end as they do alone, neurons that go on as they do alone."""
    generator = torch.Generator().manual_seed(0)
    tensors = {feature_name(Site(0, "heads")): torch.randn(64, 8, generator=generator).bfloat16()}
    for kind in KINDS:
        encoded = score_quantization.encode(torch.rand(64, 4, SIZES.units(kind), generator=generator), 8)
        tensors |= dict(zip((codes_name("plainact", kind), top_name("plainact", kind)), encoded, strict=True))
    artifacts.write_tensors(tmp_path / "t.safetensors", "trace", tensors, {})

    def learned(kinds, epochs):
        torch.manual_seed(0)
        predictor = Predictor("shadow", SIZES, {kind: 3 for kind in KINDS})
        for kind in set(KINDS) - set(kinds):
            del predictor.scorers[kind]
        recipe = replace(RECIPE, rank={kind: 3 for kind in kinds}, epochs=epochs)
        with artifacts.open_tensors(tmp_path / "t.safetensors", "trace") as file:
            some = TraceDataset([file], "plainact", 8, SIZES, kinds, [Site(0, "heads")], torch.device("cpu"))
            training.fit(predictor, some, some, recipe, 0)
        return {name: value for name, value in predictor.state_dict().items()}

    together = learned(KINDS, {"heads": 2, "neurons": 5})
    for kind, epochs in (("heads", 2), ("neurons", 5)):
        for name, value in learned((kind,), {kind: epochs}).items():
            assert torch.equal(value, together[name]), name


def test_a_block_is_learned_by_the_mean_of_its_units_and_kept_as_one(traces):
    features, scores = learnable(100, 1)
    predictor = Predictor("shadow", SIZES, {"neurons": 4}, block=5)
    scaled(predictor, traces((features, scores)), replace(RECIPE, block=5))
    (scorer,) = predictor.scorers["neurons"]
    kept = score_quantization.decode(*score_quantization.encode(scores, 8), 8, 10)[:, 1:]
    torch.testing.assert_close(scorer.score_mean, kept.unflatten(-1, (2, 5)).mean(-1).mean(0))
    found = predictor.read(Site(0, "heads"), features.float(), "neurons")[1].detach()
    assert found.shape == (100, 3, 2)
    mask = predictor.spread(POLICIES["per_layer"](found, 50), "neurons").unflatten(-1, (2, 5))
    assert (mask.all(-1) | ~mask.any(-1)).all() and (mask.sum((-2, -1)) == 5).all()
    torch.testing.assert_close(predictor.gathered(predictor.spread(found, "neurons"), "neurons"), 5 * found)
    with pytest.raises(ConfigError, match="predictors.block: 4 found; a divisor of the model's 10 neurons fits"):
        Predictor("shadow", SIZES, {"neurons": 4}, block=4)


@pytest.mark.parametrize("rows", [(7,), (3, 5)])
def test_eight_bits_are_near_and_stay_the_same_when_rounded_again(rows):
    weight = torch.randn(*rows, 40, generator=torch.Generator().manual_seed(0)).mul(3).exp()
    weight[0] *= -1e-5
    rounded, step = eight_bits(weight)
    assert rounded.abs().amax(-1).eq(127).all()
    assert ((rounded * step[..., None] - weight).abs() <= step[..., None] / 2 * 1.001).all()
    for scale in (power_of_two(torch.rand(40) + 1e-3), 1.0):
        again, same = eight_bits(rounded * step[..., None] * scale / scale)
        assert torch.equal(again, rounded) and torch.equal(same, step)
    assert torch.equal(
        power_of_two(torch.tensor([0.7, 0.71, 1.0, 3.0, 2**-20.4])), torch.tensor([0.5, 1, 1, 4, 2**-20])
    )


def test_chunks_and_batches_hold_every_token_once(traces, monkeypatch):
    monkeypatch.setattr(trace_dataset, "CHUNK_BYTES", 800)  # 11 tokens of 4 x (10 + 4) + 8 x 2 bytes
    features, scores = learnable(50, 1)
    some = traces((features[:30], scores[:30]), (features[30:], scores[30:]))
    assert len(some) == 50 and [len(chunk) for chunk in some.chunks()] == [11, 11, 8, 11, 9]
    whole = torch.cat([chunk.scores("neurons", torch.arange(len(chunk))) for chunk in some.chunks()])
    assert torch.equal(whole, score_quantization.decode(*score_quantization.encode(scores, 8), 8, 10))
    batches = list(some.shuffled(4, torch.Generator().manual_seed(0)))
    assert len(batches) == some.batches(4) and max(len(index) for _, index in batches) <= 4
    seen = torch.cat([chunk.feature(Site(0, "heads"), index) for chunk, index in batches])
    assert not torch.equal(seen, features.float())
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, features.float().tolist()))


@pytest.mark.parametrize("most", [1, 11, 35, 50, 60])
def test_the_first_tokens_alone(traces, monkeypatch, most):
    monkeypatch.setattr(trace_dataset, "CHUNK_BYTES", 800)
    features, scores = learnable(50, 1)
    files = (features[:30], scores[:30]), (features[30:], scores[30:])
    some, whole = traces(*files, most=most), traces(*files)
    assert len(some) == min(most, 50)
    first, every = (
        torch.cat([chunk.feature(Site(0, "heads"), torch.arange(len(chunk))) for chunk in one.chunks()])
        for one in (some, whole)
    )
    assert torch.equal(first, every[:most])


def test_more_tokens_a_batch_than_there_are_is_an_error(traces):
    few = traces(learnable(8, 1))
    with pytest.raises(ConfigError, match="predictors.batch: 32 tokens, but the traces hold only 8"):
        training.fit(Predictor("shadow", SIZES, {"neurons": 4}), few, few, RECIPE, 0)


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
