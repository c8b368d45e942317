"""The weights that a stage loads are those of the card, whatever happened to the files since they were fetched."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import refused
from safetensors.torch import load_file, save_file

from shadowcore import artifacts
from shadowcore.errors import ArtifactError
from shadowcore.models import contents, sources
from shadowcore.models.sources import FolderModel, RandomModel
from shadowcore.stages import inputs
from shadowcore.stages.base import CARD_SCHEMA

SMALL = {"layers": 2, "width": 16, "heads": 2, "neurons": 24, "positions": 32}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two folders of one model with weights of different seeds, so of one size."""
    made = tmp_path_factory.mktemp("two")
    for seed in (0, 1):
        sources.fetch(RandomModel("llama", seed=seed, **SMALL), made / str(seed))
        (made / str(seed) / contents.HASHED).unlink()
    return made


@pytest.fixture
def study(two, tmp_path):
    """A folder source, and what `fetch-model` makes of it: (source, card's path, weights)."""
    source = shutil.copytree(two / "0", tmp_path / "source")
    card = sources.fetch(FolderModel(str(source)), tmp_path / "weights")
    artifacts.write_record(tmp_path / "card.json", CARD_SCHEMA, card, {})
    return source, tmp_path / "card.json", tmp_path / "weights"


@pytest.fixture
def read_bytes(monkeypatch):
    """Names of the files whose bytes are read from now on."""
    names = []

    def counted(path):
        names.append(Path(path).name)
        return original(path)

    original = contents.file_sha256
    contents._sha256.cache_clear()
    monkeypatch.setattr(contents, "file_sha256", counted)
    return names


def check(study):
    contents.check_files(study[2], inputs.read_card(study[1]))


def renamed_over(file, other):
    """Another file takes the name, with the old time stamp."""
    times = file.stat()
    shutil.copy(other, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def written_over(file, other):
    """The same file (inode) holds other bytes."""
    with open(file, "r+b") as handle:
        handle.write(other.read_bytes())


def written_over_in_secret(file, other):
    """The same file has its old time stamp again."""
    times = file.stat()
    written_over(file, other)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def linked_elsewhere(file, other):
    """The source's file is itself a link now, as the hub's cache has them."""
    file.unlink()
    file.symlink_to(other)


CHANGES = [renamed_over, written_over, written_over_in_secret, linked_elsewhere]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_weights_replaced_by_others_of_their_size_are_refused_by_every_reader(change, study, two):
    source, card, weights = study
    change(source / "model.safetensors", two / "1/model.safetensors")
    assert (source / "model.safetensors").stat().st_size == (two / "0/model.safetensors").stat().st_size
    for read in (
        lambda: inputs.Model(card, weights).tokenizer,
        lambda: inputs.Model(card, weights).model("float32"),
        lambda: inputs.Model(card, weights).loaded("float32"),
    ):
        # a link names the file that changed
        refused(["model.safetensors: its content has changed", str(source)], read)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_the_other_files_count_as_well(name, study):
    path = study[0] / name
    text = path.read_text()
    digit = re.search(r"\d", text)
    path.write_text(text[: digit.start()] + str((int(digit[0]) + 1) % 10) + text[digit.end() :])
    refused(f"{name}: its content has changed", check, study)


def test_an_untouched_folder_is_not_read_again_and_an_equal_file_once(study, two, read_bytes, tmp_path):
    check(study)
    assert read_bytes == []
    renamed_over(study[0] / "model.safetensors", two / "0/model.safetensors")  # the same bytes, another file
    check(study)
    check(study)
    assert read_bytes == ["model.safetensors"]
    contents._sha256.cache_clear()  # a job of its own
    check(study)
    assert read_bytes == ["model.safetensors"]
    # a moved folder is not read again, a copied one, which has no links, once
    card, moved = inputs.read_card(study[1]), study[2].rename(tmp_path / "moved")
    contents.check_files(moved, card)
    assert read_bytes == ["model.safetensors"]
    copied = shutil.copytree(moved, tmp_path / "copied")
    for _ in range(2):
        contents.check_files(copied, card)
    assert sorted(read_bytes[1:]) == sorted(card["files"])


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"model.safetensors": 1}'])
def test_a_folder_of_older_versions_or_with_a_damaged_record_is_hashed_once(text, study, two, read_bytes):
    record = study[2] / contents.HASHED
    record.unlink()
    if text is not None:
        record.write_text(text)
    check(study)
    assert sorted(read_bytes) == sorted(inputs.read_card(study[1])["files"])
    assert set(json.loads(record.read_text())) == set(read_bytes)
    record.unlink()
    written_over(study[0] / "model.safetensors", two / "1/model.safetensors")
    refused("content has changed", check, study)


def test_a_folder_that_cannot_be_written_to_is_hashed_by_every_job(study, read_bytes, monkeypatch):
    def denied(path):
        raise ArtifactError(f"{path}: cannot be written (Read-only file system)")

    (study[2] / contents.HASHED).unlink()
    monkeypatch.setattr(contents, "replacing", denied)
    for _ in range(2):
        contents._sha256.cache_clear()
        assert inputs.Model(study[1], study[2]).tokenizer
        inputs.Model(study[1], study[2]).model("float32")
    assert sorted(read_bytes) == sorted(2 * list(inputs.read_card(study[1])["files"]))  # once a job, not twice


@pytest.mark.parametrize("value, reads", [("1", True), ("0", False), ("", False)])
def test_the_option_hashes_whatever_the_record_says(value, reads, study, two, monkeypatch):
    written_over(study[0] / "model.safetensors", two / "1/model.safetensors")
    record = study[2] / contents.HASHED
    forged = json.loads(record.read_text())
    forged["model.safetensors"]["state"] = list(contents._state(study[2] / "model.safetensors"))
    record.write_text(json.dumps(forged))
    check(study)  # as if the file system had not noticed
    monkeypatch.setenv(contents.ALWAYS, value)
    if reads:
        refused("content has changed", check, study)
    else:
        check(study)


def test_the_card_has_no_times_and_no_places_and_the_record_is_hidden(study, tmp_path):
    source, _, weights = study
    again = sources.fetch(FolderModel(str(source)), tmp_path / "again")
    assert again == sources.fetch(FolderModel(str(source)), tmp_path / "and_again")
    assert contents.HASHED not in again["files"] and (weights / contents.HASHED).is_file()
    assert all(set(file) == {"bytes", "sha256"} for file in again["files"].values())
    # a folder of weights can be a source itself; its record stays its own
    nested = sources.fetch(FolderModel(str(weights)), tmp_path / "nested")
    assert nested["files"] == again["files"] and not (tmp_path / "nested" / contents.HASHED).is_symlink()


def test_weights_changed_in_size_and_surplus_files_are_named(study, tmp_path):
    (study[2] / "surplus.json").write_text("{}")
    refused("surplus.json: 2 bytes .*the model's card has no file", check, study)
    (study[2] / "surplus.json").unlink()
    (study[0] / "config.json").rename(tmp_path / "gone.json")
    refused(f"no file .*{study[0]}/config.json", check, study)  # where the link leads
    (tmp_path / "gone.json").rename(study[0] / "config.json")
    weights = study[0] / "model.safetensors"
    save_file(load_file(weights) | {"more": torch.zeros(3)}, weights)
    refused(rf"model.safetensors: {weights.stat().st_size} bytes", check, study)
