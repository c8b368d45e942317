"""A study gathered into a folder runs from it without a network, and measures the same."""

import json
import shutil
import socket

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import refused, run_jobs, small_study, write_benchmarks, write_words

from shadowcore import cli
from shadowcore.commands.fetch import SOURCES, SUMS, fetch
from shadowcore.config import parse_study
from shadowcore.jobs import Jobs
from shadowcore.models import sources
from shadowcore.models.sources import RandomModel
from shadowcore.provenance import file_sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose model is in the hub's cache, as after a download, and whose texts and benchmarks are folders."""
    import huggingface_hub.constants as hub

    snapshot = tmp_path / "cache" / "models--someone--tiny" / "snapshots" / COMMIT
    sources.fetch(RandomModel("llama", layers=2, width=32, heads=4, neurons=48, positions=64), tmp_path / "model")
    shutil.copytree(tmp_path / "model", snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    write_words(tmp_path / "words")
    write_benchmarks(tmp_path / "benchmarks")
    data = small_study(tmp_path)
    data["evaluation"]["fewshot"] = [0, 1]
    return data | {"models": {"tiny": {"source": {"hub": {"repo": "someone/tiny", "revision": COMMIT}}}}}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"a socket was asked for {arguments[-1]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def measured(data, folder):
    """Outcomes of the dense model, from the sources of a configuration."""
    jobs = Jobs(parse_study(data | {"conditions": [], "latency": None}, "config"), folder)
    run_jobs(jobs, "fetch_model", "prepare_text", "prepare_benchmark", "evaluate")
    path = jobs.root / "outcomes" / "tiny" / "wikipedia" / "dense" / "0.parquet"
    return pq.read_table(path).replace_schema_metadata(None)


def test_a_fetched_study_measures_the_same_without_a_network(study, no_network, tmp_path):
    fetch(parse_study(study, "config"), tmp_path / "fetched")
    expected = measured(study, tmp_path / "before")
    for name in ("cache", "words", "benchmarks"):  # nothing but the folder is needed
        shutil.rmtree(tmp_path / name)
    moved = shutil.move(tmp_path / "fetched", tmp_path / "elsewhere")
    assert measured(study | {"offline": str(moved)}, tmp_path / "after") == expected


def test_the_folder_names_sources_and_sums_of_every_file(study, tmp_path):
    folder = tmp_path / "fetched"
    fetch(parse_study(study, "config"), folder)
    found = {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
    lines = (folder / SUMS).read_text().splitlines()
    assert {line[66:]: line[:64] for line in lines} == {k: v for k, v in found.items() if k not in (SOURCES, SUMS)}
    named = json.loads((folder / SOURCES).read_text())
    assert set(named) == {
        "models/tiny", "texts/wikipedia/documents.parquet", "benchmarks/piqa/train.parquet",
        "benchmarks/piqa/validation.parquet", "benchmarks/wikitext/test.parquet",
    }  # fmt: skip
    assert named["models/tiny"]["licence"] == "mit" and COMMIT in named["models/tiny"]["origin"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_what_is_there_is_kept_and_what_changed_is_fetched_again(study, tmp_path):
    folder = tmp_path / "fetched"
    refused("offline: .*remove the key", fetch, parse_study(study | {"offline": str(tmp_path)}, "config"), folder)
    fetch(parse_study(study, "config"), folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    study["texts"]["wikipedia"]["source"]["folder"]["column"] = "text"  # the same text, said differently
    fetch(parse_study(study, "config"), folder)
    changed = {path.parent.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"wikipedia"}


@pytest.mark.parametrize(("local", "message"), [
    ({}, "offline: models.tiny comes over the network"),
    ({"models": {"tiny": {"source": {"folder": {"path": "m"}}}}}, None),
    ({"evaluation": {"tasks": ["piqa"]}, "models": {"tiny": {"source": {"folder": {"path": "m"}}}}}, "tasks: piqa"),
    ({"offline": "true"}, "offline: models.tiny comes"), ({"offline": "f", "evaluation": {"tasks": ["piqa"]}}, None),
])  # fmt: skip
def test_offline_refuses_what_is_not_local(study, local, message):
    data = study | {"offline": True} | local
    data["evaluation"] = study["evaluation"] | {"offline_dir": None, "tasks": []} | local.get("evaluation", {})
    if message is None:
        assert parse_study(data, "config").offline
    else:
        refused(message, parse_study, data, "config")


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_what_is_fetched_goes_into_a_folder(study, tmp_path, capsys, place):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    assert cli.main(["fetch", str(tmp_path / "mine.yaml"), "--to", str(tmp_path / place)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shadowcore")]
    assert len(said) == 1 and "--to" in said[0] and str(tmp_path / "file") in said[0]
    assert (tmp_path / "file").read_text() == "kept"
