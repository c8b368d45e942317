"""Models that the study would run otherwise than they are meant are refused before any job, in one sentence."""

import dataclasses
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from shadowcore import artifacts
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import DECODED, from_model
from shadowcore.errors import ArtifactError, ConfigError, ShadowcoreError, SourceError
from shadowcore.measure.group import Group
from shadowcore.measure.harness import SparseLM
from shadowcore.measure.sparsity import SparseModel
from shadowcore.models import folders, sources
from shadowcore.models.families import FAMILIES, dimensions_of, require_positions
from shadowcore.models.masking import cut_out, masked
from shadowcore.models.sources import FolderModel, HubModel, PackagedModel, RandomModel
from shadowcore.stages import calibrate_thresholds, evaluate, latency, trace, trace_on_policy
from shadowcore.stages.base import CARD_SCHEMA, parse_spec

SMALL = {"layers": 2, "width": 32, "heads": 4, "neurons": 48, "positions": 64}
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, "bos_token_id": 256,
    "eos_token_id": 256, "pad_token_id": None, "max_position_embeddings": 64,
}  # fmt: skip
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}
LLAMA = {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.3}
LIKE_LLAMA = LLAMA | {"head_dim": 8, "sliding_window": None}
ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}


def saved(folder, family, **more):
    """A model with large random weights, biases too, saved with the byte tokenizer."""
    torch.manual_seed(0)
    keys = {"opt": OPT, "llama": LLAMA}.get(family, LIKE_LLAMA)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | keys | more))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    folders.byte_tokenizer().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with one model of each family, never written to."""
    made = tmp_path_factory.mktemp("ready")
    for family in ("llama", "opt", "mistral", "gpt_neox", "gemma"):
        saved(made / family, family)
    return made


@pytest.fixture
def folder(ready, tmp_path):
    """A Llama's folder to spoil."""
    return shutil.copytree(ready / "llama", tmp_path / "model")


