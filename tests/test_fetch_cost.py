"""Fetching a large model: files are hashed at once, and random weights are drawn where it is fastest."""

import pytest
import torch
import transformers
from conftest import refused
from transformers import AutoConfig, AutoModelForCausalLM

from shadowcore.models import random_model, sources
from shadowcore.models.folders import load_model
from shadowcore.models.sources import RandomModel
from shadowcore.models.tokenizers import byte_tokenizer
from shadowcore.provenance import file_sha256

OPT = RandomModel("opt", layers=3, width=32, heads=4, neurons=64, positions=128, seed=3)
LLAMA = RandomModel("llama", layers=3, width=32, heads=4, neurons=64, positions=128, seed=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU draws")
@pytest.mark.parametrize("source", [OPT, LLAMA], ids=lambda source: source.family)
def test_a_cpu_draws_what_the_family_draws_itself(source, tmp_path, monkeypatch):
    """Byte by byte; and as numbers where the weights are written as several files."""
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        source.family, **source._sizes(), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(source.seed)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    plain.save_pretrained(tmp_path / "plain")
    card = sources.fetch(source, tmp_path / "one")
    assert card["origin"] == "random weights, seed 3, drawn on a CPU"
    assert card["files"]["model.safetensors"]["sha256"] == file_sha256(tmp_path / "plain" / "model.safetensors")
    monkeypatch.setattr(random_model, "SHARD_BYTES", 20_000)
    files = sources.fetch(source, tmp_path / "several")["files"]
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    one, several = (load_model(tmp_path / name).state_dict() for name in ("one", "several"))
    assert one.keys() == several.keys() and all(torch.equal(value, several[name]) for name, value in one.items())


def test_a_device_without_room_is_one_sentence(tmp_path, monkeypatch):
    def full(config, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 200.00 MiB.\nmore")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", full)
    refused("do not fit into the free memory of .*CUDA_VISIBLE_DEVICES", sources.fetch, OPT, tmp_path / "weights")
    assert not list(tmp_path.iterdir())
