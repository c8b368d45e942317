"""The decoder against the Hugging Face model: the same numbers, dense, masked, cut out and predicted."""

from functools import partial

import pytest
import torch
from conftest import TINY, family_model, random_predictor, refused

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import compacted, from_model, weights_of
from shadowcore.decode.selection import FixedSelection, PredictedSelection
from shadowcore.errors import ConfigError
from shadowcore.measure.dense_baselines import HuggingFaceDecoder
from shadowcore.measure.equivalence_model import check
from shadowcore.measure.gpu_timing import bytes_cached
from shadowcore.measure.latency import bytes_per_step, measure, predictor_time, summarise
from shadowcore.method.predictors import Predictor
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.models.masking import masked

PROMPT = 5
HALF = dict.fromkeys(KINDS, 50)
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS = {
    name: partial(family_model, family, num_hidden_layers=2, **keys)
    for name, family, keys in (
        ("opt without biases", "opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
        ("llama with biases, untied, wide heads", "llama",
         {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "head_dim": 16}),
        ("llama with a gated relu", "llama", {"hidden_act": "relu", "num_key_value_heads": 4}),
        ("llama with scaled rotary positions", "llama", {"rope_parameters": YARN}),
        ("mistral with a window of the cache's length", "mistral", {"sliding_window": 16}),
        ("qwen2, biases of query, key and value", "qwen2", {}),
        ("qwen3, a norm for each head, wide heads", "qwen3", {"head_dim": 16}),
    )
}  # fmt: skip


def close(ours, theirs):
    """Equal but for rounding, which is far smaller in float64."""
    allowed = 1e-10 if ours.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ours, theirs, atol=allowed, rtol=allowed)


def random_masks(model, fraction=0.5, seed=2):
    generator, sizes = torch.Generator().manual_seed(seed), dimensions_of(model.config)
    return {k: torch.rand(sizes.layers, sizes.units(k), generator=generator) < fraction for k in KINDS}


def logits_of(decoder, ids):
    """Of the prompt's last position and of every step after it, (B, T - PROMPT + 1, V)."""
    return torch.stack([decoder.prefill(ids[:, :PROMPT]), *(decoder.step(tokens) for tokens in ids[:, PROMPT:].T)], 1)


@torch.no_grad()
def all_logits(model, ids):
    return model(ids).logits[:, PROMPT - 1 :]


def test_dense_decoder_is_the_model(backend, tiny, ids):
    decoder = backend(from_model(tiny), 16)
    close(logits_of(decoder, ids), all_logits(tiny, ids))
    again = decoder.generate(ids[:1, :1], 2)  # a used decoder, no prompt
    assert torch.equal(again, backend(from_model(tiny), 16).generate(ids[:1, :1], 2))


def random_model(variant):
    torch.manual_seed(3)
    model = VARIANTS[variant]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_families(backend, variant, ids):
    model = random_model(variant)
    keep, layout = random_masks(model), from_model(model)
    close(logits_of(backend(layout, 16), ids), all_logits(model, ids))
    fixed = FixedSelection(keep)
    check("gathered", backend(layout, 16, fixed), model, ids[:1], 2, fixed)
    check("compacted", backend(compacted(layout, keep), 16), model, ids[:1], 2, fixed)


def test_skipped_units_are_masked_units(backend, tiny, ids):
    keep = random_masks(tiny)
    keep["heads"][1], keep["neurons"][2], keep["heads"][3] = True, False, False  # all and none are kept, too
    decoder, theirs = backend(from_model(tiny), 16, FixedSelection(keep)), HuggingFaceDecoder(tiny)
    close(decoder.prefill(ids[:, :PROMPT]), theirs.prefill(ids[:, :PROMPT]))  # the prompt is dense
    with masked(tiny, keep):
        for step in ids[:, PROMPT:].T:
            close(decoder.step(step), theirs.step(step))
    assert all(torch.equal(decoder.keep_masks()[kind], keep[kind]) for kind in KINDS)


