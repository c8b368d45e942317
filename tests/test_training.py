"""From traces to a predictor: each group ends where it ends alone, an interrupted training in the same bytes."""

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import refused

from shadowcore import artifacts
from shadowcore.method import stacks, trace_dataset, training
from shadowcore.method.policies import POLICIES
from shadowcore.method.predictors import Predictor, unit_range
from shadowcore.method.score_quantization import decode, encode
from shadowcore.method.trace_dataset import open_traces
from shadowcore.method.tracing import SCHEMA, codes_name, feature_name, top_name
from shadowcore.method.training_state import Checkpoint
from shadowcore.method.weight_quantization import restored, stored
from shadowcore.models.families import KINDS, Dimensions
from shadowcore.stages.train_predictor import judged, order_of

SIZES = Dimensions(layers=7, width=8, heads=5, kv_heads=5, head_width=2, neurons=12, vocabulary=10, positions=16)
RECIPE = training.Recipe(
    rank={"heads": 3, "neurons": 6}, segments=4, target="sqrt", epochs={"heads": 2, "neurons": 3}, batch=16,
    learning_rate=0.01, weight_decay=0.01,
)  # fmt: skip
DESIGNS = ["layerwise", "segments", "shadow"]  # 6 groups of one shape; 1, 2, 1 and 2 layers; 1 group


def new(design="shadow", recipe=RECIPE):
    torch.manual_seed(0)
    shape = recipe.rank, recipe.segments, recipe.bits, recipe.block, recipe.scaling == "per_example"
    return Predictor(design, SIZES, *shape)


def examples(predictor, count, seed=0):
    """Features by site and scores (M, L, U) by kind: all of them functions of the same hidden numbers."""
    hidden = torch.randn(count, 8, generator=torch.Generator().manual_seed(count + seed))
    fixed = torch.Generator().manual_seed(9)
    features, scores = {}, {}
    for kind in KINDS:
        weights = torch.randn(8, SIZES.layers * SIZES.units(kind), generator=fixed)
        scores[kind] = (hidden @ weights).square().view(count, SIZES.layers, -1)
    for site in sorted({group.site for group in predictor.groups}):
        width = SIZES.heads * SIZES.head_width if site.what == "heads" else SIZES.width
        features[site] = (hidden @ torch.randn(8, width, generator=fixed)).bfloat16()
    return features, scores


@pytest.fixture
def traces(tmp_path):
    """Opens traces of a predictor's features and scores, a file for each shard."""
    with ExitStack() as stack:

        def opened(predictor, *shards, bits=8, most=None):
            paths = []
            for features, scores in shards:
                tensors = {feature_name(site): feature for site, feature in features.items()}
                for kind, values in scores.items():
                    tensors[codes_name("snip", kind)], tensors[top_name("snip", kind)] = encode(values, bits)
                paths.append(tmp_path / f"{len(list(tmp_path.iterdir()))}.trace")
                artifacts.write_tensors(paths[-1], SCHEMA, tensors, {})
            return open_traces(stack, paths, predictor, "snip", bits, most=most)

        yield opened


