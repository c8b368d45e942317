"""Decoders that choose neurons by low-bit copies: packed codes, scores, choices and bytes of both backends."""

import pytest
import torch
from conftest import TINY, refused
from test_decoder import close, logits_of

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import from_model
from shadowcore.decode.low_bit_proxy import Proxy, packed
from shadowcore.decode.selection import PredictedSelection
from shadowcore.measure.equivalence import Disagreement
from shadowcore.measure.equivalence_decoder import gate
from shadowcore.measure.equivalence_model import check
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.gpu_timing import fill_cache
from shadowcore.measure.latency import bytes_per_step
from shadowcore.method.low_bit import PROXIES
from shadowcore.models.families import dimensions_of
from shadowcore.models.recording import Site


def proxy_decoder(backend, layout, method, pct=50, room=20):
    return backend(layout, room, PredictedSelection(Proxy(layout, method), "per_layer", {"neurons": pct}))


def masks_of(model, method):
    return ProxyMasks(model, PROXIES[method][0], 50, PROXIES[method][1])


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("width", [64, 24, 100])
def test_packed_codes_are_the_codes(bits, width):
    codes = torch.randint(0, 2**bits, (5, width), dtype=torch.int32)
    codes[0], codes[1] = 2**bits - 1, 0
    words = packed(codes, bits)
    fields = [(words.long() >> bits * i) % 2**bits for i in range(32 // bits)]
    assert words.dtype == torch.int32 and words.shape[1] % 4 == 0
    assert words.shape[1] < width / (32 // bits) + 4
    assert torch.equal(torch.cat(fields, 1)[:, :width], codes.long())


@pytest.mark.parametrize("method", ["proxy4", "proxy2", "proxy3_ahead"])
def test_scores_are_those_of_the_evaluation(tiny, method):
    proxy, masks, x = Proxy(from_model(tiny), method), masks_of(tiny, method), torch.randn(2, 3, 32)
    for layer in (1, 2, 3):
        site = Site(layer, masks.read_at)
        (layers, ours), (_, theirs) = proxy.read(site, x, "neurons"), masks.read(site, x)["neurons"]
        assert layers == (layer,)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["proxy4", "proxy4_ahead"])
def test_a_step_is_the_masked_model(tiny, tokens, method):
    decoder = proxy_decoder(Decoder, from_model(tiny), method)
    for row in tokens:
        check(method, decoder, tiny, row[None], 4, decoder.selection, masks_of(tiny, method))
    dense = Decoder(from_model(tiny), 20)
    assert not torch.allclose(logits_of(decoder, tokens)[:, 1:], logits_of(dense, tokens)[:, 1:], atol=1e-2)
    every = proxy_decoder(Decoder, from_model(tiny), method, pct=0)
    close(logits_of(every, tokens), logits_of(dense, tokens))


@pytest.mark.parametrize(
    "tiny, sequences, method", [("llama", 1, "proxy4"), ("opt", 1, "proxy3_ahead"), ("llama", 2, "proxy4_ahead")],
    indirect=["tiny"],
)  # fmt: skip
def test_the_triton_decoder_is_the_torch_decoder(tiny, sequences, method):
    pytest.importorskip("triton", reason="Triton is not installed, so there is no Triton decoder to test")
    if torch.cuda.is_available():
        pytest.skip("test_gpu.py tests it on a GPU")
    from shadowcore.decode.triton_decoder import GraphDecoder

    layout = from_model(tiny)
    decoder = proxy_decoder(GraphDecoder, layout, method)
    decoder.reset(sequences)
    fill_cache(decoder, seed=1)
    gate(method, decoder, Decoder(layout, 20), 9, torch.arange(sequences) + 11)
    decoder.selection._copies[2].words[:, 0] ^= -1
    with pytest.raises(Disagreement, match="kept by one side only"):
        gate(method, decoder, Decoder(layout, 20), 9, torch.arange(sequences) + 11)


def test_bytes_that_are_counted_are_those_that_are_stored(tiny, tokens):
    pytest.importorskip("triton", reason="Triton is not installed, so nothing is packed")
    from shadowcore.decode.triton_selection import on_device

    layout, sizes = from_model(tiny), dimensions_of(tiny.config)
    layers, gated = sizes.layers - 1, layout.activation != "relu"
    rows = layers * sizes.neurons * (2 if gated else 1)
    for method, (bits, _) in PROXIES.items():
        selection = PredictedSelection(Proxy(layout, method), "per_layer", {"neurons": 50})
        words = -(-32 // (32 // bits * 4)) * 4  # of 32 numbers, in fours
        own = rows * (4 * words + 4) + 4 * layers * sizes.neurons + (0 if gated else 2 * 4 * rows)  # OPT: gains, biases
        assert on_device(selection, layout).weight_bytes == own
        if gated and bits == 4:
            assert own == masks_of(tiny, method).selector_bytes(tiny)
        decoder = Decoder(layout, 20, selection)
        decoder.step(tokens[:1, 0])
        copies = rows * 32 * 4 + 4 * layers * sizes.neurons + (0 if gated else 4 * rows)  # as numbers, in 32 bits
        neuron = 4 * (3 * 32 if gated else 2 * 32 + 1)
        dense = Decoder(layout, 20)
        dense.step(tokens[:1, 0])
        assert bytes_per_step(decoder) == bytes_per_step(dense) + copies - layers * sizes.neurons // 2 * neuron


def test_proxies_of_as_many_bits_share_their_copies():
    layout, made = from_model(TINY["opt"]()), {}
    one, other, third = (Proxy(layout, method, made) for method in ("proxy4", "proxy4_ahead", "proxy3"))
    assert one.copies is other.copies is not third.copies
    refused("unknown 'proxy5'; did you mean", Proxy, layout, "proxy5")
    refused("unknown 'heads'", PredictedSelection, one, "per_layer", {"heads": 50})
    refused("global.*proxy4", PredictedSelection, one, "global", {"neurons": 50})
