"""Models that the study would run otherwise than they are meant are refused before any job, in one sentence."""

import dataclasses
import json
import os
import shutil
import warnings

import pytest
import torch
from conftest import family_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowcore import artifacts
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import DECODED, from_model
from shadowcore.errors import ConfigError, ShadowcoreError, SourceError
from shadowcore.measure.group import Group
from shadowcore.measure.harness import SparseLM
from shadowcore.measure.sparsity import SparseModel
from shadowcore.models import folders, sources, tokenizers
from shadowcore.models.families import FAMILIES, dimensions_of
from shadowcore.models.masking import cut_out, masked
from shadowcore.models.sources import FolderModel, HubModel, PackagedModel, RandomModel
from shadowcore.stages import inputs, latency
from shadowcore.stages.base import CARD_SCHEMA, parse_spec

SMALL = {"layers": 2, "width": 32, "heads": 4, "neurons": 48, "positions": 64}


ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}


def model_of(family, **more):
    """A model with large random weights, biases too, for the byte tokenizer."""
    torch.manual_seed(0)
    keys = {"num_hidden_layers": 2, "vocab_size": 320, "bos_token_id": 256, "eos_token_id": 256}
    return family_model(family, **keys | {"tie_word_embeddings": family in ("opt", "gemma")} | more)


def saved(folder, family, **more):
    """Such a model, saved with the byte tokenizer."""
    model_of(family, **more).save_pretrained(folder)
    tokenizers.byte_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with one model of each family, never written to."""
    made = tmp_path_factory.mktemp("ready")
    for family in ("llama", "opt", "mistral", "gpt_neox", "gemma"):
        saved(made / family, family)
    saved(made / "llama, 3 layers", "llama", num_hidden_layers=3)
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


# ---- what is done to a folder


def keys(changes):
    """Change keys of config.json; those that are None stay as null."""
    return lambda folder: change(folder, **changes)


def write(name, content):
    return lambda folder: (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def cut(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def remove(name):
    return lambda folder: (folder / name).unlink()


def weights(spoil, name="model.safetensors"):
    """Change the weights, or save them in another file."""

    def damage(folder):
        state = spoil(load_file(folder / "model.safetensors"))
        remove("model.safetensors")(folder)
        (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)

    return damage


def instead(name, content="weights"):
    """Another file, and no weights."""
    return lambda folder: (remove("model.safetensors")(folder), write(name, content)(folder))


def both(*damages):
    return lambda folder: [damage(folder) for damage in damages]


def packed(kind):
    up = "model.layers.0.mlp.up_proj.weight"
    return lambda state: state | {up: state[up].to(kind)}


class Code:
    """Unpickled freely, this would leave a folder behind."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