@pytest.fixture
def splits(traces):
    """So many tokens to train on, in two shards, and 40 held-out ones."""

    def made(predictor, count=70):
        shards = [examples(predictor, some) for some in (count // 2, count - count // 2)]
        return traces(predictor, *shards), traces(predictor, examples(predictor, 40))

    return made


def stacks_by_kind(predictor, batch):
    return {kind: stacks.stacks_of(predictor, kind, batch) for kind in predictor.kinds}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def wanted_of(scores, recipe):
    """What is learned of scores (M, layers, units): their roots, or which units are a layer's highest third."""
    if recipe.target == "sqrt":
        return scores.sqrt()
    place = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)  # of equal scores the lower index first
    return (place < round(0.33 * scores.shape[-1])).float()


def one_by_one(predictor, train, recipe):
    """The last epoch's weights of every scorer, trained alone by torch's own derivatives and optimiser."""
    classes = recipe.target == "active"
    loss = torch.nn.functional.binary_cross_entropy_with_logits if classes else torch.nn.functional.mse_loss
    for kind in KINDS:
        for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True):
            steps = recipe.epochs[kind] * train.batches(recipe.batch)
            optimizer = torch.optim.AdamW(scorer.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            layers, generator = slice(group.layers[0], group.layers[-1] + 1), torch.Generator().manual_seed(1)
            whole = next(train.chunks())
            everything = torch.arange(len(whole))
            scores = wanted_of(whole.scores(kind, everything)[:, layers], recipe)
            feature = whole.feature(group.site, everything)
            scorer.feature_mean.copy_(feature.mean(0))
            scorer.feature_scale.copy_(feature.std(0, correction=0))
            if classes:  # scores are logits: they have no scale, and begin at that of the mean
                scorer.outer.bias.data.copy_(scores.mean(0).logit(eps=1e-3).flatten())
            else:
                scorer.score_mean.copy_(scores.mean(0))
                scorer.score_scale.copy_(scores.var(0, correction=0).mean(-1, keepdim=True).sqrt())
            for _ in range(recipe.epochs[kind]):
                for chunk, index in train.shuffled(recipe.batch, generator):
                    scores = wanted_of(chunk.scores(kind, index)[:, layers], recipe)
                    wanted = (scores - scorer.score_mean) / scorer.score_scale
                    loss(scorer.deviation(chunk.feature(group.site, index)), wanted).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
    return {name: value.detach().clone() for name, value in predictor.state_dict().items()}


@pytest.mark.parametrize("target", ["sqrt", "active"])
@pytest.mark.parametrize("together", [1, 2**21])
@pytest.mark.parametrize("design", DESIGNS)
def test_groups_and_kinds_learn_together_what_they_learn_alone(traces, design, together, target, monkeypatch):
    """Also where a stack has room for one group only; classifiers, too."""
    monkeypatch.setitem(stacks.STACK_BYTES, "cpu", together)
    recipe, predictor, ends = replace(RECIPE, target=target, active_pct=33), new(design), {}
    train = traces(predictor, examples(predictor, 70))
    alone, finish = one_by_one(new(design), train, recipe), training.TrainingState.finish

    def see(state, epoch, losses):
        """Weights where training ended, before the best epoch is taken."""
        ends.update({name: value.detach().clone() for name, value in predictor.state_dict().items()})
        finish(state, epoch, losses)

    monkeypatch.setattr(training.TrainingState, "finish", see)
    training.fit(predictor, train, traces(predictor, examples(predictor, 40)), recipe, 1)
    start = new(design).state_dict()
    near = {"sqrt": 1e-4, "active": 3e-3}[target]  # of what was learned; Adam makes much of rounding in small gradients
    for name, value in alone.items():
        learned = (value - start[name]).norm()
        assert (ends[name] - value).norm() <= near * learned + 1e-5, name
        assert value.numel() == 0 or learned > 0 or ("score" in name and target == "active"), name


LONG = replace(RECIPE, rank={"neurons": 64}, target="score", epochs={"neurons": 12}, batch=32, weight_decay=0.0)


@pytest.mark.parametrize(
    "more",
    [
        {}, {"design": "layerwise"}, {"design": "segments", "target": "rank"}, {"bits": 8, "scaling": "min_max"},
        {"block": 6, "bits": 8}, {"target": "active", "active_pct": 30},
        {"scaling": "per_example", "epoch_kept": "last", "bits": 8},
    ],
    ids=str,
)  # fmt: skip
def test_a_trained_predictor_beats_the_constant_one_repeats_itself_and_is_what_its_file_holds(splits, more):
    """Its tensors have memory of their own: a view would keep its neighbours' numbers, also in a copy or a file."""
    design, recipe = more.get("design", "shadow"), replace(LONG, **{k: v for k, v in more.items() if k != "design"})
    train, held = splits(new(design, recipe), 800)
    predictor, again = new(design, recipe), new(design, recipe)
    fits, _ = (training.fit(one, train, held, recipe, 0)["neurons"] for one in (predictor, again))
    assert all(fit.loss < 0.7 * fit.loss_constant and fit.best_epoch > 0 for fit in fits)
    assert recipe.epoch_kept == "best" or all(fit.best_epoch == 12 for fit in fits)
    assert same(predictor.state_dict(), again.state_dict())
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in predictor.state_dict().values())
    assert all(parameter.requires_grad for parameter in predictor.parameters())
    file = stored(predictor.state_dict(), predictor.bits)
    dtypes = {name.endswith("weight"): str(value.dtype) for name, value in file.items()}
    assert dtypes == {True: "torch.int8" if predictor.bits == 8 else "torch.bfloat16", False: "torch.float32"}
    again = new(design, recipe)
    again.load_state_dict(restored(file))
    assert same(stored(again.state_dict(), again.bits), file)
    chunk, index, site = next(held.chunks()), torch.arange(16), predictor.groups[0].site
    values = [one.read(site, chunk.feature(site, index), "neurons")[1] for one in (predictor, again)]
    assert torch.equal(*values)


