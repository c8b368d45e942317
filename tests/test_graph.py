"""The Triton decoder against the Hugging Face model and the torch decoder, its kernels interpreted without a GPU."""

import pytest
import torch
from conftest import random_predictor, refused
from test_decoder import HALF, PROMPT, all_logits, close, logits_of, random_masks, random_model
from transformers import OPTConfig, OPTForCausalLM

pytest.importorskip("triton", reason="Triton is not installed, so there is no Triton decoder to test")
if torch.cuda.is_available():
    pytest.skip("models on the CPU, kernels interpreted; test_gpu.py has those on a GPU", allow_module_level=True)

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import compacted, from_model
from shadowcore.decode.low_bit_proxy import Proxy
from shadowcore.decode.selection import FixedSelection, PredictedSelection
from shadowcore.decode.triton_decoder import GraphDecoder
from shadowcore.errors import ConfigError
from shadowcore.measure.dense_baselines import TorchGraph, as_model
from shadowcore.measure.equivalence_decoder import gate
from shadowcore.measure.equivalence_model import check
from shadowcore.measure.latency import bytes_per_step
from shadowcore.method.low_bit import PROXIES
from shadowcore.models.families import KINDS

ROOM = 16


def slow(*values):
    """A case that only CI runs: every case takes seconds."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def ids(tokens):
    """One short sequence (1, 8): the interpreter is slow."""
    return tokens[:1, :8]


@pytest.mark.parametrize("kinds", [slow(("heads",)), slow(("neurons",)), KINDS])
@pytest.mark.parametrize("design, count", [("shadow", 1), ("layerwise", 1), ("segments", 2)])
def test_predicted_steps_are_the_harness_and_read_what_the_torch_decoder_reads(tiny, ids, design, count, kinds):
    predictor, layout = random_predictor(tiny, design, count), from_model(tiny)
    selection = PredictedSelection(predictor, "per_layer", dict.fromkeys(kinds, 50))
    ours, theirs = GraphDecoder(layout, ROOM, selection), Decoder(layout, ROOM, selection)
    check(design, ours, tiny, ids, 2, selection)
    theirs.step(ids[:, 0])
    of_model = [bytes_per_step(one) - one.selection.weight_bytes for one in (ours, theirs)]
    assert of_model[0] == of_model[1]


class Late:
    """A branch that comes as late as it may; in line, as without it, is as early as it may."""

    def __init__(self):
        self.waiting, self.times = [], 0

    def __call__(self, launch):
        self.waiting.append(launch)
        self.times += 1

    def join(self):
        while self.waiting:
            self.waiting.pop(0)()


@pytest.mark.parametrize("tiny, design, count, branches", [
    ("opt", "shadow", 1, 1), ("llama", "layerwise", 1, 3), slow("opt", "segments", 2, 2),
    slow("llama", "proxy4_ahead", 1, 3), slow("opt", "proxy4", 1, 0),
], indirect=["tiny"])  # fmt: skip
def test_choosing_beside_other_layers_changes_nothing(tiny, tokens, design, count, branches):
    if design in PROXIES:
        selection = PredictedSelection(Proxy(from_model(tiny), design), "per_layer", {"neurons": 50})
    else:
        selection = PredictedSelection(random_predictor(tiny, design, count), "per_layer", HALF)
    for ids in (tokens[:1, : PROMPT + 3], tokens[:, : PROMPT + 1]):
        decoder = GraphDecoder(from_model(tiny), ROOM, selection)
        inline = logits_of(decoder, ids)
        kept = decoder.keep_masks()
        decoder._branch = Late()
        assert torch.equal(logits_of(decoder, ids), inline)
        assert all(torch.equal(decoder.keep_masks()[kind], kept[kind]) for kind in KINDS)
        assert decoder._branch.times == branches * (ids.shape[1] - PROMPT) and not decoder._branch.waiting


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_a_predictor_reading_the_heads_it_cannot_skip(tiny, ids):
    selection = PredictedSelection(random_predictor(tiny, "layerwise_own"), "per_layer", {"neurons": 50})
    check("layerwise_own", GraphDecoder(from_model(tiny), ROOM, selection), tiny, ids, 2, selection)


@pytest.mark.parametrize("variant", ["opt without biases", "llama with a gated relu"])
def test_relu_loses_nothing_and_a_threshold_masks(ids, variant):
    layout = from_model(random_model(variant))
    dense, exact, masked = (
        logits_of(GraphDecoder(layout, ROOM, thresholds=limit and [limit[0]] * layout.sizes.layers), ids)
        for limit in (None, [0.0], [1.0])
    )
    assert layout.exact_zeros and as_model(layout).config.model_type == variant[: len("llama")].split()[0]
    close(exact, dense)
    assert not torch.allclose(masked[:, 1:], dense[:, 1:], atol=1e-2)


def test_the_dense_baseline_is_the_model(tiny, ids):
    close(logits_of(TorchGraph(from_model(tiny), ROOM), ids), all_logits(tiny, ids))


def test_what_is_not_served_is_refused(tiny, tokens):
    layout = from_model(tiny)
    refused("batch: 65 .* up to 64, the torch", GraphDecoder(layout, ROOM).prefill, tokens[:1].expand(65, -1))
    with pytest.raises(ConfigError, match="thresholds: .* 1 only .got 2."):
        GraphDecoder(layout, ROOM, thresholds=[0.1] * layout.sizes.layers).prefill(tokens)
    refused("temperature: TorchGraph .* 0.5", TorchGraph(layout, ROOM).generate, tokens[:1], 2, temperature=0.5)
    refused("temperature: -1 .* 0", GraphDecoder(layout, ROOM).generate, tokens[:1], 2, temperature=-1)
    refused("holds 5 positions, 6 are needed", GraphDecoder(layout, 5).generate, tokens[:1, :5], 2)
    with pytest.raises(ConfigError, match="'global'.*torch backend has it"):
        GraphDecoder(layout, ROOM, PredictedSelection(random_predictor(tiny, "shadow"), "global", HALF))
    refused("float64 is not served by the Triton backend", GraphDecoder, from_model(tiny.double()), ROOM)
    keep = random_masks(tiny)
    with pytest.raises(ConfigError, match="compacted layout has only its kept units"):
        GraphDecoder(compacted(layout, keep), ROOM, FixedSelection(keep))
    odd = OPTForCausalLM(
        OPTConfig(hidden_size=24, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=96,
                  max_position_embeddings=64, word_embed_proj_dim=24)
    )  # fmt: skip
    refused("head width: 12 is not served", GraphDecoder, from_model(odd), ROOM)


SHORT = PROMPT + 1  # of several sequences: the interpreter is slow


def test_several_sequences_share_what_is_read(tiny, tokens):
    layout, ids = from_model(tiny), torch.cat((tokens, tokens.flip(1)))[:3, :SHORT]
    design, count = ("segments", 2) if tiny.config.model_type == "opt" else ("shadow", 1)
    selection = PredictedSelection(random_predictor(tiny, design, count), "per_layer", HALF)
    ours, reference = GraphDecoder(layout, ROOM, selection), Decoder(layout, ROOM)
    ours.prefill(ids)  # fills the cache that both continue from
    gate("batch", ours, reference, SHORT, ids[:, -1])
    assert ours.selection.kept(1, "neurons").rows.shape[0] == len(ids)
    ours.prefill(ids[1:2])  # one decoder serves any number
    gate("alone", ours, reference, SHORT, ids[1:2, -1])


@pytest.mark.parametrize("batch", [2, slow(4)])
@pytest.mark.parametrize("kinds", [("heads",), slow(KINDS)])
def test_a_predictor_chooses_for_each_sequence_of_a_batch(tiny, tokens, kinds, batch):
    ids = torch.cat((tokens, tokens.flip(1)))[:batch, :SHORT]
    selection = PredictedSelection(random_predictor(tiny, "layerwise"), "per_layer", dict.fromkeys(kinds, 50))
    decoder = GraphDecoder(from_model(tiny), ROOM, selection)
    check("batch", decoder, tiny, ids, 1, selection)
    masks = decoder.masks_by_sequence()["heads"][1:]
    assert masks.sum(-1).eq(masks.shape[-1] // 2).all() and not masks.eq(masks[:, :1]).all()  # as many, not the same


@pytest.mark.parametrize(
    "variant", ["llama with biases, untied, wide heads", "qwen3, a norm for each head, wide heads"]
)
def test_several_sequences_with_fixed_or_compacted_units(tokens, variant):
    model = random_model(variant)
    keep, layout, ids = random_masks(model), from_model(model), tokens[:, :SHORT]
    for given, selection in (
        (layout, FixedSelection(keep)),
        (compacted(layout, keep), None),
    ):  # no scores: no near ties
        ours, theirs = GraphDecoder(given, ROOM, selection), Decoder(given, ROOM, selection)
        close(logits_of(ours, ids), logits_of(theirs, ids))
    close(logits_of(TorchGraph(layout, ROOM), ids), logits_of(Decoder(layout, ROOM), ids))
