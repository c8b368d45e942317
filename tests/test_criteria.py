"""Criteria against their definitions, written out: loops, autograd on one unit, finite differences."""

import re
from itertools import product

import numpy as np
import pytest
import torch

from shadowcore.method.criteria import CRITERIA, PARTS, Signals
from shadowcore.method.gradient_capture import ImportancePass
from shadowcore.method.tracing import Moments, TracePlan, trace
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.models.losses import all_scored, example_losses
from shadowcore.models.recording import Site, visiting


def correlations(g):
    """numpy's correlations between the gradients of the parts of an example, (T, K)."""
    part = len(g) // PARTS
    return np.corrcoef([g[i * part : (i + 1) * part].double().flatten().numpy() for i in range(PARTS)])


def jacov(g):
    values = np.linalg.eigvalsh(correlations(g)).clip(0) + 1e-5
    return -sum(np.log(v) + 1 / v for v in values)


# per criterion: the definition for one unit from a, g, h (T, K) and its columns' norm
BRUTE_FORCE = {
    "plainact": lambda a, g, h, w: sum(abs(float(g[t] @ a[t])) for t in range(len(a))),
    "l2_norm": lambda a, g, h, w: sum(float(a[t] @ a[t]) for t in range(len(a))) ** 0.5,
    "grad_norm": lambda a, g, h, w: sum(float(g[t] @ g[t]) for t in range(len(a))) ** 0.5,
    "fisher": lambda a, g, h, w: sum(float(g[t] @ a[t]) ** 2 for t in range(len(a))),
    "snip": lambda a, g, h, w: abs(sum(float(g[t] @ a[t]) for t in range(len(a)))),
    "grasp": lambda a, g, h, w: -sum(float(h[t] @ a[t]) for t in range(len(a))),
    "jacov": lambda a, g, h, w: jacov(g),
    "epenas": lambda a, g, h, w: abs(sum(np.log(abs(x) + 1e-5) for x in correlations(g).flat)),
    "nwot": lambda a, g, h, w: torch.log1p(torch.tensor(float(sum(int(x > 0) for t in a for x in t)))).item(),
    "output_norm": lambda a, g, h, w: w * sum(float(a[t] @ a[t]) for t in range(len(a))) ** 0.5,
}


LENGTHS = (42, 29)  # tokens of two examples; not multiples of PARTS


@pytest.fixture
def signals():
    generator = torch.Generator().manual_seed(0)
    a, g, h = (torch.randn(2, LENGTHS[0], 3, 4, generator=generator) for _ in range(3))
    valid = torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS)[:, None]
    return Signals(a, g, valid, torch.rand(3, generator=generator) + 0.5, h)


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_sequence_form_equals_the_definition(signals, name):
    scores = CRITERIA[name].sequence(signals)
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    for b, length in enumerate(LENGTHS):  # padding does not count
        for u in range(3):
            a, g, h = (x[b, :length, u] for x in (signals.a, signals.g, signals.h))
            want = BRUTE_FORCE[name](a, g, h, float(signals.column_norm[u]))
            assert scores[b, u].item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", sorted(n for n, c in CRITERIA.items() if c.has_token_form))
def test_token_form_is_the_sequence_form_of_one_token(signals, name):
    tokens = CRITERIA[name].token(signals)
    for t in range(3):
        one = Signals(signals.a[:, t : t + 1], signals.g[:, t : t + 1], torch.ones(2, 1).bool(), signals.column_norm)
        torch.testing.assert_close(tokens[:, t], CRITERIA[name].sequence(one))