def test_a_random_start_is_pytorchs_and_keeps_hidden_units_on(traces):
    """As published; from the constant predictor, features with a large part in common turn nearly all units off."""
    sizes, draw = replace(SIZES, head_width=64), torch.Generator().manual_seed(0)
    hidden, *parts = (torch.randn(shape, generator=draw) for shape in ((256, 8), (8, 320), (320,), (8, 84)))
    features = (hidden @ parts[0] / 8**0.5 + 4 * parts[1]).bfloat16()
    scores = (hidden @ parts[2]).square().view(256, 7, 12)

    def fitted(start, rate):
        recipe = replace(LONG, rank={"neurons": 128}, learning_rate=rate, scaling="per_example", epoch_kept="last")
        torch.manual_seed(0)
        predictor = Predictor("shadow", sizes, recipe.rank, per_example=True)
        train = traces(predictor, ({predictor.groups[0].site: features}, {"neurons": scores}))
        (fit,) = training.fit(predictor, train, train, replace(recipe, start=start), 0)["neurons"]
        read = next(train.chunks()).feature(predictor.groups[0].site, torch.arange(256))
        (scorer,) = predictor.scorers["neurons"]
        return scorer, fit, (scorer.inner(unit_range(read)) <= 0).all(0).float().mean()

    bound = 128**-0.5
    for values in fitted("random", 1e-9)[0].outer.state_dict().values():
        assert values.abs().max() < 1.01 * bound and values.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    (_, constant, off), (_, random, still_off) = (fitted(start, 0.001) for start in training.STARTS)
    assert off > 0.95 and still_off < 0.85
    assert constant.loss_constant == random.loss_constant


class Killed(Exception):
    """In place of a signal."""


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(splits, tmp_path):
    train, held = splits(new("segments"))
    recipe, result = replace(RECIPE, epochs={"heads": 4, "neurons": 6}), tmp_path / "predictor.safetensors"
    seen = []

    def learned(last=None, spec=1, seconds=0.0):
        """Killed after its epoch `last`."""

        def progress(done, total):
            seen.append(done)
            if done == last:
                raise Killed

        predictor, checkpoint = new("segments"), Checkpoint(result, {"spec": spec}, seconds)
        seen.clear()
        fits = training.fit(predictor, train, held, recipe, 0, progress, checkpoint)
        return fits, predictor.state_dict()

    fits, whole = learned(seconds=60.0)
    assert not list(tmp_path.glob(".*.checkpoint.safetensors"))  # it took less
    for last in (2, 5):  # killed twice
        with pytest.raises(Killed):
            learned(last)
    for spec, epochs in ((1, [6]), (2, [1, 2, 3, 4, 5, 6])):  # of other inputs it is passed over
        again, state = learned(spec=spec)
        assert again == fits and same(state, whole) and seen == epochs
    Checkpoint(result, {}).remove()
    assert not list(tmp_path.glob(".*.checkpoint.safetensors"))


