"""A mask source on a model: positions, counts, and independence of batch and padding."""

from itertools import chain

import pytest
import torch
from conftest import random_predictor, refused

from shadowcore.measure import sparsity
from shadowcore.measure.ffn_selectors import GateMasks, ProxyMasks, SignMasks
from shadowcore.measure.group import Group
from shadowcore.measure.harness import SparseLM
from shadowcore.measure.oracle import OracleMasks, OraclePass
from shadowcore.measure.perplexity import document_losses, window_losses
from shadowcore.measure.predictor_free import PromptMasks, ThresholdMasks, nonzero_masks
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.measure.sparsity import FixedMasks, PredictedMasks, SparseModel, random_scores
from shadowcore.method.gradient_capture import ImportancePass
from shadowcore.method.policies import POLICIES
from shadowcore.method.predictors import PREDICTORS
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.models.losses import all_scored
from shadowcore.models.masking import masked
from shadowcore.models.prefixes import continuing
from shadowcore.models.recording import Site, visiting
from shadowcore.texts.documents import Window


@pytest.fixture
def tiny(tiny):
    """In float64: these tests compute the same masks in two ways, and rounding must not decide which unit is kept."""
    return tiny.double()


def sources(model, pct=50):
    sizes = dimensions_of(model.config)
    yield FixedMasks(random_scores(sizes, KINDS, 0), "per_layer", pct)
    yield FixedMasks(random_scores(sizes, KINDS, 0), "global", pct)
    for design in PREDICTORS:
        yield PredictedMasks(random_predictor(model, design), KINDS, "per_layer", pct)
    yield PredictedMasks(random_predictor(model), KINDS, "global", pct)
    yield OracleMasks(OraclePass(model), "plainact", KINDS, "per_layer", pct)


def baselines(model, protocol, pct=50):
    """Methods without a predictor that work under a protocol."""
    if protocol == "prompt":
        yield PromptMasks(model, "global", pct)
    if protocol == "token":
        yield ThresholdMasks(torch.tensor([-1, 0.1, 0.2, 0.3]))
        yield GateMasks(model, torch.tensor([-1, 0.1, 0.2, 0.3]))
        yield ProxyMasks(model, 4, pct)
        yield ProxyMasks(model, 2, pct, ahead=True)
        if model.config.model_type == "opt":
            yield SignMasks(model)


def test_constant_masks_equal_the_plain_masked_model(tiny, tokens):
    source = FixedMasks(random_scores(dimensions_of(tiny.config), KINDS, 0), "per_layer", 50)
    got = SparseModel(tiny, source).logits(tokens, all_scored(tokens))
    with torch.no_grad(), masked(tiny, source.keep):
        want = tiny(tokens[:, :-1]).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("protocol", ["token", "prompt"])
def test_the_prompt_is_dense(tiny, tokens, protocol):
    """Positions before the one that makes the first scored prediction are those of the dense model."""
    scored = all_scored(tokens, 7)
    with torch.no_grad():
        dense = tiny(tokens[:, :-1]).logits
    for source in chain(sources(tiny), baselines(tiny, protocol)):
        got = SparseModel(tiny, source, PROTOCOLS[protocol]).logits(tokens, scored)
        torch.testing.assert_close(got[:, :6], dense[:, :6], atol=1e-5, rtol=1e-5)
        assert (got[:, 6:] - dense[:, 6:]).abs().max() > 1e-2


def test_rows_that_continue_a_cached_prompt_are_the_whole_rows(of_family, tokens):
    """Of prompts of several lengths, one of which two rows share, with masks from the continuation on."""
    model = of_family.double()
    predicted = PredictedMasks(random_predictor(model, "layerwise"), KINDS, "per_layer", 50)
    prompts, rows = [tokens[0, :6].tolist(), tokens[1, :3].tolist()], torch.tensor([0, 1, 0])
    rest = torch.randint(3, 96, (3, 7), generator=torch.Generator().manual_seed(4))
    context = continuing(model, prompts, rows, rest.shape[1] - 1)
    for masks in (None, predicted):
        sparse = SparseModel(model, masks)
        cached = sparse.logits(rest, all_scored(rest), context=context)
        for row, prompt in enumerate(prompts[number] for number in rows):
            whole = torch.cat((torch.tensor(prompt), rest[row]))[None]
            scored = (torch.arange(whole.shape[1]) > len(prompt))[None]
            torch.testing.assert_close(cached[row : row + 1], sparse.logits(whole, scored, first_kept=len(prompt)))