@torch.inference_mode()
@pytest.mark.parametrize("batch", [2, 4])
def test_each_sequence_of_a_batch_has_its_own_units_and_reads_no_cache_of_other_heads(backend, tiny, tokens, batch):
    layout, ids = from_model(tiny), torch.cat((tokens, tokens.flip(1)))[:batch]
    generator, sizes = torch.Generator().manual_seed(7), layout.sizes
    keep = {k: torch.rand(2, batch, sizes.layers, sizes.units(k), generator=generator) < 0.5 for k in KINDS}
    keep["heads"][:, 0, 1], keep["heads"][:, :, 2, 0], keep["heads"][:, :, 3] = False, False, True
    decoder, theirs = backend(layout, 16, FixedSelection(keep)), HuggingFaceDecoder(tiny)
    decoder.prefill(ids[:, :PROMPT]), theirs.prefill(ids[:, :PROMPT])
    for position, step in enumerate(ids[:, PROMPT : PROMPT + 2].T, PROMPT):
        own = {kind: mask[position % 2].transpose(0, 1) for kind, mask in keep.items()}  # (L, B, U)
        read = own["heads"].unflatten(-1, (sizes.kv_heads, -1)).any(-1)  # (L, B, G)
        before = [cache[~read].clone() for cache in (decoder._keys, decoder._values)]
        for cache in (decoder._keys, decoder._values):
            cache[~read] = torch.nan
        with masked(tiny, {kind: mask[:, :, None] for kind, mask in own.items()}):
            close(decoder.step(step), theirs.step(step))
        assert all(torch.equal(decoder.masks_by_sequence()[kind], own[kind]) for kind in KINDS)
        assert bytes_cached(decoder, 10) == read.sum() * 2 * sizes.head_width * 10 * 4
        for cache, values in zip((decoder._keys, decoder._values), before, strict=True):
            values[:, position] = cache[~read][:, position]  # written for a later step, which may keep the head
            cache[~read] = values
    refused(f"units for {batch} sequences, 1 are decoded", decoder.generate, ids[:1], 1)


def test_compacted_weights_are_masked_units(backend, tiny, ids):
    keep = random_masks(tiny)
    for mask in keep.values():
        mask[2] = False
    decoder = backend(compacted(from_model(tiny), keep), 16)
    with masked(tiny, keep):
        close(logits_of(decoder, ids), all_logits(tiny, ids))
    assert all(torch.equal(decoder.keep_masks()[kind], keep[kind]) for kind in KINDS)


@pytest.mark.slow
def test_drawing_is_seeded_and_cold_drawing_is_greedy(backend, tokens):
    decoder, prompt = backend(from_model(VARIANTS["opt without biases"]().eval()), 12), tokens[:1, :3]
    greedy = decoder.generate(prompt, 4)
    assert torch.equal(decoder.generate(prompt, 4, temperature=1e-4, seed=3), greedy)
    drawn = decoder.generate(prompt, 4, temperature=2.0, seed=3)
    assert torch.equal(decoder.generate(prompt, 4, temperature=2.0, seed=3), drawn)
    assert not torch.equal(decoder.generate(prompt, 4, temperature=2.0, seed=4), drawn)