def change(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def refused(source, *names, place):
    """The one sentence by which `check` and `fetch` refuse a source; it has these names in it."""
    with pytest.raises(ShadowcoreError) as checked:
        source.check("models.mine.source")
    assert str(checked.value).startswith("models.mine.source.")
    with pytest.raises((SourceError, ConfigError)) as fetched:
        sources.fetch(source, place)
    assert not place.exists() and ".partial" not in str(fetched.value)
    for sentence in (str(checked.value), str(fetched.value)):
        assert "\n" not in sentence and all(name in sentence for name in names), sentence


# ---- adapters, quantised weights, other files of weights


def test_adapters_are_refused_and_merging_is_named(folder, tmp_path):
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    refused(FolderModel(str(folder)), "adapter", "merge_and_unload", str(folder), place=tmp_path / "out")
    (folder / "config.json").unlink()  # as an adapter is published
    refused(FolderModel(str(folder)), "adapter", "merge_and_unload", str(folder), place=tmp_path / "out")


def test_an_adapter_among_weights_that_were_fetched_before_is_refused_when_loaded(folder):
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    with pytest.raises(ArtifactError, match="adapter"):
        folders.load_model(folder)


QUANTISED = [
    {"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 4}, {"quant_method": "fp8"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "compressed-tensors"}, {"bits": 8},
]  # fmt: skip


@pytest.mark.parametrize("how", QUANTISED, ids=str)
def test_quantised_checkpoints_are_refused(how, folder, tmp_path):
    change(folder, quantization_config=how)
    refused(FolderModel(str(folder)), "quantised", how.get("quant_method", ""), str(folder), place=tmp_path / "out")


@pytest.mark.parametrize("kind", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_packed_numbers_are_refused_even_if_the_configuration_does_not_name_them(kind, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(kind)
    save_file(weights, folder / "model.safetensors")
    refused(FolderModel(str(folder)), "up_proj", "quantised", place=tmp_path / "out")


@pytest.mark.parametrize("other", ["adapter_model.safetensors", "consolidated.safetensors", "x.safetensors"])
def test_other_safetensors_do_not_decide_what_the_weights_are(other, folder, tmp_path):
    expected = logits(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / other)
    card = sources.fetch(FolderModel(str(folder)), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), expected) and other not in card["files"]


def test_of_two_kinds_of_safetensors_the_file_that_transformers_loads_is_fetched(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for path in (tmp_path / "shards").glob("*.safetensors*"):
        shutil.copy(path, folder)
    card = sources.fetch(FolderModel(str(folder)), tmp_path / "both")
    assert {name for name in card["files"] if "safetensors" in name} == {"model.safetensors"}
    assert torch.equal(logits(tmp_path / "both"), logits(folder))
    expected = logits(folder)
    (folder / "model.safetensors").unlink()
    card = sources.fetch(FolderModel(str(folder)), tmp_path / "out")
    assert "model.safetensors.index.json" in card["files"] and torch.equal(logits(tmp_path / "out"), expected)
    next(folder.glob("model-00002*")).unlink()
    refused(FolderModel(str(folder)), "model-00002", str(folder), place=tmp_path / "none")


@pytest.mark.parametrize("names", [[], ["model.gguf"], ["pytorch_model-00001-of-00002.bin"], ["tf_model.h5"]])
def test_a_folder_without_weights_names_what_is_needed(names, folder, tmp_path):
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"weights")
    refused(FolderModel(str(folder)), "no weights", "model.safetensors", str(folder), place=tmp_path / "out")


def test_a_missing_shard_of_a_pickled_checkpoint_is_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "pytorch_model-00002-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused(FolderModel(str(folder)), "pytorch_model-00002-of-00002.bin", place=tmp_path / "out")


def packed(state):
    state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    return state


PICKLED = [
    (packed, "quantised"),
    (lambda state: [*state.values()], "state_dict"),
    (lambda state: {"model": state}, "state_dict"),
    (lambda state: state | {"model.layers.7.mlp.up_proj.weight": torch.ones(2)}, "no place in the model"),
    (lambda state: {name: value[:1] for name, value in state.items()}, "disagree"),
]


@pytest.mark.parametrize("spoil, named", PICKLED, ids=["packed", "list", "nested", "one more", "cut"])
def test_pickled_checkpoints_are_judged_without_reading_their_numbers(spoil, named, folder, tmp_path):
    torch.save(spoil(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(FolderModel(str(folder)), named, str(folder), place=tmp_path / "out")


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_generation_settings_that_are_none_are_named(text, folder, tmp_path):
    (folder / "generation_config.json").write_text(text)
    refused(FolderModel(str(folder)), "generation_config.json", place=tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "no metadata", "---\nlicense: \xff\n---\n"]
)
def test_a_readme_without_readable_metadata_names_no_licence(text, folder, tmp_path):
    (folder / "README.md").write_bytes(text.encode("latin-1"))
    assert sources.fetch(FolderModel(str(folder)), tmp_path / "out")["licence"] is None


# ---- configurations


def logits(folder):
    model = folders.load_model(folder)
    with torch.no_grad():
        return model(torch.arange(2, 20)[None]).logits


ROPES = [
    {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
    {"rope_type": "longrope", "rope_theta": 100.0, "factor": 4.0, "short_factor": [1.0] * 4}
    | {"long_factor": [2.0] * 4, "original_max_position_embeddings": 32},
    {"rope_type": "weird", "rope_theta": 100.0},
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_rope_that_depends_on_the_longest_row_is_refused(rope, folder, tmp_path):
    change(folder, rope_parameters=rope)
    refused(FolderModel(str(folder)), "rope_type", rope["rope_type"], str(folder), place=tmp_path / "out")


@pytest.mark.parametrize("rope", ROPES[:2], ids=lambda rope: rope["rope_type"])
def test_rope_that_depends_on_the_longest_row_is_refused_in_memory_too(rope):
    model = LlamaForCausalLM(LlamaConfig(**SIZES | LLAMA, rope_parameters=rope))
    with pytest.raises(ConfigError, match="rope_type"):
        SparseModel(model, None)


def test_old_names_of_rope_are_refused_as_well(folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    del content["rope_parameters"]
    content |= {"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(content))
    refused(FolderModel(str(folder)), "rope_type", "dynamic", place=tmp_path / "out")


SERVED_ROPES = [
    {"rope_type": "default", "rope_theta": 100.0},
    {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
    {"rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 32},
    {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0, "original_max_position_embeddings": 32},
]


@pytest.mark.parametrize("rope", SERVED_ROPES, ids=lambda rope: rope["rope_type"])
def test_a_likelihood_does_not_depend_on_the_rows_beside_it(rope):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | LLAMA, rope_parameters=rope)).eval()
    asked = [(("a", "b"), [5, 6, 7, 8], [9, 10]), (("c", "d"), list(range(3, 58)), [11, 12, 13])]
    alone, together = (
        SparseLM(model, folders.byte_tokenizer(), batch * 64, 64)._likelihoods(
            Group({"": SparseModel(model, None)}), asked
        )[""][0][0]
        for batch in (1, 4)
    )
    with torch.no_grad():
        chances = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    right = (chances[3, 9] + chances[4, 10]).item()
    assert alone == pytest.approx(right, abs=1e-3) and together == pytest.approx(right, abs=1e-3)


REFUSED = [
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    ("opt", {"architectures": ["OPTForSequenceClassification"]}, "architectures"),  # its tied head would go unnoticed
    ("llama", {"architectures": ["LlamaModel"]}, "architectures"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}, "auto_map"),
    ("llama", {"sliding_window": 16}, "sliding_window"),
    ("llama", {"partial_rotary_factor": 0.5, "rope_parameters": None}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
    ("llama", {"rope_parameters": {"rope_theta": "x"}}, "transformers cannot run"),
    ("llama", {"num_hidden_layers": 3}, "disagree"),
    ("opt", {"num_hidden_layers": 3}, "disagree"),
    ("llama", {"attention_bias": True}, "disagree"),
    ("opt", {"enable_bias": False}, "no place in the model"),  # transformers would leave the biases out
    ("opt", {"layer_norm_elementwise_affine": False}, "no place in the model"),
    ("opt", {"do_layer_norm_before": False}, "no place in the model"),
    ("opt", {"max_position_embeddings": 62}, "embed_positions"),
    ("opt", {"word_embed_proj_dim": 16}, "disagree"),
    ("opt", {"num_attention_heads": 5}, "num_attention_heads"),
    ("llama", {"head_dim": 7}, "head_dim"),
    ("llama", {"num_key_value_heads": 1}, "k_proj"),
    ("llama", {"output_attentions": True}, "output_attentions"),
    ("llama", {"return_dict": False}, "transformers cannot run"),
    ("llama", {"pad_token_id": 400}, "transformers cannot run"),
    ("opt", {"pad_token_id": 400}, "transformers cannot run"),
    ("llama", {"dtype": "float7"}, "config.json"),
    ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ("llama", {"max_position_embeddings": 0}, "positions"),
    ("mistral", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}, "layer_types"),
    ("mistral", {"layer_types": 3, "sliding_window": 16}, "layer_types"),
    ("mistral", {"partial_rotary_factor": 0.5, "rope_parameters": None}, "partial_rotary_factor"),
    ("mistral", {"attention_bias": True, "num_key_value_heads": 4}, "disagree"),
    ("gpt_neox", {"sliding_window": 16}, "sliding_window"),
    ("gpt_neox", {"attention_bias": False}, "no place in the model"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("llama", {"model_type": "phi3"}, "model_type: 'phi3'"),
    ("llama", {"model_type": "phi3"}, "docs/extend.md"),
]


@pytest.mark.parametrize("family, keys, name", REFUSED, ids=[f"{f}-{','.join(k)}-{n}" for f, k, n in REFUSED])
def test_configurations_that_mean_something_else_are_refused(family, keys, name, ready, tmp_path):
    folder = shutil.copytree(ready / family, tmp_path / "model")
    change(folder, **keys)
    refused(FolderModel(str(folder)), name, str(folder), place=tmp_path / "out")


def test_layers_of_the_weights_that_the_configuration_does_not_name_are_refused(tmp_path):
    saved(tmp_path / "model", "llama", num_hidden_layers=3)
    change(tmp_path / "model", num_hidden_layers=2)
    refused(FolderModel(str(tmp_path / "model")), "no place in the model", "model.layers.2", place=tmp_path / "out")


def test_buffers_of_old_checkpoints_are_no_weights(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    sources.fetch(FolderModel(str(folder)), tmp_path / "out")
    assert logits(tmp_path / "out").isfinite().all()


def test_buffers_of_old_gpt_neox_checkpoints_are_no_weights(ready, tmp_path):
    folder = shutil.copytree(ready / "gpt_neox", tmp_path / "model")
    attention = "gpt_neox.layers.0.attention"
    buffers = {"bias": torch.ones(1, 1, 64, 64).bool(), "masked_bias": torch.tensor(-1e9)}
    buffers |= {"rotary_emb.inv_freq": torch.ones(1)}
    old = {f"{attention}.{name}": value for name, value in buffers.items()}
    save_file(load_file(folder / "model.safetensors") | old, folder / "model.safetensors")
    sources.fetch(FolderModel(str(folder)), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(ready / "gpt_neox"))


# family, configuration, does our decoder compute it?
SERVED = [
    ("llama", {"attention_bias": True}, True),
    ("llama", {"mlp_bias": True}, True),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, True),
    ("llama", {"head_dim": 16}, True),
    ("llama", {"num_key_value_heads": 1}, True),
    ("llama", {"pretraining_tp": 2, "use_cache": False, "output_hidden_states": True}, True),
    ("llama", {"sliding_window": 64, "rms_norm_eps": 0.1}, True),
    ("llama", {"hidden_act": "gelu"}, False),
    ("opt", {"head_dim": 16, "num_key_value_heads": 2}, True),  # keys that OPT's class does not read
    ("opt", {"enable_bias": False}, True),
    ("opt", {"layer_norm_elementwise_affine": False}, True),
    ("opt", {"tie_word_embeddings": False, "use_cache": False}, True),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, False),  # OPT-350m
    ("opt", {"_remove_final_layer_norm": True}, False),
    ("opt", {"activation_function": "gelu_new"}, False),
    ("mistral", {}, True),
    ("mistral", {"sliding_window": 20}, True),
    ("mistral", {"sliding_window": 4}, False),  # the decoder attends to all positions
    ("qwen2", {"tie_word_embeddings": True}, True),
    (
        "qwen2",
        {"sliding_window": 4, "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0}},
        True,
    ),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, False),
    ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}, False),
    ("phi", {"qk_layernorm": True}, False),
    ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True, "qk_layernorm": True}, False),
    *((family, {}, False) for family in sorted(FAMILIES.keys() - DECODED.keys())),
]


@pytest.mark.parametrize("family, keys, decodes", SERVED, ids=[f"{f}-{','.join(k)}-{d}" for f, k, d in SERVED])
@torch.no_grad()
def test_served_configurations_have_hugging_faces_logits(family, keys, decodes, tmp_path):
    saved(tmp_path / "model", family, **keys)
    sources.fetch(FolderModel(str(tmp_path / "model")), tmp_path / "out")
    model, ids = folders.load_model(tmp_path / "out"), torch.arange(2, 20)[None]
    want = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)(ids).logits
    assert torch.equal(model(ids).logits, want)
    sizes, generator = dimensions_of(model.config), torch.Generator().manual_seed(1)
    keep = {
        kind: torch.rand(sizes.layers, sizes.units(kind), generator=generator) < 0.5 for kind in ("heads", "neurons")
    }
    with masked(model, keep):
        got = model(ids).logits
    torch.testing.assert_close(got, cut_out(model, keep)(ids).logits, atol=1e-4, rtol=1e-4)
    if not decodes:
        with pytest.raises(ConfigError, match="the decoder"):
            Decoder(from_model(model), 20)
        return
    decoder = Decoder(from_model(model), 20)
    torch.testing.assert_close(decoder.prefill(ids)[0], want[0, -1], atol=1e-3, rtol=1e-3)


# ---- tokenizers


def with_tokens(folder, *, pad=None, special=(), plain=()):
    """The byte tokenizer (ids 0 to 256) with more tokens."""
    tokenizer = folders.byte_tokenizer()
    if plain:
        tokenizer.add_tokens([AddedToken(one) for one in plain])
    if special:
        tokenizer.add_tokens(list(special), special_tokens=True)
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)


def test_an_unused_padding_token_beyond_the_embeddings_is_fine_and_never_comes_out_of_a_text(tmp_path):
    saved(tmp_path / "model", "llama", vocab_size=257)
    with_tokens(tmp_path / "model", pad="<pad>")
    assert max(AutoTokenizer.from_pretrained(tmp_path / "model")("a <pad> b")["input_ids"]) == 257
    sources.fetch(FolderModel(str(tmp_path / "model")), tmp_path / "out")
    tokenizer = folders.fit_tokenizer(folders.load_tokenizer(tmp_path / "out"), 257, "out")
    text = "a <pad> b"
    assert tokenizer(text)["input_ids"] == folders.byte_tokenizer()(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text and tokenizer.bos_token_id == 256


@pytest.mark.parametrize(
    "tokens, named",
    [
        ({"plain": ["hello"]}, "hello"),
        ({"special": ["<|im_start|>"]}, "<|im_start|>"),
        ({"plain": ["hello"], "pad": "<pad>"}, "hello"),
        ({"pad": "<pad>", "special": ["<sep>"]}, "<sep>"),
    ],
)
def test_tokens_beyond_the_embeddings_are_refused(tokens, named, tmp_path):
    saved(tmp_path / "model", "llama", vocab_size=257)
    with_tokens(tmp_path / "model", **tokens)
    refused(FolderModel(str(tmp_path / "model")), named, "257", str(tmp_path / "model"), place=tmp_path / "out")


def test_a_tokenizer_whose_own_vocabulary_is_larger_is_refused(tmp_path):
    saved(tmp_path / "model", "opt", vocab_size=200, bos_token_id=1, eos_token_id=1)
    refused(FolderModel(str(tmp_path / "model")), "200", str(tmp_path / "model"), place=tmp_path / "out")


def test_a_padding_token_that_is_also_bos_is_refused(tmp_path):
    saved(tmp_path / "model", "llama", vocab_size=256, bos_token_id=1, eos_token_id=1)
    with_tokens(tmp_path / "model", pad="<|end|>")
    refused(FolderModel(str(tmp_path / "model")), "<|end|>", "256", place=tmp_path / "out")


def test_a_sentencepiece_model_without_the_package_names_it(folder, tmp_path, monkeypatch):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    monkeypatch.setattr(folders, "find_spec", lambda name: None)
    refused(FolderModel(str(folder)), "sentencepiece", str(folder), place=tmp_path / "out")


def test_other_faults_of_a_tokenizer_name_the_folder_that_was_given(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    refused(FolderModel(str(folder)), "tokenizer", str(folder), place=tmp_path / "out")


# ---- random models, packages, the hub: from their keys alone

RANDOM = [
    ({"family": "gptneo"}, ["family", "gptneo", "llama", "opt"]),
    ({"width": 30}, ["width", "30", "4"]),
    ({"width": 12}, ["width", "a multiple of 2"]),  # 3 numbers a head
    ({"family": "gpt_neox", "width": 16}, ["width", "gpt_neox", "a multiple of 8"]),  # a quarter of a head is turned
    ({"family": "gpt_neox", "kv_heads": 2}, ["kv_heads", "2", "4"]),
    ({"heads": 0}, ["heads", "0"]),
    ({"heads": -4}, ["heads", "-4"]),
    ({"width": -32}, ["width", "-32"]),
    ({"layers": 1}, ["layers", "1", "2"]),
    ({"layers": 0}, ["layers", "0"]),
    ({"neurons": 0}, ["neurons", "0"]),
    ({"positions": 0}, ["positions", "0"]),
    ({"vocabulary": -1}, ["vocabulary", "-1"]),
    ({"vocabulary": 256}, ["vocabulary", "256"]),
    ({"kv_heads": 0}, ["kv_heads", "0"]),
    ({"kv_heads": 3}, ["kv_heads", "3", "4"]),
    ({"kv_heads": 8}, ["kv_heads", "8", "4"]),
    ({"family": "opt", "kv_heads": 2}, ["kv_heads", "2", "4"]),
    ({"tokenizer": "gpt2"}, ["tokenizer", "gpt2", "folder"]),
    ({"tokenizer": ""}, ["tokenizer", "folder"]),
    ({"seed": -1}, ["seed", "-1"]),
    ({"seed": 2**64}, ["seed"]),
]


@pytest.mark.parametrize("keys, names", RANDOM, ids=[str(keys) for keys, _ in RANDOM])
def test_random_models_that_cannot_be_are_refused_by_their_key(keys, names, tmp_path):
    source = RandomModel(**{"family": "llama", **SMALL, **keys})
    refused(source, *names, place=tmp_path / "out")
    with pytest.raises(ShadowcoreError, match=rf"^models\.mine\.source\.{names[0]}: "):
        source.check("models.mine.source")


def test_a_borrowed_tokenizer_is_checked_like_ones_own(ready, folder, tmp_path):
    RandomModel("opt", tokenizer=str(ready / "llama"), **SMALL).check()
    with_tokens(folder, plain=["hello"])
    small = RandomModel("llama", tokenizer=str(folder), vocabulary=257, **SMALL)
    refused(small, "vocabulary", "257", "hello", place=tmp_path / "out")
    (folder / "tokenizer.json").unlink()
    refused(small, "tokenizer", str(folder), place=tmp_path / "out")


def test_a_random_models_tokenizer_without_its_padding_token_is_the_one_saved(folder, tmp_path):
    with_tokens(folder, pad="<pad>")
    sources.fetch(RandomModel("opt", tokenizer=str(folder), vocabulary=257, **SMALL), tmp_path / "out")
    assert max(AutoTokenizer.from_pretrained(tmp_path / "out")("a <pad> b")["input_ids"]) < 257


def test_packages_and_hub_are_checked_without_network(monkeypatch, tmp_path):
    refused(PackagedModel("smollm-135m"), "smollm2-135m", place=tmp_path / "out")
    refused(HubModel("someone/tiny", "main"), "someone/tiny", "main", place=tmp_path / "out")
    for repository in ("./model", "a/b/c", "", "some one/tiny"):
        refused(HubModel(repository, "0" * 40), "repo", repository, place=tmp_path / "out")
    for package in ("gguf", "accelerate"):
        monkeypatch.setattr(sources, "find_spec", lambda name, missing=package: None if name == missing else name)
        refused(PackagedModel(), package, place=tmp_path / "out")


@pytest.mark.parametrize("missing", ["nowhere", "file"])
def test_a_folder_that_is_none(missing, tmp_path):
    (tmp_path / "file").write_text("")
    refused(FolderModel(str(tmp_path / missing)), missing, "not a folder", place=tmp_path / "out")


def test_checking_writes_nothing_and_says_nothing(ready, capfd):
    before = {path: path.stat().st_mtime_ns for path in ready.rglob("*")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderModel(str(ready / "llama")).check()
        FolderModel(str(ready / "opt")).check()
    assert {path: path.stat().st_mtime_ns for path in ready.rglob("*")} == before
    assert capfd.readouterr() == ("", "")


# ---- positions


@pytest.mark.parametrize("family", ["llama", "opt"])
@torch.no_grad()
def test_exactly_the_configured_positions_are_usable(family, ready):
    model = folders.load_model(ready / family)
    positions = dimensions_of(model.config).positions
    require_positions(positions, positions, "window_tokens", "the model")
    assert model(torch.zeros((1, positions), dtype=torch.int64)).logits.isfinite().all()
    with pytest.raises(ConfigError, match=rf"traces\.window_tokens: {positions + 1} .* {positions}.*models\.tiny"):
        require_positions(positions, positions + 1, "traces.window_tokens", "models.tiny")


@pytest.fixture(scope="module")
def fetched(ready, tmp_path_factory):
    """Card and weights of a Llama of 64 positions; the texts are not there, so what refuses must do it before."""
    place = tmp_path_factory.mktemp("fetched")
    card = sources.fetch(FolderModel(str(ready / "llama")), place / "weights")
    artifacts.write_record(place / "card.json", CARD_SCHEMA, card, {})
    return place


TRACED = {
    "split": "train", "shard": 0, "shards": 1, "windows": 4, "window_tokens": 65, "tokens_per_window": 8, "designs": [],
    "criteria": ["plainact"], "token_criteria": [], "window_criteria": [], "token_bits": 4, "batch": 2,
    "dtype": "float32", "seed": 0,
}  # fmt: skip
EVALUATED = {
    "conditions": {"dense": {"model": "tiny", "data": "text", "method": "dense", "seed": 0}},
    "windows": 2, "window_tokens": 65, "window_batch": 2, "request_tokens": 2,
    "dtype": "float32", "text_seed": 0, "tasks": ["second_half"],
}  # fmt: skip
TIMED = {
    "model": "tiny", "weights": "random", "dtype": "float32", "criterion": "plainact", "units": "neurons",
    "sparsities_pct": [50], "predictors": [], "prompt_tokens": 40, "new_tokens": 25, "repeats": 1, "warmup": 0,
    "seed": 0,
}  # fmt: skip
CALIBRATED = {
    "model": "tiny", "calibration": "text", "windows": 2, "window_tokens": 65, "batch": 2, "methods": ["cats"],
    "sparsities_pct": [50], "dtype": "float32", "seed": 0,
}  # fmt: skip
TOO_LONG = [
    (trace, TRACED, "window_tokens: 65"),
    (
        trace_on_policy,
        {"trace": TRACED, "units": "both", "lowest_pct": 10, "highest_pct": 20, "seed": 0},
        "window_tokens: 65",
    ),
    (calibrate_thresholds, CALIBRATED, "window_tokens: 65"),
    (evaluate, EVALUATED, "window_tokens: 65"),
    (latency, TIMED, "prompt_tokens . new_tokens: 65"),
]


def inputs_of(stage, place, tmp_path):
    """Inputs of a stage of which only a model is there, and outputs."""
    files = {
        field.name: () if field.name in ("scores", "benchmarks", "thresholds", "predictors") else tmp_path / field.name
        for field in dataclasses.fields(stage.Inputs)
    }
    made = stage.Inputs(**files | {"card": place / "card.json", "weights": place / "weights"})
    return made, stage.Outputs(**{field.name: tmp_path / "out" for field in dataclasses.fields(stage.Outputs)})


@pytest.mark.parametrize("stage, spec, named", TOO_LONG, ids=[stage.__name__.split(".")[-1] for stage, *_ in TOO_LONG])
def test_stages_refuse_windows_longer_than_the_model(stage, spec, named, fetched, tmp_path):
    with pytest.raises(ConfigError, match=rf"^{named} is too large; it must be at most 64"):
        stage.run(parse_spec(stage.Spec, spec), *inputs_of(stage, fetched, tmp_path))


def test_the_decoder_is_not_timed_beyond_a_sliding_window(tmp_path):
    saved(tmp_path / "model", "mistral", sliding_window=32)
    card = sources.fetch(FolderModel(str(tmp_path / "model")), tmp_path / "weights")
    artifacts.write_record(tmp_path / "card.json", CARD_SCHEMA, card, {})
    with pytest.raises(ConfigError, match=r"new_tokens: 33 is too large; it must be at most 32.*sliding window"):
        latency.run(parse_spec(latency.Spec, TIMED | {"prompt_tokens": 8}), *inputs_of(latency, tmp_path, tmp_path))