def test_training_on_noise_never_ends_worse_than_the_constant_predictor(traces):
    predictor = new(recipe=LONG)
    noise = []
    for count in (64, 65):
        features, scores = examples(predictor, count)
        noise.append((features, {kind: torch.rand_like(values) for kind, values in scores.items()}))
    (fit,) = training.fit(predictor, *(traces(predictor, one) for one in noise), LONG, 0)["neurons"]
    assert fit.loss <= fit.loss_constant


def scaled(predictor, train, recipe):
    training._scale(predictor, stacks_by_kind(predictor, recipe.batch), train, recipe)
    return predictor.scorers["neurons"][0]


@pytest.mark.parametrize("scaling", ["standard", "min_max"])
def test_scaling_is_that_of_all_tokens_and_training_starts_at_the_mean(splits, scaling):
    predictor, recipe = new(recipe=LONG), replace(LONG, scaling=scaling)
    train, _ = splits(predictor, 100)
    scorer = scaled(predictor, train, recipe)
    parts = [(chunk, torch.arange(len(chunk))) for chunk in train.chunks()]
    features = torch.cat([chunk.feature(predictor.groups[0].site, index) for chunk, index in parts])
    kept = torch.cat([chunk.scores("neurons", index)[:, 1:] for chunk, index in parts])
    if scaling == "standard":
        mean, scale = features.mean(0), features.std(0, correction=0)
        score_mean, score_scale = kept.mean(0), kept.var(0, correction=0).mean(-1, keepdim=True).sqrt()
    else:  # as published: from the least to the most
        (mean, high), (least, most) = features.aminmax(dim=0), kept.transpose(0, 1).flatten(1).aminmax(dim=1)
        scale, score_mean, score_scale = high - mean, least[:, None].expand(6, 12), (most - least)[:, None]
    torch.testing.assert_close((scorer.feature_mean, scorer.feature_scale), (mean, scale))
    torch.testing.assert_close((scorer.score_mean, scorer.score_scale), (score_mean, score_scale))
    torch.testing.assert_close(scorer(features[:5]), kept.mean(0).expand(5, 6, 12))
    torch.testing.assert_close(training.mean_scores(train, "neurons", 32)[1:], kept.mean(0))


@pytest.mark.parametrize("scaling", training.SCALINGS)
def test_scores_of_any_size_are_learned_alike(traces, scaling):
    """Squared gradients (fisher) are tiny: a power of two times smaller, they train the same predictor."""
    found, recipe = [], replace(LONG, rank={"neurons": 16}, epochs={"neurons": 2}, scaling=scaling)
    for size in (1.0, 2.0**-46):
        predictor = new(recipe=recipe)
        features, scores = examples(predictor, 256)
        some = traces(predictor, (features, {kind: values * size for kind, values in scores.items()}))
        (fit,) = training.fit(predictor, some, some, recipe, 0)["neurons"]
        (feature,) = features.values()
        unit = 1.0 if scaling == "per_example" else size  # scaled scores have no unit
        found.append((fit, predictor.scorers["neurons"][0](feature.float()) / unit))
    torch.testing.assert_close(*(values for _, values in found), rtol=1e-4, atol=1e-3)
    assert found[1][0].loss == pytest.approx(found[0][0].loss, rel=1e-4)


@pytest.mark.parametrize("target", training.TARGETS)
def test_targets_leave_the_order_of_units(target):
    scores = torch.rand(3, 4, 10, generator=torch.Generator().manual_seed(0)) ** 3
    found = training.TARGETS[target](scores, RECIPE).gather(-1, scores.argsort(-1))
    assert (found.diff(dim=-1) >= 0).all()
    assert len(found[0, 0].unique()) == (2 if target == "active" else 10)


def test_a_block_is_learned_by_the_mean_of_its_units_and_kept_as_one(traces):
    recipe = replace(LONG, block=6)
    predictor = new(recipe=recipe)
    features, scores = examples(predictor, 100)
    scorer = scaled(predictor, traces(predictor, (features, scores)), recipe)
    kept = decode(*encode(scores["neurons"], 8), 8, 12)[:, 1:]
    torch.testing.assert_close(scorer.score_mean, kept.unflatten(-1, (2, 6)).mean(-1).mean(0))
    (site, feature), *_ = features.items()
    found = predictor.read(site, feature.float(), "neurons")[1].detach()
    assert found.shape == (100, 6, 2)
    mask = predictor.spread(POLICIES["per_layer"](found, 50), "neurons").unflatten(-1, (2, 6))
    assert (mask.all(-1) | ~mask.any(-1)).all() and (mask.sum((-2, -1)) == 6).all()
    torch.testing.assert_close(predictor.gathered(predictor.spread(found, "neurons"), "neurons"), 6 * found)
    refused("predictors.block: 5 .* 12 neurons", new, recipe=replace(LONG, block=5))


