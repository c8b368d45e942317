"""Groups of one shape train together: each ends where it ends alone, in fewer calls."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from shadowcore import artifacts
from shadowcore.method import stacks, trace_dataset, training
from shadowcore.method.predictors import Predictor
from shadowcore.method.score_quantization import decode, encode, step_ratio
from shadowcore.method.trace_dataset import TraceDataset
from shadowcore.method.tracing import SCHEMA, codes_name, feature_name, top_name
from shadowcore.method.training_state import Checkpoint
from shadowcore.models.families import KINDS, Dimensions
from shadowcore.stages.train_predictor import judged, order_of

SIZES = Dimensions(
    layers=7, width=8, heads=5, kv_heads=5, head_width=2, neurons=12, vocabulary=10, positions=16
)  # fmt: skip
RECIPE = training.Recipe(
    rank={"heads": 3, "neurons": 6}, segments=4, target="sqrt", epochs={"heads": 2, "neurons": 3}, batch=16,
    learning_rate=0.01, weight_decay=0.01,
)  # fmt: skip
DESIGNS = ["layerwise", "segments", "shadow"]  # 6 groups of one shape; 1, 2, 1 and 2 layers; 1 group


@pytest.fixture
def traces(tmp_path):
    """Opens the traces of so many tokens as a design reads them; scores of all layers follow from every feature."""
    files = []

    def opened(count, predictor):
        generator = torch.Generator().manual_seed(count)
        hidden = torch.randn(count, 8, generator=generator)
        tensors = {}
        for site in {group.site for group in predictor.groups}:
            width = SIZES.heads * SIZES.head_width if site.what == "heads" else SIZES.width
            mixing = torch.randn(8, width, generator=generator)
            tensors[feature_name(site)] = (hidden @ mixing).bfloat16()
        for kind in KINDS:
            weights = torch.randn(8, SIZES.layers * SIZES.units(kind), generator=torch.Generator().manual_seed(0))
            scores = (hidden @ weights).square().view(count, SIZES.layers, -1)
            for name, value in zip((codes_name("snip", kind), top_name("snip", kind)), encode(scores, 4), strict=True):
                tensors[name] = value
        path = tmp_path / f"{len(files)}.safetensors"
        artifacts.write_tensors(path, SCHEMA, tensors, {})
        files.append(artifacts.open_tensors(path, SCHEMA))
        sites = [group.site for group in predictor.groups]
        return TraceDataset([files[-1].__enter__()], "snip", 4, SIZES, KINDS, sites, torch.device("cpu"))

    yield opened
    for file in files:
        file.__exit__(None, None, None)


def new(design):
    torch.manual_seed(0)
    return Predictor(design, SIZES, RECIPE.rank, RECIPE.segments)


def one_by_one(predictor, train, recipe):
    """The last epoch's weights of every scorer, trained alone by torch's own derivatives and optimiser."""
    for kind in KINDS:
        for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True):
            steps = recipe.epochs[kind] * train.batches(recipe.batch)
            optimizer = torch.optim.AdamW(scorer.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            layers, generator = slice(group.layers[0], group.layers[-1] + 1), torch.Generator().manual_seed(1)
            whole = next(train.chunks())
            everything = torch.arange(len(whole))
            feature, scores = whole.feature(group.site, everything), whole.scores(kind, everything)[:, layers].sqrt()
            scorer.feature_mean.copy_(feature.mean(0))
            scorer.feature_scale.copy_(feature.std(0, correction=0))
            scorer.score_mean.copy_(scores.mean(0))
            scorer.score_scale.copy_(scores.var(0, correction=0).mean(-1, keepdim=True).sqrt())
            for _ in range(recipe.epochs[kind]):
                for chunk, index in train.shuffled(recipe.batch, generator):
                    scores = chunk.scores(kind, index)[:, layers].sqrt()
                    wanted = (scores - scorer.score_mean) / scorer.score_scale
                    (scorer.deviation(chunk.feature(group.site, index)) - wanted).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
    return {name: value.detach().clone() for name, value in predictor.state_dict().items()}


@pytest.mark.parametrize("together", [1, 2**21])
@pytest.mark.parametrize("design", DESIGNS)
def test_groups_learn_together_what_they_learn_alone(traces, design, together, monkeypatch):
    """Also where a stack has room for one group only."""
    monkeypatch.setitem(stacks.STACK_BYTES, "cpu", together)
    train = traces(70, new(design))
    alone, ends, predictor = one_by_one(new(design), train, RECIPE), {}, new(design)
    finish = training.TrainingState.finish

    def see(course, epoch, losses):
        """Weights where training ended, before the best epoch is taken."""
        ends.update({name: value.detach().clone() for name, value in predictor.state_dict().items()})
        finish(course, epoch, losses)

    monkeypatch.setattr(training.TrainingState, "finish", see)
    training.fit(predictor, train, traces(40, predictor), RECIPE, 1)
    start = new(design).state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(ends[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert value.numel() == 0 or not torch.equal(value, start[name]), name


def test_held_out_losses_are_each_scorers_own(traces):
    predictor = new("segments")
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    held = traces(40, predictor)
    expected, chunk, index = {}, next(held.chunks()), torch.arange(40)
    for kind in KINDS:
        scores = chunk.scores(kind, index).sqrt()
        for i, (group, scorer) in enumerate(zip(predictor.groups, predictor.scorers[kind], strict=True)):
            errors = scorer.deviation(chunk.feature(group.site, index)) - scores[:, group.layers]
            expected[f"{kind}.{i}"] = errors.detach().square().mean().item()
    found = training.held_out_losses(
        predictor, {kind: stacks.stacks_of(predictor, kind, 16) for kind in KINDS}, held, RECIPE
    )
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_classifiers_loss_and_gradient_are_torchs_own(traces, design):
    """Cross-entropy of the scores, which are logits, with the highest third of a layer's units as the class 1."""
    predictor, recipe = new(design), replace(RECIPE, target="active", active_pct=33)
    held = traces(40, predictor)
    chunk, index = next(held.chunks()), torch.arange(40)
    made = {kind: stacks.stacks_of(predictor, kind, 16) for kind in KINDS}
    training._scale(predictor, made, held, recipe)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 4)
    expected = {}
    for kind in KINDS:
        scores = chunk.scores(kind, index)
        # of equal scores the lower index first
        place = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        active = (place < round(0.33 * SIZES.units(kind))).float()
        for stack in made[kind]:
            stack.loss(chunk, index, active[:, stack.layers], training.loss_of(recipe)).backward()
        for i, (group, scorer) in enumerate(zip(predictor.groups, predictor.scorers[kind], strict=True)):
            scorer.zero_grad()
            labels = active[:, list(group.layers)]
            loss = torch.nn.functional.binary_cross_entropy(scorer(chunk.feature(group.site, index)).sigmoid(), labels)
            loss.backward()
            expected[f"{kind}.{i}"] = loss.item()
        for name in ("inner.weight", "inner.bias", "outer.weight", "outer.bias"):
            alone = torch.stack([scorer.get_parameter(name).grad for scorer in predictor.scorers[kind]][:1])
            torch.testing.assert_close(made[kind][0].parameters[name].grad[:1], alone, rtol=1e-4, atol=1e-6)
    assert training.held_out_losses(predictor, made, held, recipe) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("design", DESIGNS)