def run_masked(model, ids, keep, applied):
    """Logits under keep masks (L, U) at the `applied` positions (T,) of one row, and what flowed at every site."""
    seen = {}

    def visit(site, x):
        seen[site] = x.flatten(2)[0]
        return None if site not in keep else x * (keep[site] | ~applied[:, None])[None, ..., None]

    with torch.no_grad(), visiting(model, visit):
        return model(ids[None]).logits[0], seen


@pytest.mark.parametrize("design", sorted(PREDICTORS))
@pytest.mark.parametrize("protocol", ["prompt", "lookahead"])
def test_one_mask_a_row_is_the_predictors_at_the_right_position(tiny, tokens, design, protocol):
    """By hand: the model runs again for every group of layers, masked as far as the groups before it say."""
    predictor, lengths, first = random_predictor(tiny, design), (12, 9), 5
    scored = torch.stack([(torch.arange(12) >= first) & (torch.arange(12) < length) for length in lengths])
    got = SparseModel(tiny, PredictedMasks(predictor, KINDS, "per_layer", 50), PROTOCOLS[protocol])
    logits = got.logits(tokens, scored)
    for row, length in enumerate(lengths):
        ids = tokens[row, : length - 1]
        source = first - 1 if protocol == "prompt" else length - 2
        applied = torch.arange(length - 1) >= (source if protocol == "prompt" else 0)
        keep = {}
        for group in sorted(predictor.groups):
            _, seen = run_masked(tiny, ids, keep, applied)
            for kind in KINDS:
                with torch.no_grad():
                    layers, scores = predictor.read(group.site, seen[group.site][source], kind)
                chosen = POLICIES["per_layer"](scores, 50)
                keep |= {Site(layer, kind): chosen[i] for i, layer in enumerate(layers)}
        want, _ = run_masked(tiny, ids, keep, applied)
        torch.testing.assert_close(logits[row, : length - 1], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("protocol", ["prompt", "lookahead"])
def test_the_oracles_one_mask_is_by_the_sequence_scores_of_where_it_applies(tiny, tokens, protocol):
    scored = all_scored(tokens, 5)
    first = 4 if protocol == "prompt" else 0
    found = {}
    ImportancePass(tiny)(tokens, scored, lambda site, signals: found.update({site: signals.ga[:, first:].abs().sum(1)}))
    oracle = SparseModel(
        tiny, OracleMasks(OraclePass(tiny), "plainact", KINDS, "global", 30, PROTOCOLS[protocol]), PROTOCOLS[protocol]
    )
    logits = oracle.logits(tokens, scored)
    for row in range(2):
        keep = {}
        for kind in KINDS:
            mask = POLICIES["global"](torch.stack([found[Site(layer, kind)][row] for layer in (1, 2, 3)]), 30)
            keep |= {Site(layer, kind): mask[layer - 1] for layer in (1, 2, 3)}
        want, _ = run_masked(tiny, tokens[row, :-1], keep, torch.arange(11) >= first)
        torch.testing.assert_close(logits[row], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("protocol", "causal"), [("token", True), ("prompt", True), ("lookahead", False)])
def test_what_comes_later_changes_nothing_before_but_under_lookahead(tiny, tokens, protocol, causal):
    scored = all_scored(tokens, 5)
    other = tokens.clone()
    other[:, 8:] = (tokens[:, 8:] + 40) % 90 + 3
    for design in PREDICTORS:
        sparse = SparseModel(
            tiny, PredictedMasks(random_predictor(tiny, design), KINDS, "per_layer", 50), PROTOCOLS[protocol]
        )  # fmt: skip
        change = (sparse.logits(tokens, scored) - sparse.logits(other, scored))[:, :8].abs().max()
        assert change < 1e-4 if causal or design == "static_tuned" else change > 1e-2


def test_griffin_keeps_what_was_large_over_the_prompt(tiny, tokens):
    """By hand: the dense model on the prompt alone, its activations summed token by token."""
    scored = all_scored(tokens, 5)
    logits = SparseModel(tiny, PromptMasks(tiny, "per_layer", 30), PROTOCOLS["prompt"]).logits(tokens, scored)
    for row in range(2):
        _, seen = run_masked(tiny, tokens[row, :5], {}, torch.ones(5).bool())
        keep = {}
        for layer in (1, 2, 3):
            squares = sum(a.square() / a.square().sum() for a in seen[Site(layer, "neurons")])
            keep[Site(layer, "neurons")] = POLICIES["per_layer"](squares[None], 30)[0]
        want, _ = run_masked(tiny, tokens[row, :-1], keep, torch.arange(11) >= 4)
        torch.testing.assert_close(logits[row], want, atol=1e-4, rtol=1e-4)


def test_thresholds_remove_what_does_not_exceed_them(tiny, tokens):
    limits = torch.tensor([-1, 0.1, 0.2, 0.3])
    sparse = SparseModel(tiny, ThresholdMasks(limits))
    logits = sparse.logits(tokens, all_scored(tokens))
    removed = 0

    def visit(site, x):
        nonlocal removed
        if site.what != "neurons":
            return None
        cut = torch.where(x.abs() > limits[site.layer], x, 0)
        removed += int((x.abs() <= limits[site.layer]).sum())
        return cut

    with torch.no_grad(), visiting(tiny, visit):
        want = tiny(tokens[:, :-1]).logits
    torch.testing.assert_close(logits, want)
    measured = sparse.measured_sparsity(("neurons",))
    assert measured["sparsity_neurons"] == removed / (22 * 4 * dimensions_of(tiny.config).neurons) > 0.1


def test_skipping_zeros_loses_nothing(tiny, tokens):
    if tiny.config.model_type == "llama":
        refused("relu needs .* 'silu'", nonzero_masks, tiny)
        return
    sparse = SparseModel(tiny, nonzero_masks(tiny))
    logits = sparse.logits(tokens, all_scored(tokens))
    zeros = []
    with torch.no_grad(), visiting(tiny, lambda site, x: zeros.append(x == 0) if site.what == "neurons" else None):
        assert torch.equal(logits, tiny(tokens[:, :-1]).logits)
    share = torch.stack(zeros).double().mean().item()
    assert 0.1 < share < 0.9
    assert sparse.measured_sparsity(("neurons",))["sparsity_neurons"] == pytest.approx(share)


def likelihoods(model, source, requests, batch, order, max_length=64, protocol="token"):
    """Log-likelihoods of token-id requests (context, continuation) asked in an order, in the requests' own order."""
    lm = SparseLM.__new__(SparseLM)  # without a tokenizer: requests are already token ids
    lm._model, lm.batch_tokens, lm._max_length, lm._device = model, batch * max_length, max_length, model.device
    group = Group({"": SparseModel(model, source, PROTOCOLS[protocol])})
    answers = lm._likelihoods(group, [(("", ""), *requests[i]) for i in order])[""]
    by_request = dict(zip(order, answers, strict=True))
    return torch.tensor([by_request[i][0] for i in range(len(requests))])


def losses_of(sparse, windows, batch, prompt=1):
    return window_losses(Group({"": sparse}), windows, batch, prompt=prompt)[""]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows_do_not_depend_on_neighbours_or_padding(tiny, protocol):
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(3, 96, (length,), generator=generator).tolist() for length in (5, 12, 9, 7, 12, 3, 8, 10)]
    requests = [(row[:2], row[2:]) for row in rows]
    for source in chain(sources(tiny), baselines(tiny, protocol)):
        one = likelihoods(tiny, source, requests, 1, list(range(8)), protocol=protocol)
        for batch, order in ((8, list(range(8))), (3, [5, 2, 7, 0, 1, 6, 4, 3])):
            many = likelihoods(tiny, source, requests, batch, order, protocol=protocol)
            torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-4)