@pytest.mark.parametrize("kinds", [("heads",), ("neurons",), KINDS])
@pytest.mark.parametrize("design, policy", [("shadow", "per_layer"), ("shadow", "global"), ("layerwise", "per_layer")])
def test_predicted_steps_are_the_harness_token_by_token(tiny, tokens, design, policy, kinds):
    predictor = random_predictor(tiny, design)
    selection = PredictedSelection(predictor, policy, dict.fromkeys(kinds, 50))
    decoder = Decoder(from_model(tiny), 16, selection)
    for ids in (tokens[:1], torch.cat((tokens, tokens.flip(1)))):
        check(design, decoder, tiny, ids, 4, selection)
    dense = Decoder(from_model(tiny), 16)
    assert not torch.allclose(logits_of(decoder, tokens)[:, 1:], logits_of(dense, tokens)[:, 1:], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("design", ["shadow", "layerwise"])
def test_predicted_steps_in_16_bits_are_the_harness_but_for_rounding(tiny, tokens, design, dtype):
    for parameter in tiny.parameters():
        parameter.data *= 0.3  # as tame as a trained model: with large weights every layer multiplies rounding
    tiny = tiny.to(dtype)
    selection = PredictedSelection(random_predictor(tiny, design), "per_layer", HALF)
    decoder = Decoder(from_model(tiny), 20, selection)
    for row in tokens:
        check(design, decoder, tiny, row[None], 8, selection)


def test_layout_holds_every_weight_once(tiny):
    layout, size = from_model(tiny), sum(weight.nbytes for weight in tiny.state_dict().values())
    tensors = [layout.embedding, layout.head, layout.positions, *weights_of(layout.final_norm)]
    tensors += [weight for layer in layout.layers for weight in weights_of(layer)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    tied = tiny.get_input_embeddings().weight.nbytes  # the state dict lists it twice
    assert sum(storages.values()) == size - tied


def test_releasing_the_model(tokens):
    for make in TINY.values():
        model = make().eval()
        want = all_logits(model, tokens)
        layout = from_model(model, release=True)
        assert sum(parameter.is_meta for parameter in model.parameters()) > 10
        close(logits_of(Decoder(layout, 16), tokens), want)


def test_positions_are_limited(tiny, tokens):
    layout = from_model(tiny)
    refused("max_positions: 65 .* at most 64", Decoder, layout, 65)
    with pytest.raises(ConfigError, match="max_positions: 17 .* at most 16.*sliding window"):
        Decoder(from_model(family_model("mistral", sliding_window=16)), 17)
    decoder = Decoder(layout, PROMPT)
    decoder.prefill(tokens[:, :PROMPT])
    refused("holds 5 positions, 6 are needed", decoder.step, tokens[:, PROMPT])
    refused("holds 5 positions, 12 are needed", decoder.prefill, tokens)


def test_selections_that_cannot_be_are_refused(tiny):
    refused("global", PredictedSelection, random_predictor(tiny, "layerwise"), "global", HALF)
    refused("did you mean 'per_layer'", PredictedSelection, random_predictor(tiny, "shadow"), "perlayer", HALF)
    with pytest.raises(ConfigError, match="reads the heads it should skip"):
        PredictedSelection(random_predictor(tiny, "layerwise_own"), "per_layer", HALF)
    heads_only = Predictor("shadow", dimensions_of(tiny.config), {"heads": 8})
    refused("unknown 'neurons'", PredictedSelection, heads_only, "per_layer", HALF)


def test_timing_takes_turns_and_keeps_raw_times(tiny, tokens):
    layout = from_model(tiny)
    variants = {
        "huggingface": HuggingFaceDecoder(tiny),
        "dense": Decoder(layout, 20),
        "static": Decoder(compacted(layout, random_masks(tiny)), 20),
        "shadow": Decoder(layout, 20, PredictedSelection(random_predictor(tiny, "shadow"), "per_layer", HALF)),
    }
    raw = measure(variants, tokens, new_tokens=3, repeats=2, warmup=1)
    assert [(row["repeat"], row["variant"]) for row in raw] == [(r, name) for r in (0, 1) for name in variants]
    assert all(row["ttft_ms"] > 0 and row["ms_per_token"] > 0 for row in raw)
    assert [row["variant"] for row in summarise(raw)] == list(variants)
    assert predictor_time(variants["shadow"], tokens[:, 0], repeats=2) > 0
    refused("has no predictor", predictor_time, variants["dense"], tokens[:, 0], repeats=1)
    refused("2 or more", measure, variants, tokens[:, :1], new_tokens=3, repeats=1, warmup=0)


def test_bytes_of_a_step_are_counted(tiny, tokens):
    layout, sizes, keep = from_model(tiny), dimensions_of(tiny.config), random_masks(tiny)
    predictor = random_predictor(tiny, "shadow")
    decoders = {
        "dense": Decoder(layout, 20),
        "gathered": Decoder(layout, 20, FixedSelection(keep)),
        "compacted": Decoder(compacted(layout, keep), 20),
        "shadow": Decoder(layout, 20, PredictedSelection(predictor, "per_layer", {"neurons": 25})),
    }
    read = {}
    for name, decoder in decoders.items():
        decoder.reset()
        decoder.step(tokens[:1, 0])
        read[name] = bytes_per_step(decoder)
    unread = 0 if layout.positions is None else tiny.model.decoder.embed_positions.weight.nbytes
    rows = sizes.width * 4 * (1 if layout.positions is None else 2)
    assert read["dense"] == sum(parameter.nbytes for parameter in tiny.parameters()) - unread + rows
    assert read["gathered"] == read["compacted"] < read["dense"]
    neuron = 4 * (2 * sizes.width + 1 if layout.activation == "relu" else 3 * sizes.width)
    scorer = predictor.scorers["neurons"]
    assert decoders["shadow"].selection.weight_bytes == sum(t.nbytes for t in (*scorer.parameters(), *scorer.buffers()))
    skipped = (sizes.layers - 1) * sizes.neurons // 4 * neuron
    assert read["shadow"] == read["dense"] - skipped + decoders["shadow"].selection.weight_bytes


def test_summary_is_median_and_percentiles():
    raw = [
        {"variant": "dense", "repeat": i, "ttft_ms": 10.0 * i, "ms_per_token": float(value)}
        for i, value in enumerate((5, 1, 3, 2, 4, 11, 6, 7, 8, 9, 10))
    ]
    assert summarise(raw) == [
        {"variant": "dense", "ms_per_token": 6.0, "ms_p10": 2.0, "ms_p90": 10.0, "ttft_ms": 50.0, "repeats": 11}
    ]