def test_gradients_that_say_the_same_of_all_data_rank_lowest():
    """No gradient at all, one that never varies, and the same in every part, below gradients of noise."""
    noise = torch.randn(1, 64, 1, 1, generator=torch.Generator().manual_seed(0))
    same = noise[:, : 64 // PARTS].repeat(1, PARTS, 1, 1)
    g = torch.cat((noise, torch.zeros_like(noise), torch.full_like(noise, 0.1), same), 2)
    one = Signals(g, g, torch.ones(1, 64).bool(), torch.ones(4))
    for name in ("jacov", "epenas"):
        scores = CRITERIA[name].sequence(one)[0]
        assert scores.isfinite().all() and (scores[1:] < scores[0]).all()
        torch.testing.assert_close(scores[1:], scores[1].expand(3), rtol=1e-5, atol=1e-3)


def collect(model, tokens, scored, name):
    found = {}

    def see(site, signals):
        found[site] = CRITERIA[name].sequence(signals)

    losses = ImportancePass(model)(tokens, scored, see, second_order=CRITERIA[name].order == 2)
    return found, losses


OUTPUT_PROJECTIONS = {
    "heads": r"(self_attn|attention)\.(o_proj|out_proj|dense)$",
    "neurons": r"\.(down_proj|fc2|dense_4h_to_h)$",
}


@pytest.mark.parametrize("kind", KINDS)
def test_plainact_of_every_family_is_autograd_on_the_inputs_of_its_projections(of_family, tokens, kind):
    """By hand: hooks of the test's own, on modules that it finds by their names."""
    sizes, inputs = dimensions_of(of_family.config), []
    modules = [one for name, one in of_family.named_modules() if re.search(OUTPUT_PROJECTIONS[kind], name)]
    assert len(modules) == sizes.layers
    hooks = [one.register_forward_pre_hook(lambda module, args: inputs.append(args[0])) for one in modules]
    logits = of_family(tokens[:, :-1]).logits
    for hook in hooks:
        hook.remove()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    gradients = torch.autograd.grad(loss.view(2, -1).mean(1).sum(), inputs)
    scores, _ = collect(of_family, tokens, all_scored(tokens), "plainact")
    for layer, (g, a) in enumerate(zip(gradients, inputs, strict=True)):
        want = (g * a).detach().view(2, 11, sizes.units(kind), -1).sum(-1).abs().sum(1)
        torch.testing.assert_close(scores[Site(layer, kind)], want, rtol=1e-4, atol=1e-6)


def test_grasp_is_the_hessian_times_the_gradient(tiny, tokens):
    """Finite differences: all units of the model moved along their gradient, and by how much the gradient changes."""
    tiny.double()  # but for Llama's norms and the loss, which are float32: hence the large step
    scored = all_scored(tokens)
    seen = {}
    importance = ImportancePass(tiny)
    importance(tokens, scored, lambda site, signals: seen.update({site: signals}), second_order=True)

    def gradients(step):
        embedded = tiny.get_input_embeddings()(tokens[:, :-1]).detach().requires_grad_()
        moved = {}

        def visit(site, x):
            if site not in seen:
                return None
            moved[site] = x + step * seen[site].g
            return moved[site]

        with visiting(tiny, visit):
            logits = tiny(inputs_embeds=embedded).logits
        loss = example_losses(logits, tokens, scored).sum()
        return dict(zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True))

    step = 1e-3
    ahead, back = gradients(step), gradients(-step)
    assert len(seen) == 2 * dimensions_of(tiny.config).layers
    for site, signals in seen.items():
        want = (ahead[site] - back[site]).float() / (2 * step)
        torch.testing.assert_close(signals.h, want, rtol=0.02, atol=0.01 * want.abs().max().item())


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_an_example_does_not_depend_on_its_neighbours_or_padding(tiny, name):
    tokens = torch.randint(3, 96, (2, 60), generator=torch.Generator().manual_seed(7))
    both, _ = collect(tiny, tokens, all_scored(tokens), name)
    padded = torch.nn.functional.pad(tokens[:1], (0, 4), value=3)
    scored = torch.nn.functional.pad(all_scored(tokens[:1]), (0, 4), value=False)
    alone, _ = collect(tiny, padded, scored, name)
    for site, scores in both.items():
        # float32 gradients in another order of summing: logarithms of small correlations feel it most
        torch.testing.assert_close(alone[site][0], scores[0], rtol=5e-3, atol=5e-3 * scores.abs().max().item())