def test_trained_scorers_have_memory_of_their_own_and_repeat_themselves(traces, design):
    """A view would keep all of its neighbours' numbers, also in a copy or a file of one of them."""
    train, held, found = traces(70, new(design)), traces(40, new(design)), []
    for _ in range(2):
        predictor = new(design)
        training.fit(predictor, train, held, RECIPE, 1)
        found.append(predictor.state_dict())
        for value in [*predictor.parameters(), *predictor.buffers()]:
            assert value.untyped_storage().nbytes() == value.nbytes
        assert all(parameter.requires_grad for parameter in predictor.parameters())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_killed_training_of_stacks_ends_in_the_same_bytes(traces, tmp_path):
    train, held = traces(70, new("segments")), traces(40, new("segments"))

    def learned(progress=lambda done, total: None):
        predictor = new("segments")
        checkpoint = Checkpoint(tmp_path / "predictor.safetensors", {}, 0.0)
        return training.fit(predictor, train, held, RECIPE, 1, progress, checkpoint), predictor.state_dict()

    def killed(done, total):
        if done == 1:
            raise KeyboardInterrupt

    fits, whole = learned()
    Checkpoint(tmp_path / "predictor.safetensors", {}).remove()
    with pytest.raises(KeyboardInterrupt):
        learned(killed)
    again, resumed = learned()
    assert again == fits and all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_traces_that_fit_on_the_device_are_read_once(traces, monkeypatch):
    """On a GPU: here the CPU has the same room."""
    predictor, reads = new("layerwise"), []
    original = artifacts.Tensors.get_slice
    monkeypatch.setattr(artifacts.Tensors, "get_slice", lambda self, name: reads.append(name) or original(self, name))
    for room, times in ((0, 2), (2**20, 1), (200, None)):
        monkeypatch.setattr(trace_dataset, "_room", lambda device, room=room: room)
        train = traces(70, predictor)
        reads.clear()
        first, *_ = train.chunks()
        second, *_ = train.of(["heads"]).chunks()
        index = torch.tensor([3, 69])
        assert torch.equal(first.scores("heads", index), second.scores("heads", index))
        site = predictor.groups[2].site
        assert torch.equal(first.feature(site, index), second.feature(site, index))
        if times:
            assert reads.count(feature_name(site)) == reads.count(codes_name("snip", "heads")) == times


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("units", [1, 6, 7])
def test_codes_are_looked_up_as_the_ladder_has_them(bits, units):
    """By the definition, a code at a time, bit by bit."""
    scores = torch.rand(5, 3, units, generator=torch.Generator().manual_seed(0)) ** 9
    codes, top = encode(scores, bits)
    ladder = step_ratio(bits) ** (torch.arange(2**bits, dtype=torch.float32) - (2**bits - 1))
    ladder[0] = 0
    single = codes if bits == 8 else torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :units]
    expected = torch.tensor([ladder[code].item() for code in single.flatten().tolist()]).view(scores.shape) * top
    assert torch.equal(decode(codes, top, bits, units), expected)


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
