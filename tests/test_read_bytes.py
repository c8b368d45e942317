"""Weight bytes per token: counted by hand, from cut models, and from the decoder that really skips."""

import pytest
import torch
from conftest import family_model, random_predictor
from test_sparsity import baselines, sources

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import DECODED, from_model
from shadowcore.measure.latency import bytes_per_step
from shadowcore.measure.predictor_free import ThresholdMasks
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.measure.sparsity import FixedMasks, PredictedMasks, SparseModel, random_scores
from shadowcore.method.predictors import PREDICTORS
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.models.losses import all_scored
from shadowcore.models.masking import cut_out

LAYERS, WIDTH, HEADS, HEAD_WIDTH, WORDS = 4, 32, 4, 8, 96  # of `family_model`
LLAMA_NEURONS, OPT_NEURONS = 48, 64


def read(model, masks, tokens, protocol="token", kinds=KINDS):
    """What a condition's row says it reads per token."""
    sparse = SparseModel(model, masks, PROTOCOLS[protocol])
    sparse.logits(tokens, all_scored(tokens))
    measured = sparse.measured_sparsity(kinds)
    assert measured["read_share"] == measured["read_bytes"] / read_dense(model)
    return measured["read_bytes"]


def read_dense(model):
    return SparseModel(model, None).measured_sparsity(())["read_bytes"]


def by_hand(family):
    """Numbers that a dense step of a tiny model reads, and those of a head and of a neuron."""
    if family == "llama":  # two key-value heads, a gate, no biases; tied tables
        attention = 2 * WIDTH * HEADS * HEAD_WIDTH + 2 * WIDTH * 2 * HEAD_WIDTH
        layer = attention + 3 * WIDTH * LLAMA_NEURONS + 2 * WIDTH
        return LAYERS * layer + WORDS * WIDTH + WIDTH + WIDTH, 2 * WIDTH * HEAD_WIDTH, 3 * WIDTH
    attention = 4 * (WIDTH * WIDTH + WIDTH)
    layer = attention + (2 * WIDTH + 1) * OPT_NEURONS + WIDTH + 4 * WIDTH  # fc2's bias, two norms
    return LAYERS * layer + WORDS * WIDTH + 2 * WIDTH + 2 * WIDTH, 2 * WIDTH * HEAD_WIDTH + HEAD_WIDTH, 2 * WIDTH + 1


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_dense_and_constant_masks_read_what_is_counted_by_hand(tiny, tokens, dtype, size):
    model = tiny.to(dtype)
    whole, head, neuron = by_hand(model.config.model_type)
    assert read_dense(model) == size * whole
    sizes = dimensions_of(model.config)
    masks = FixedMasks(random_scores(sizes, KINDS, 0), "per_layer", 50)
    removed = 3 * (2 * head + sizes.neurons // 2 * neuron)  # half of three layers
    assert read(model, masks, tokens) == size * (whole - removed)


@pytest.mark.parametrize("family", DECODED)
@pytest.mark.parametrize("tied", [True, False])
def test_dense_reads_what_the_decoder_reads(tokens, family, tied):
    model = family_model(family, tie_word_embeddings=tied)
    decoder = Decoder(from_model(model), 16)
    decoder.prefill(tokens[:1, :4])
    decoder.step(tokens[0, 4:5])
    assert read_dense(model) == bytes_per_step(decoder)


def test_what_is_removed_is_what_a_cut_model_has_no_longer(of_family, tokens):
    """Neurons of every family; a cut model has the same heads, only zeros in them."""
    sizes = dimensions_of(of_family.config)
    scores = {"neurons": random_scores(sizes, KINDS, 0)["neurons"]}
    masks = FixedMasks(scores, "per_layer", 30)
    cut = cut_out(of_family, masks.keep)
    assert read(of_family, masks, tokens) == read_dense(cut) < read_dense(of_family)


@pytest.mark.parametrize("design", PREDICTORS)
def test_a_predictor_reads_itself_and_its_own_heads(tiny, tokens, design):
    """Counted from its tensors: weights in 16 bits and biases in 32; under `prompt` before the first step."""
    predictor, whole, head, neuron = random_predictor(tiny, design), *by_hand(tiny.config.model_type)
    removed = {"heads": 3 * 2 * head, "neurons": 3 * dimensions_of(tiny.config).neurons // 2 * neuron}
    for kinds in (("neurons",), KINDS):
        layers = [part for kind in kinds for one in predictor.scorers[kind] for part in (one.inner, one.outer)]
        own = sum(2 * layer.weight.numel() + 4 * layer.bias.numel() for layer in layers)
        own = 0 if design == "static_tuned" else own  # its units are known before the step
        masks = PredictedMasks(predictor, kinds, "per_layer", 50)
        skipped = sum(removed[kind] for kind in kinds)
        assert read(tiny, masks, tokens, "prompt") == 4 * (whole - skipped)
        skipped -= removed["heads"] if design == "layerwise_own" and "heads" in kinds else 0
        assert read(tiny, masks, tokens) == own + 4 * (whole - skipped)


def test_a_threshold_on_the_activation_spares_the_down_projection_alone(tiny, tokens):
    sparse = SparseModel(tiny, ThresholdMasks(torch.tensor([-1, 0.1, 0.2, 0.3])))
    sparse.logits(tokens, all_scored(tokens))
    measured = sparse.measured_sparsity(("neurons",))
    removed = measured["sparsity_neurons"] * LAYERS * dimensions_of(tiny.config).neurons
    whole, _, _ = by_hand(tiny.config.model_type)
    assert removed > 0 and measured["read_bytes"] == pytest.approx(4 * (whole - removed * WIDTH), rel=1e-9)


def test_what_removes_more_never_reads_more(tiny, tokens):
    for made in zip(
        *([*sources(tiny, pct), *baselines(tiny, "token", pct)] for pct in (0, 10, 50, 90, 100)), strict=True
    ):
        reads = [read(tiny, masks, tokens) for masks in made]
        assert reads == sorted(reads, reverse=True)
