"""On a real GPU, at real layer sizes: the Triton decoder is the Hugging Face model, dense and masked."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import from_model, upcast
from shadowcore.decode.low_bit_proxy import Proxy
from shadowcore.decode.selection import DenseSelection, FixedSelection, PredictedSelection
from shadowcore.measure.equivalence_decoder import gate
from shadowcore.measure.equivalence_model import check
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.gpu_timing import fill_cache
from shadowcore.measure.group import Group
from shadowcore.measure.perplexity import window_losses
from shadowcore.measure.sparsity import PredictedMasks, SparseModel
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.predictors import Predictor
from shadowcore.models.families import KINDS, device_of, dimensions_of
from shadowcore.models.folders import load_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

OPT = {"hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32, "num_hidden_layers": 6}
OPT |= {"word_embed_proj_dim": 2048, "vocab_size": 50272}
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 4}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
SMOLLM2 |= {"num_hidden_layers": 30, "vocab_size": 49152, "tie_word_embeddings": True, "initializer_range": 0.03}
MODELS = {
    "opt": lambda: OPTForCausalLM._from_config(OPTConfig(**OPT, init_std=0.03)),
    "llama": lambda: LlamaForCausalLM._from_config(LlamaConfig(**LLAMA_7B, initializer_range=0.02)),
    "smollm2": lambda: LlamaForCausalLM._from_config(LlamaConfig(**SMOLLM2)),
}


def made(name, dtype):
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = MODELS[name]()
    return model.to(dtype).eval()


def random_predictor(design, count, sizes, block=1):
    predictor = Predictor(design, sizes, {"heads": 64, "neurons": 256}, count, block=block).eval()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return predictor.to("cuda")


def predicted(design, count, sizes, block=1):
    predictor = random_predictor(design, count, sizes, block)
    return PredictedSelection(predictor, "per_layer", dict.fromkeys(KINDS, 50))


def by_proxy(layout, method):
    return PredictedSelection(Proxy(layout, method), "per_layer", {"neurons": 50})


def decoders(layout, room):
    from shadowcore.decode.triton_decoder import GraphDecoder

    sizes = layout.sizes
    keep = {k: torch.rand(sizes.layers, sizes.units(k), device="cuda") < 0.5 for k in KINDS}
    selections = {"dense": DenseSelection(), "gathered": FixedSelection(keep)}
    for design, count in (("shadow", 1), ("segments", 2), ("layerwise", 1)):
        selections[design] = predicted(design, count, sizes)
    selections["blocks"] = predicted("shadow", 1, sizes, block=16)
    for name, selection in selections.items():
        yield name, GraphDecoder(layout, room, selection), selection


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_decoder_is_the_masked_model(name, dtype):
    model = made(name, dtype)
    ids = torch.randint(10, 1000, (1, 80), device="cuda")
    for mode, decoder, selection in decoders(from_model(model), 96):
        if isinstance(selection, PredictedSelection):
            selection.predictor.to(dtype)  # the decoder has its own copy by now
        print(mode, check(mode, decoder, model, ids, 8, selection))


@pytest.mark.parametrize("method", ["proxy4", "proxy3", "proxy4_ahead"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_decoder_with_a_proxy_is_the_masked_model_and_a_batch_the_torch_decoder(name, method):
    from shadowcore.decode.triton_decoder import GraphDecoder

    ids, tokens = torch.randint(10, 1000, (1, 80), device="cuda"), torch.arange(16, device="cuda") + 11
    for dtype in (torch.float32, torch.bfloat16):
        model = made(name, dtype)
        layout, (bits, ahead) = from_model(model), PROXIES[method]
        selection = by_proxy(layout, method)
        decoder = GraphDecoder(layout, 96, selection)
        print(method, check(method, decoder, model, ids, 8, selection, ProxyMasks(model, bits, 50, ahead)))
    reference = Decoder(upcast(layout), 96)
    for sequences in (1, 2, 16):
        decoder.reset(sequences)
        fill_cache(decoder, seed=1)
        print(sequences, gate(method, decoder, reference, 70, tokens[:sequences]))


def test_a_graph_is_what_it_was_captured_from():
    model = made("opt", torch.bfloat16)
    for _, decoder, _ in decoders(from_model(model), 96):
        decoder.generate(torch.randint(10, 1000, (1, 20), device="cuda"), 3)
        decoder.go_to(30)
        decoder._token.fill_(17)
        decoder.replay()
        replayed = decoder._scores.clone()
        decoder.go_to(30)
        decoder._token.fill_(17)
        decoder.launch()
        assert torch.equal(decoder._scores, replayed)


@pytest.mark.parametrize("sequences", [1, 2, 16])
@pytest.mark.parametrize("design", ["shadow", "layerwise", "proxy4", "proxy4_ahead"])
def test_choosing_beside_other_layers_changes_nothing(design, sequences):
    from shadowcore.decode.kernels.launch import Branch
    from shadowcore.decode.triton_decoder import GraphDecoder

    layout, found = from_model(made("opt", torch.bfloat16)), []
    selection = by_proxy(layout, design) if design in PROXIES else predicted(design, 1, layout.sizes)
    for inline in (True, False):
        decoder = GraphDecoder(layout, 96, selection)
        if inline:
            decoder._branch = Branch(torch.device("cpu"))
        decoder.reset(sequences)
        fill_cache(decoder, seed=1)
        decoder.go_to(40)
        decoder._token.copy_(torch.arange(sequences) + 11)
        steps = []
        for _ in range(32):
            decoder.launch() if inline else decoder.replay()
            steps.append([decoder._token.clone(), decoder._scores.clone(), *decoder.keep_masks().values()])
        found.append(steps)
    for eager, replayed in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(eager, replayed, strict=True))


def test_200_tokens_in_float32_are_those_of_hugging_face():
    model = made("smollm2", torch.float32)
    sizes = dimensions_of(model.config)
    assert (sizes.layers, sizes.width, sizes.kv_heads) == (30, 576, 3)
    prompt = torch.randint(10, 1000, (1, 32), device="cuda")
    for mode, decoder, selection in decoders(from_model(model), 256):
        print(mode, check(mode, decoder, model, prompt, 200, selection))


@pytest.mark.parametrize("sequences", [2, 16])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_batch_is_the_torch_decoder(name, sequences):
    layout = from_model(made(name, torch.bfloat16))
    reference = Decoder(upcast(layout), 96)
    tokens = torch.arange(sequences, device="cuda") + 11
    for mode, decoder, _ in decoders(layout, 96):
        decoder.reset(sequences)
        fill_cache(decoder, seed=1)
        gate(mode, decoder, reference, 70, tokens)


@torch.inference_mode()
@pytest.mark.parametrize("sequences", [4, 64])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_sequence_of_a_batch_has_its_own_units_and_reads_no_cache_of_other_heads(name, sequences):
    from shadowcore.decode.triton_decoder import GraphDecoder

    model = made(name, torch.float32 if name == "smollm2" else torch.bfloat16)
    ids, layout = torch.randint(10, 1000, (sequences, 80), device="cuda"), from_model(model)
    sizes = layout.sizes
    predictor = predicted("shadow", 1, sizes).predictor
    keep = {k: torch.rand(sequences, sizes.layers, sizes.units(k), device="cuda") < 0.5 for k in KINDS}
    selections = {
        "predicted heads": PredictedSelection(predictor, "per_layer", {"heads": 50}),
        "given heads": FixedSelection({"heads": keep["heads"]}),
        "given": FixedSelection(keep),
    }
    for mode, selection in selections.items():
        decoder = GraphDecoder(layout, 96, selection)
        predictor.to(model.dtype)  # the decoder has its own copy by now
        print(mode, check(mode, decoder, model, ids, 4, selection))
    read = keep["heads"].transpose(0, 1).unflatten(-1, (sizes.kv_heads, -1)).any(-1)  # (L, B, G)
    for cache in (decoder._keys, decoder._values):
        cache[~read] = torch.nan
    assert decoder.step(ids[:, 0]).isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_a_model_on_two_gpus_is_the_model_on_one(tmp_path):
    """Windows after a prompt, dense and under each design; tests/test_several_gpus.py pretends GPUs and tests more."""
    model = made("opt", torch.bfloat16)
    model.save_pretrained(tmp_path)
    spread = load_model(tmp_path, "bfloat16", 2)
    assert [device_of(spread, layer).index for layer in range(6)] == [0, 0, 0, 1, 1, 1]
    windows = torch.randint(10, 1000, (4, 80))
    for design in (None, "shadow", "layerwise", "layerwise_own"):
        found = []
        for one in (model, spread):
            torch.manual_seed(0)
            masks = None
            if design:
                predictor = random_predictor(design, 1, dimensions_of(model.config)).put_on(one)
                masks = PredictedMasks(predictor, KINDS, "per_layer", 50)
            found.append(window_losses(Group({"": SparseModel(one, masks)}), windows, 2, prompt=40)[""])
        torch.testing.assert_close(*found, rtol=1e-3, atol=0)
