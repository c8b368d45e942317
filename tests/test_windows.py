"""Predictors of whole windows, as the published protocol `lookahead` needs them."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from conftest import TINY, refused
from scipy import stats
from torch.nn.functional import cross_entropy

from shadowcore import artifacts
from shadowcore.method import tracing, training
from shadowcore.method.predictors import Predictor
from shadowcore.method.score_quantization import decode, step_ratio
from shadowcore.method.trace_dataset import TraceDataset
from shadowcore.models.families import KINDS, dimensions_of, layers_of
from shadowcore.models.recording import Site, visiting
from shadowcore.recipes import PredictorConfig
from shadowcore.schemas import QUALITY
from shadowcore.stages import train_predictor

WINDOWS = torch.randint(3, 96, (24, 12), generator=torch.Generator().manual_seed(0))
SITE = Site(0, "heads")


def traced(model, windows=WINDOWS, sites=(SITE,)):
    return tracing.trace(
        model, windows, tracing.TracePlan([], [], 4, 2, [], 0, ["plainact", "l2_norm"], sites), 5
    )  # fmt: skip


def test_a_window_has_its_summed_scores_and_the_features_of_its_last_position(tiny):
    """By hand: a window alone, its activations kept with their gradients, and sums over its positions."""
    found, sizes = traced(tiny), dimensions_of(tiny.config)
    for place in (0, 23):
        ids, units, features = WINDOWS[place : place + 1], {}, {}

        def see(site, x, units=units, features=features):
            if site.what in KINDS:
                x.retain_grad()
                units[site] = x
            features[site] = x.detach()
            return (
                x if site.what in KINDS else None
            )  # so that the model continues with the tensor that has the gradient

        with visiting(tiny, see):
            logits = tiny(ids[:, :-1]).logits
        cross_entropy(logits[0], ids[0, 1:]).backward()
        torch.testing.assert_close(
            found["windows.feature.heads.0"][place], features[SITE][0, -1].flatten().bfloat16(), rtol=2**-7, atol=1e-3
        )
        for site, a in units.items():
            plainact = (a * a.grad).sum(-1).abs().sum((0, 1))
            sizes_of = a.square().sum((0, 1, 3)).sqrt()
            for name, by_hand in (("plainact", plainact), ("l2_norm", sizes_of)):
                codes, top = (
                    found[f"windows.{name}.{site.what}.{part}"][place, site.layer] for part in ("codes", "top")
                )
                scores = decode(codes, top, tracing.WINDOW_BITS, sizes.units(site.what))
                assert torch.equal(scores == 0, by_hand == 0)
                ratio = (scores / by_hand)[scores > 0]
                half = step_ratio(tracing.WINDOW_BITS) ** 0.5 * 1.001
                assert ratio.min() > 1 / half and ratio.max() < half


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Open traces of windows of a tiny Llama, to train on and held out."""
    torch.manual_seed(0)
    model, folder = TINY["llama"](), tmp_path_factory.mktemp("traces")
    with ExitStack() as stack:
        opened = []
        for name, part in (("train", WINDOWS[:16]), ("heldout", WINDOWS[16:])):
            path = folder / f"{name}.safetensors"
            artifacts.write_tensors(path, tracing.SCHEMA, traced(model, part), {})
            opened.append(stack.enter_context(artifacts.open_tensors(path, tracing.SCHEMA)))
        yield model, opened


RECIPE = PredictorConfig(
    recipe="published_lookahead", rank_heads=8, rank_neurons=16, batch=4, epochs=60, epochs_heads=60, learning_rate=0.01
).training_recipe()


def fitted(files, recipe=RECIPE):
    model, opened = files
    torch.manual_seed(0)
    predictor = Predictor("shadow", dimensions_of(model.config), recipe.rank, per_example=True)
    train, held = (TraceDataset([file], predictor, "plainact", tracing.WINDOW_BITS, "windows") for file in opened)
    return predictor, train, held, training.fit(predictor, train, held, recipe, 0)


def test_the_published_recipe_learns_windows_scaled_by_their_own_extremes(files):
    """Features and scores of any size and offset are the same to it; the last epoch is kept, whatever its loss."""
    predictor, train, _, fits = fitted(files)
    assert [fits[kind][0].best_epoch for kind in KINDS] == [60, 60] and len(train) == 16
    chunk, index = next(train.chunks()), torch.arange(16)
    scores = chunk.scores("neurons", index)
    wanted = training.target_of(scores, RECIPE)
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    torch.testing.assert_close(wanted, (scores - low) / (high - low))
    (scorer,), feature = predictor.scorers["neurons"], chunk.feature(SITE, index)
    before = (scorer.score_mean.expand(16, -1, -1) + wanted[:, 1:].mean(0) - wanted[:, 1:]).square().mean()
    assert (scorer(feature) - wanted[:, 1:]).square().mean() < 0.9 * before
    torch.testing.assert_close(scorer(3 * feature + 7), scorer(feature), rtol=1e-3, atol=1e-4)
    best = fitted(files, replace(RECIPE, epoch_kept="best"))[3]
    assert all(best[kind][0].loss <= fits[kind][0].loss for kind in KINDS)


def test_correlations_of_examples_are_scipys_over_all_layers(files):
    predictor, train, held, _ = fitted(files)
    names = dict.fromkeys(train_predictor.Spec.__dataclass_fields__)
    spec = train_predictor.Spec(**names | {"recipe": RECIPE, "method": "shadow", "predictor": "published", "seed": 0})
    rows = train_predictor.rank_quality(spec, predictor, train, held)
    QUALITY.build(rows)
    found = {(row["method"], row["kind"]): row for row in rows}
    assert set(found) == {(method, kind) for method in ("shadow", "static") for kind in KINDS}
    assert {(row["metric"], row["layer"], row["n"]) for row in rows} == {("spearman_of_examples", None, 8)}
    assert {row["predictor"] for row in rows} == {"published"}
    for kind in KINDS:
        chunk, index = next(held.chunks()), torch.arange(8)
        true = training.target_of(chunk.scores(kind, index), RECIPE)[:, 1:].flatten(1)
        predicted = predictor.scorers[kind][0](chunk.feature(SITE, index)).detach().flatten(1)
        by_hand = [stats.spearmanr(*pair).statistic for pair in zip(predicted, true, strict=True)]
        assert found["shadow", kind]["value"] == pytest.approx(sum(by_hand) / 8, rel=1e-6)


def test_deja_vus_site_is_the_residual_between_attention_and_ffn(of_family, tokens):
    """What enters a layer and what its attention adds; models whose FFN has no norm of its own are refused."""
    if of_family.config.model_type in ("olmo2", "phi"):
        refused("no norm of its own.*dejavu", traced, of_family, sites=[Site(0, "ffn_residual")])
        return
    seen, added = {}, {}
    for index, layer in enumerate(layers_of(of_family)):
        attention = getattr(layer, "self_attn", None) or layer.attention
        attention.register_forward_hook(lambda module, args, out, index=index: added.update({index: out[0]}))
    with torch.no_grad(), visiting(of_family, lambda site, x: seen.update({site: x})):
        of_family(tokens)
    parallel = of_family.config.model_type == "gpt_neox"  # its FFN reads what its attention reads
    for index in range(4):
        entering = seen[Site(index, "residual")]
        wanted = entering if parallel else entering + added[index]
        torch.testing.assert_close(seen[Site(index, "ffn_residual")], wanted)