# 11 cuts the longest contexts short
@pytest.mark.parametrize(("max_length", "protocol"), [(64, "token"), (11, "token"), (64, "prompt"), (64, "lookahead")])
def test_a_context_run_once_equals_one_run_for_every_choice(tiny, max_length, protocol):
    generator = torch.Generator().manual_seed(6)

    def words(length):
        return torch.randint(3, 96, (length,), generator=generator).tolist()

    # questions of 3, 4, 2 and 1 choices; one context is a single token, so nothing of it comes before the rows
    # and one with its short continuations fills the model's 64 positions, but for its neighbours' long one
    questions = [(words(60), (2, 5, 3)), (words(4), (1, 4, 10, 2)), (words(1), (3, 2)), (words(7), (3,))]
    requests = [(context, words(length)) for context, lengths in questions for length in lengths]
    few = [OracleMasks(OraclePass(tiny), "plainact", KINDS, "per_layer", 50)] if protocol == "token" else []
    few += [PredictedMasks(random_predictor(tiny, "layerwise"), KINDS, "per_layer", 50)]
    few += [PredictedMasks(random_predictor(tiny), KINDS, "global", 50), *list(baselines(tiny, protocol))[:2]]
    for source in few:
        alone = torch.cat([likelihoods(tiny, source, [one], 1, [0], max_length, protocol) for one in requests])
        shared = likelihoods(tiny, source, requests, 6, [5, 2, 7, 0, 9, 1, 6, 4, 8, 3], max_length, protocol)
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("policy", ["per_layer", "global"])
def test_scoring_some_positions_at_once_changes_nothing(tiny, tokens, policy, monkeypatch):
    sparse = SparseModel(tiny, PredictedMasks(random_predictor(tiny), KINDS, policy, 50))
    together = sparse.logits(tokens, all_scored(tokens))
    monkeypatch.setattr(sparsity, "SCORES_AT_ONCE", 1)
    torch.testing.assert_close(sparse.logits(tokens, all_scored(tokens)), together)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_measured_sparsity_counts_what_was_removed(tiny, tokens, protocol):
    sizes = dimensions_of(tiny.config)
    for source in sources(tiny):
        sparse = SparseModel(tiny, source, PROTOCOLS[protocol])
        scored = all_scored(tokens, 4)
        sparse.logits(tokens, scored)
        assert sparse.positions == 2 * (11 if protocol == "lookahead" else 8)
        measured = sparse.measured_sparsity(KINDS)
        # half of the units of 3 of 4 layers; 4 heads and an even number of neurons leave no rounding
        assert measured["sparsity_heads"] == pytest.approx(0.5 * 3 / sizes.layers)
        assert measured["sparsity_neurons"] == pytest.approx(0.5 * 3 / sizes.layers)
        assert 0 < measured["sparsity_weights"] < measured["sparsity_measured"]
        sparse.count_anew()
        assert sparse.measured_sparsity(KINDS)["sparsity_measured"] == 0