def test_a_trace_holds_the_moments_of_all_criteria_whatever_the_batch(tiny):
    windows = torch.randint(3, 96, (5, 60), generator=torch.Generator().manual_seed(7))
    plan = TracePlan(sorted(CRITERIA), [], 4, 3, [], 0)
    whole, small = (trace(tiny, windows, plan, batch) for batch in (5, 2))
    for name, kind in product(CRITERIA, KINDS):
        alone = [collect(tiny, row[None], all_scored(row[None]), name)[0] for row in windows]
        scores = torch.stack([torch.stack([one[Site(layer, kind)][0] for layer in range(4)]) for one in alone]).double()
        near = {"rtol": 5e-3, "atol": 5e-3 * scores.abs().max().item()}  # as above
        for found in (whole, small):
            torch.testing.assert_close(found[f"sequence.{name}.{kind}.mean"], scores.mean(0), **near)
            deviation = scores.std(0, correction=0)
            torch.testing.assert_close(found[f"sequence.{name}.{kind}.deviation"], deviation, **near)


def test_moments_of_batches_are_those_of_the_whole():
    values = 1e6 + torch.randn(11, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = Moments()
    for part in values.split([4, 1, 6]):
        together.add(part)
    assert together.count == 11
    torch.testing.assert_close(together.mean, values.mean(0))
    torch.testing.assert_close(together.deviation, values.std(0, correction=0), rtol=1e-8, atol=0)


def test_every_pass_shows_the_same_activations_and_gradients_and_returns_the_models_own_loss(tiny, tokens):
    """Of the first order, of the second, and forward alone, which suffices for criteria without gradients."""
    scored, seen, importance = all_scored(tokens).clone(), {}, ImportancePass(tiny)
    scored[0, 8:] = False  # a row that ends earlier

    def see(site, signals):
        seen.setdefault(site, []).append(signals)

    losses = [importance(tokens, scored, see, second_order=both) for both in (False, True)]
    importance.forward_only(tokens, scored, see)
    torch.testing.assert_close(*losses)
    for row, length, loss in zip(tokens, (8, 12), losses[0], strict=True):
        own = row[None, :length]
        assert loss.item() == pytest.approx(tiny(own, labels=own).loss.item(), rel=1e-5)
    for first, second, alone in seen.values():
        assert first.h is None and alone.g is None
        torch.testing.assert_close(second.g, first.g, rtol=1e-3, atol=1e-5)
        for name in ("l2_norm", "output_norm", "nwot"):
            torch.testing.assert_close(CRITERIA[name].token(alone), CRITERIA[name].token(first))


def test_on_policy_scores_are_what_a_unit_is_worth_to_the_sparse_model(tiny, tokens):
    """<g, a> with g after the mask and a before it: the loss's derivative by the mask, by finite differences."""
    tiny.double()
    sizes, scored = dimensions_of(tiny.config), all_scored(tokens)
    generator = torch.Generator().manual_seed(2)
    keep = {
        Site(layer, kind): (torch.rand(2, 11, sizes.units(kind), generator=generator) > 0.5).double()
        for layer in range(sizes.layers)
        for kind in KINDS
    }
    found = {}
    importance = ImportancePass(tiny)

    def losses():
        return importance(
            tokens,
            scored,
            lambda site, signals: found.update({site: signals.ga}),
            choose=lambda site, x: keep.get(site),
        )

    losses()
    scores = {site: ga.clone() for site, ga in found.items()}
    for site in (Site(1, "neurons"), Site(2, "heads"), Site(3, "neurons")):
        for wanted in (0.0, 1.0):  # a removed unit, a kept one
            b, t, u = (keep[site] == wanted).nonzero()[5].tolist()
            step, moved = 1e-2, []  # the loss is float32
            for sign in (1, -1):
                keep[site][b, t, u] = wanted + sign * step
                moved.append(losses()[b].item())
            keep[site][b, t, u] = wanted
            derivative = (moved[0] - moved[1]) / (2 * step)
            assert scores[site][b, t, u].item() == pytest.approx(derivative, rel=0.02, abs=1e-4)