@pytest.mark.parametrize("most", [None, 1, 11, 35, 50, 60])
def test_chunks_and_batches_hold_every_token_once_or_the_first_alone(traces, monkeypatch, most):
    monkeypatch.setattr(trace_dataset, "CHUNK_BYTES", 11 * (7 * (12 + 4) + 8 * 2))  # 11 tokens
    predictor, count = new(recipe=LONG), min(most or 50, 50)
    shards = [examples(predictor, tokens) for tokens in (30, 20)]
    some, (site,) = traces(predictor, *shards, most=most), shards[0][0]
    assert len(some) == count and (most or [len(chunk) for chunk in some.chunks()] == [11, 11, 8, 11, 9])
    scores, features = (
        torch.cat([shard[i][key] for shard in shards])[:count] for i, key in ((1, "neurons"), (0, site))
    )
    parts = [(chunk, torch.arange(len(chunk))) for chunk in some.chunks()]
    whole = torch.cat([chunk.scores("neurons", index) for chunk, index in parts])
    assert torch.equal(whole, decode(*encode(scores, 8), 8, 12))
    assert torch.equal(torch.cat([chunk.feature(site, index) for chunk, index in parts]), features.float())
    batches = list(some.shuffled(4, torch.Generator().manual_seed(0)))
    assert len(batches) == some.batches(4) and max(len(index) for _, index in batches) <= 4
    seen = torch.cat([chunk.feature(site, index) for chunk, index in batches])
    assert count == 1 or not torch.equal(seen, features.float())
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, features.float().tolist()))


def test_traces_that_fit_on_the_device_are_read_once(traces, monkeypatch):
    """On a GPU: here the CPU has the same room."""
    predictor, reads = new("layerwise"), []
    original = artifacts.Tensors.get_slice
    monkeypatch.setattr(artifacts.Tensors, "get_slice", lambda self, name: reads.append(name) or original(self, name))
    for room, times in ((0, 2), (2**20, 1), (200, None)):
        monkeypatch.setattr(trace_dataset, "_room", lambda device, room=room: room)
        train = traces(predictor, examples(predictor, 70))
        reads.clear()
        first, *_ = train.chunks()
        second, *_ = train.of(["heads"]).chunks()
        index, site = torch.tensor([3, 69]), predictor.groups[2].site
        assert torch.equal(first.scores("heads", index), second.scores("heads", index))
        assert torch.equal(first.feature(site, index), second.feature(site, index))
        if times:
            assert reads.count(feature_name(site)) == reads.count(codes_name("snip", "heads")) == times


def test_more_tokens_a_batch_than_there_are_is_an_error(traces):
    predictor = new(recipe=LONG)
    few = traces(predictor, examples(predictor, 8))
    refused("predictors.batch: 32 tokens, but the traces hold only 8", training.fit, predictor, few, few, LONG, 0)


def test_one_order_for_all_tokens_is_judged_as_one_for_each():
    """The constant predictor's, made once."""
    spec = SimpleNamespace(recipe=RECIPE, policies=("per_layer", "global", "floored"), sparsities_pct=(30, 50))
    generator = torch.Generator().manual_seed(0)
    constant, true = (torch.rand(tokens, 3, 40, generator=generator) for tokens in (1, 9))
    once = judged(order_of(constant, spec), order_of(true, spec))
    each = judged(order_of(constant.expand_as(true), spec), order_of(true, spec))
    assert len(once) == 13 and once.keys() == each.keys()
    for keys, values in each.items():
        torch.testing.assert_close(once[keys], values)