def test_losses_after_a_prompt_are_the_likelihood_of_what_follows_it(tiny, tokens):
    requests = [(row[:5], row[5:]) for row in tokens.tolist()]
    for protocol in PROTOCOLS:
        source = PredictedMasks(random_predictor(tiny), KINDS, "per_layer", 50)
        losses = losses_of(SparseModel(tiny, source, PROTOCOLS[protocol]), tokens, 2, prompt=5)
        want = -likelihoods(tiny, source, requests, 1, [0, 1], protocol=protocol)
        torch.testing.assert_close(losses.float(), want, rtol=1e-5, atol=1e-4)


def test_a_request_as_long_as_the_model_allows_fits(tiny):
    """64 positions hold 64 inputs and predict 64 tokens: what lm-eval's rolling windows ask for."""
    ids = torch.randint(3, 96, (1, 65), generator=torch.Generator().manual_seed(0))
    for source in sources(tiny):
        assert SparseModel(tiny, source).logits(ids, all_scored(ids)).shape == (1, 64, 96)


def test_the_windows_of_an_article_are_one_document(tiny):
    windows = [Window(name, 0, tuple(range(first, first + 8))) for name, first in (("a", 3), ("b", 11), ("a", 19))]
    group, ids = Group({"": SparseModel(tiny, None)}), torch.tensor([window.ids for window in windows])
    for prompt in (1, 4):
        losses = window_losses(group, ids, 2, prompt=prompt)[""].tolist()
        rows = document_losses(group, windows, 2, prompt=prompt)[""]
        assert [tuple(row.values()) for row in rows] == [
            ("a", pytest.approx(losses[0] + losses[2]), 2 * (8 - prompt)),
            ("b", pytest.approx(losses[1]), 8 - prompt),
        ]