QUANTISED = [
    {"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"bits": 8},
]  # fmt: skip
ROPES = [
    {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
    {"rope_type": "longrope", "rope_theta": 100.0, "factor": 4.0, "short_factor": [1.0] * 4}
    | {"long_factor": [2.0] * 4, "original_max_position_embeddings": 32},
]
OLD_ROPE = {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
INDEX, PICKLED = "model.safetensors.index.json", "pytorch_model.bin"
FAST = "PreTrainedTokenizerFast"
BINARY, OUTSIDE = "pytorch_model-00002-of-00002.bin", "../../outside.safetensors"
WRONG = [
    ("llama", write("adapter_config.json", ADAPTER), "adapter", "merge_and_unload"),
    # as an adapter is published
    ("llama", both(write("adapter_config.json", ADAPTER), remove("config.json")), "adapter", "merge_and_unload"),
    *(("llama", keys({"quantization_config": how}), "quantised", how.get("quant_method", "")) for how in QUANTISED),
    # packed numbers that the configuration does not name
    *(("llama", weights(packed(kind)), "up_proj", "quantised") for kind in (torch.int8, torch.float8_e4m3fn)),
    # weights
    ("llama", cut("model.safetensors"), "model.safetensors: damaged safetensors"),
    ("llama", weights(lambda state: dict(list(state.items())[1:])), "disagree"),
    ("llama", instead("model.gguf"), "no weights", "model.safetensors"),
    ("llama", instead(f"{PICKLED}.index.json", {"weight_map": {"lm_head.weight": BINARY}}), BINARY),
    ("llama", instead(INDEX, {"weight_map": {"lm_head.weight": OUTSIDE}}), INDEX, OUTSIDE),
    ("llama", instead(INDEX, "{"), INDEX),
    # pickled weights
    ("llama", weights(packed(torch.int8), PICKLED), "quantised"),
    ("llama", weights(lambda state: [*state.values()], PICKLED), "state_dict"),
    ("llama", weights(lambda state: state | {"model.layers.7.x": torch.ones(2)}, PICKLED), "no place in the model"),
    ("llama", weights(lambda state: {"lm_head.weight": Code()}, PICKLED), "other objects than tensors, or is damaged"),
    ("llama", both(weights(dict, PICKLED), cut(PICKLED)), "other objects than tensors, or is damaged"),
    # files of keys
    *(("llama", write("generation_config.json", text), "generation_config.json") for text in ("[]", "{")),
    ("llama", remove("config.json"), "config.json: no such file"),
    ("llama", cut("config.json"), "config.json: damaged JSON"),
    *(("llama", keys({"model_type": kind}), "model_type") for kind in (None, ["llama"])),
    # rope that depends on the longest row, and one that transformers does not know
    *(("llama", keys({"rope_parameters": rope}), "rope_type", rope["rope_type"]) for rope in ROPES),
    ("llama", keys({"rope_parameters": {"rope_type": "weird", "rope_theta": 100.0}}), "rope_type", "weird"),
    ("llama", keys(OLD_ROPE), "rope_type", "dynamic"),
    # keys that mean something else, or nothing
    ("llama", keys({"num_attention_heads": 0}), "config.json"),
    ("llama", keys({"num_hidden_layers": 1}), "at least 2"),
    ("llama", keys({"hidden_act": "telepathy"}), "config.json"),
    ("llama", keys({"architectures": ["LlamaForSequenceClassification"]}), "architectures"),
    # its tied head would go unnoticed
    ("opt", keys({"architectures": ["OPTForSequenceClassification"]}), "architectures"),
    ("llama", keys({"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}), "auto_map"),
    ("llama", keys({"sliding_window": 16}), "sliding_window"),
    ("llama", keys({"partial_rotary_factor": 0.5, "rope_parameters": None}), "partial_rotary_factor"),
    ("llama", keys({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
    ("llama", keys({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}), "factor"),
    ("llama", keys({"rope_parameters": {"rope_theta": "x"}}), "transformers cannot run"),
    ("llama", keys({"num_hidden_layers": 3}), "disagree"),
    ("llama, 3 layers", keys({"num_hidden_layers": 2}), "no place in the model"),
    ("opt", keys({"enable_bias": False}), "no place in the model"),  # transformers would leave the biases out
    ("opt", keys({"do_layer_norm_before": False}), "no place in the model"),
    ("opt", keys({"max_position_embeddings": 62}), "embed_positions"),
    ("opt", keys({"num_attention_heads": 5}), "num_attention_heads"),
    ("llama", keys({"head_dim": 7}), "head_dim"),
    ("llama", keys({"num_key_value_heads": 1}), "k_proj"),
    ("llama", keys({"output_attentions": True}), "output_attentions"),
    ("llama", keys({"return_dict": False}), "transformers cannot run"),
    ("llama", keys({"pad_token_id": 400}), "transformers cannot run"),
    ("llama", keys({"dtype": "float7"}), "config.json"),
    ("llama", keys({"layer_types": ["sliding_attention"] * 2}), "layer_types"),
    ("llama", keys({"max_position_embeddings": 0}), "positions"),
    ("mistral", keys({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}), "layer_types"),
    ("gpt_neox", keys({"sliding_window": 16}), "sliding_window"),
    ("gemma", keys({"use_bidirectional_attention": True}), "use_bidirectional_attention"),
    ("llama", keys({"model_type": "phi3"}), "model_type: 'phi3'", "docs/extend.md"),
    # tokenizers
    ("llama", remove("tokenizer.json"), "no tokenizer"),
    ("llama", cut("tokenizer.json"), "tokenizer"),
    ("llama", cut("tokenizer_config.json"), "tokenizer"),
    ("llama", write("tokenizer_config.json", {"tokenizer_class": FAST}), "neither a BOS nor an EOS"),
]


@pytest.mark.parametrize("family, damage, names", [(f, d, n) for f, d, *n in WRONG], ids=range(len(WRONG)))
def test_models_that_would_be_run_otherwise_than_they_are_meant_are_refused(
    family, damage, names, ready, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(ready / family, tmp_path / "model")
    damage(folder)
    refused(FolderModel(str(folder)), *names, str(folder), place=tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keys", [*({"rope_parameters": rope} for rope in ROPES), OLD_ROPE], ids=str)
def test_rope_that_depends_on_the_longest_row_is_refused_in_memory_too(keys):
    with pytest.raises(ConfigError, match="rope_type"):
        SparseModel(model_of("llama", **keys), None)


# ---- weights


@pytest.mark.parametrize("other", ["adapter_model.safetensors", "consolidated.safetensors", "x.safetensors"])
def test_other_safetensors_do_not_decide_what_the_weights_are(other, folder, tmp_path):
    expected = logits(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / other)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    card = sources.fetch(FolderModel(str(folder)), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), expected) and not {other, "pytorch_model.bin"} & set(card["files"])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


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


YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0}
SERVED_ROPES = [
    {"rope_type": "default", "rope_theta": 100.0},
    {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
    {"rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 32},
    YARN | {"original_max_position_embeddings": 32},
]


@pytest.mark.parametrize("rope", SERVED_ROPES, ids=lambda rope: rope["rope_type"])
def test_a_likelihood_does_not_depend_on_the_rows_beside_it(rope):
    model = model_of("llama", rope_parameters=rope)
    asked = [(("a", "b"), [5, 6, 7, 8], [9, 10]), (("c", "d"), list(range(3, 58)), [11, 12, 13])]
    alone, together = (
        SparseLM(model, tokenizers.byte_tokenizer(), batch * 64, 64)._likelihoods(
            Group({"": SparseModel(model, None)}), asked
        )[""][0][0]
        for batch in (1, 4)
    )
    with torch.no_grad():
        chances = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    right = (chances[3, 9] + chances[4, 10]).item()
    assert alone == pytest.approx(right, abs=1e-3) and together == pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize(
    "family, place", [("llama", "model.layers.0.self_attn"), ("gpt_neox", "gpt_neox.layers.0.attention")]
)
def test_buffers_of_old_checkpoints_are_no_weights(family, place, ready, tmp_path):
    folder = shutil.copytree(ready / family, tmp_path / "model")
    old = {f"{place}.rotary_emb.inv_freq": torch.ones(1)}
    if family == "gpt_neox":
        old |= {f"{place}.bias": torch.ones(1, 1, 64, 64).bool(), f"{place}.masked_bias": torch.tensor(-1e9)}
    save_file(load_file(folder / "model.safetensors") | old, folder / "model.safetensors")
    sources.fetch(FolderModel(str(folder)), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(ready / family))


# family, configuration, does our decoder compute it?
SERVED = [
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
    ("qwen2", {"sliding_window": 4, "rope_parameters": YARN}, True),
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
    tokenizer = tokenizers.byte_tokenizer()
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
    tokenizer = tokenizers.fit_tokenizer(tokenizers.load_tokenizer(tmp_path / "out"), 257, "out")
    text = "a <pad> b"
    assert tokenizer(text)["input_ids"] == tokenizers.byte_tokenizer()(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text and tokenizer.bos_token_id == 256


@pytest.mark.parametrize("vocabulary, tokens, named", [
    (257, {"plain": ["hello"]}, "hello"), (257, {"special": ["<|im_start|>"]}, "<|im_start|>"),
    (257, {"plain": ["hello"], "pad": "<pad>"}, "hello"), (257, {"pad": "<pad>", "special": ["<sep>"]}, "<sep>"),
    (256, {"pad": "<|end|>"}, "<|end|>"),  # also BOS
    (200, {}, "vocabulary"),  # the tokenizer's own is larger
])  # fmt: skip
def test_tokens_beyond_the_embeddings_are_refused(vocabulary, tokens, named, tmp_path):
    saved(tmp_path / "model", "llama", vocab_size=vocabulary, bos_token_id=1, eos_token_id=1)
    with_tokens(tmp_path / "model", **tokens)
    names = (named, str(vocabulary), str(tmp_path / "model"))
    refused(FolderModel(str(tmp_path / "model")), *names, place=tmp_path / "out")


def test_a_sentencepiece_model_without_the_package_names_it(folder, tmp_path, monkeypatch):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    monkeypatch.setattr(tokenizers, "find_spec", lambda name: None)
    refused(FolderModel(str(folder)), "sentencepiece", str(folder), place=tmp_path / "out")


# ---- random models, packages, the hub: from their keys alone

RANDOM = [
    ({"family": "gptneo"}, ["family", "gptneo", "llama", "opt"]), ({"width": 30}, ["width", "30", "4"]),
    ({"width": 12}, ["width", "a multiple of 2"]),  # 3 numbers a head
    ({"family": "gpt_neox", "width": 16}, ["width", "gpt_neox", "a multiple of 8"]),  # a quarter of a head is turned
    ({"layers": 1}, ["layers", "1", "2"]), ({"vocabulary": 256}, ["vocabulary", "256"]),
    *(({key: value}, [key, str(value)]) for key in ("heads", "neurons", "positions") for value in (0, -2)),
    *(({"kv_heads": value}, ["kv_heads", str(value)]) for value in (0, 3, 8)),
    *(({"family": family, "kv_heads": 2}, ["kv_heads", "2", "4"]) for family in ("opt", "gpt_neox")),
    ({"tokenizer": "gpt2"}, ["tokenizer", "gpt2", "folder"]), ({"tokenizer": ""}, ["tokenizer", "folder"]),
    ({"seed": -1}, ["seed", "-1"]), ({"seed": 2**64}, ["seed"]),
]  # fmt: skip


@pytest.mark.parametrize("keys, names", RANDOM, ids=[str(keys) for keys, _ in RANDOM])
def test_random_models_that_cannot_be_are_refused_by_their_key(keys, names, tmp_path):
    source = RandomModel(**{"family": "llama", **SMALL, **keys})
    refused(source, *names, place=tmp_path / "out")
    with pytest.raises(ShadowcoreError, match=rf"^models\.mine\.source\.{names[0]}: "):
        source.check("models.mine.source")


def test_a_borrowed_tokenizer_is_checked_like_ones_own_and_saved_without_its_padding_token(ready, folder, tmp_path):
    RandomModel("opt", tokenizer=str(ready / "llama"), **SMALL).check()
    small = RandomModel("opt", tokenizer=str(folder), vocabulary=257, **SMALL)
    with_tokens(folder, pad="<pad>")
    sources.fetch(small, tmp_path / "padded")
    assert max(AutoTokenizer.from_pretrained(tmp_path / "padded")("a <pad> b")["input_ids"]) < 257
    with_tokens(folder, plain=["hello"])
    refused(small, "vocabulary", "257", "hello", place=tmp_path / "out")
    (folder / "tokenizer.json").unlink()
    refused(small, "tokenizer", str(folder), place=tmp_path / "out")


def test_folders_packages_and_hub_are_checked_without_network(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        refused(FolderModel(str(tmp_path / name)), name, "not a folder", place=tmp_path / "out")
    refused(PackagedModel("smollm-135m"), "smollm2-135m", place=tmp_path / "out")
    for revision in ("main", "v1.0", "0123456789ab", "A" * 40):
        refused(HubModel("someone/tiny", revision), "someone/tiny", revision, place=tmp_path / "out")
    for repository in ("./model", "a/b/c", "", "some one/tiny"):
        refused(HubModel(repository, "0" * 40), "repo", repository, place=tmp_path / "out")
    for package in ("gguf", "accelerate"):
        monkeypatch.setattr(sources, "find_spec", lambda name, missing=package: None if name == missing else name)
        refused(PackagedModel(), package, place=tmp_path / "out")


def test_checking_writes_nothing_and_says_nothing(ready, capfd):
    before = {path: path.stat().st_mtime_ns for path in ready.rglob("*")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderModel(str(ready / "llama")).check()
        FolderModel(str(ready / "opt")).check()
    assert {path: path.stat().st_mtime_ns for path in ready.rglob("*")} == before
    assert capfd.readouterr() == ("", "")


# ---- positions


TIMED = {
    "model": "tiny", "weights": "random", "dtype": "float32", "criterion": "plainact", "units": "neurons",
    "sparsities_pct": [50], "predictors": [], "proxies": [], "new_tokens": 25, "repeats": 1, "warmup": 0, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "family, keys, prompt, named", [("llama", {}, 40, "65 .* 64"), ("mistral", {"sliding_window": 32}, 8, "33 .* 32")]
)
def test_windows_and_prompts_longer_than_the_model_are_refused_before_a_text_is_read(
    family, keys, prompt, named, tmp_path
):
    saved(tmp_path / "model", family, **keys)
    card, weights = tmp_path / "card.json", tmp_path / "weights"
    artifacts.write_record(card, CARD_SCHEMA, sources.fetch(FolderModel(str(tmp_path / "model")), weights), {})
    with pytest.raises(ConfigError, match="^window_tokens: 65 is too large; it must be at most 64"):  # 64 are read
        inputs.ModelAndText(card, tmp_path, tmp_path / "nowhere").windows("train", 65, 4, 0)
    files = {"card": card, "weights": weights, "tasks": tmp_path / "nowhere"}
    files = {one.name: files.get(one.name, ()) for one in dataclasses.fields(latency.Inputs)}
    with pytest.raises(ConfigError, match=rf"^prompt_tokens \+ new_tokens: {named}"):
        latency.run(
            parse_spec(latency.Spec, TIMED | {"prompt_tokens": prompt}), latency.Inputs(**files), latency.Outputs()
        )
