"""Times of a checkpoint: every mode computes and generates what the masked model does, or is not timed."""

import dataclasses

import pytest
import torch
from conftest import random_predictor
from test_decoder import VARIANTS

from shadowcore.measure.equivalence import Disagreement
from shadowcore.measure.latency import costs
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.stages.latency import Spec, variants_of

SPEC = Spec(
    model="tiny", weights="random", dtype="float32", criterion="plainact", units="both", sparsities_pct=(50,),
    predictors=("shadow", "segments"), proxies=("proxy4", "proxy4_ahead"),
    prompt_tokens=8, new_tokens=3, repeats=1, warmup=0, seed=0,
)  # fmt: skip
EITHER = {"huggingface", "dense", "static 50", "given 50", "shadow 50", "segments 50", "proxy4 50", "proxy4_ahead 50"}


def choosers_of(model, designs=SPEC.predictors):
    sizes = dimensions_of(model.config)
    predictors = [random_predictor(model, design, 1 if design == "shadow" else 2) for design in designs]
    windows = torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(1))
    return {kind: torch.rand(sizes.layers, sizes.units(kind)) for kind in KINDS}, predictors, windows


def test_modes_of_a_checkpoint_generate_what_the_masked_model_does(tiny, tokens):
    variants = variants_of(SPEC, tiny, 16, *choosers_of(tiny), triton=False)
    assert set(variants) == EITHER
    for name, variant in variants.items():
        variant.check(name, tiny, tokens[:1, :7], 3)
    dense, shadow = (costs(variants[name].decoder, tokens[0, :1], 1.0, None) for name in ("dense", "shadow 50"))
    assert shadow["kept_neurons"] < dense["kept_neurons"] and shadow["predictor_mb"] > 0
    proxy = costs(variants["proxy4 50"].decoder, tokens[0, :1], 1.0, None)
    assert proxy["kept_neurons"] == shadow["kept_neurons"] and proxy["kept_heads"] == dense["kept_heads"]


@pytest.mark.slow
def test_so_do_those_of_the_triton_decoder(tokens):
    pytest.importorskip("triton", reason="Triton is not installed, so there is no Triton decoder to test")
    if torch.cuda.is_available():
        pytest.skip("the tiny model is on the CPU")
    torch.manual_seed(0)
    model = VARIANTS["opt without biases"]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    spec = dataclasses.replace(SPEC, predictors=("shadow",))
    variants = variants_of(spec, model, 16, *choosers_of(model, designs=("shadow",)), triton=True)
    assert set(variants) == EITHER - {"segments 50"} | {"threshold 50", "relu"}
    for name, variant in variants.items():
        variant.check(name, model, tokens[:1, :4], 1)


def test_a_variant_that_computes_something_else_is_refused_and_the_others_are_timed(tiny, tokens):
    variants = variants_of(SPEC, tiny, 16, *choosers_of(tiny), triton=False)
    dense, proxy = variants["dense"], variants["proxy4 50"]
    proxy.decoder.selection.predictor.copies.unpacked(1, torch.float32)[:] *= torch.rand(1, 1, 32)
    with pytest.raises(Disagreement, match="'proxy4 50'.*neurons are kept by one side only"):
        proxy.check("proxy4 50", tiny, tokens[:1, :7], 3)
    dense.decoder.layout.layers[2].ffn_down[:] = 0  # all variants but the compacted ones share this layout
    with pytest.raises(Disagreement, match="'dense'.*logits"):
        dense.check("dense", tiny, tokens[:1, :7], 3)
    variants["static 50"].check("static 50", tiny, tokens[:1, :7], 3)
