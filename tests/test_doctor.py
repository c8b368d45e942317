"""What is wrong with a machine is found, each with its fix; a fine one is left in peace."""

import os
import subprocess
import sys
from collections import namedtuple

import pytest
from conftest import ROOT

from shadowcore import cli
from shadowcore.commands import doctor
from shadowcore.config import load_study


def told(findings):
    findings = list(findings)
    assert all(one.fix or one.state == "fine" for one in findings)
    return [(one.state, one.what) for one in findings]


def tools(folder, **scripts):
    """A folder of commands that print or fail, for the PATH."""
    folder.mkdir(exist_ok=True)
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_packages_are_as_pinned_or_missing_or_of_other_versions():
    wanted = doctor.pins()
    assert wanted["torch"] and wanted["lm_eval"] and len(wanted) > 15
    assert all(version in (ROOT / "pyproject.toml").read_text() for version in wanted.values())
    fine = f"{len(wanted)} of {len(wanted)} packages as pinned"
    assert told(doctor.packages(wanted, doctor.installed())) == [("fine", fine)]
    found = told(doctor.packages({"lm_eval": "1.0", "numpy": "2.0", "rich": "3.0"}, {"lm-eval": "1.0", "numpy": "2.1"}))
    assert found == [
        ("warning", "numpy 2.1 is installed, 2.0 is pinned: numbers may differ"),
        ("broken", "rich 3.0 is pinned and not installed"),
        ("fine", "1 of 3 packages as pinned"),
    ]


@pytest.mark.parametrize("arguments", [[], [ROOT / "config" / "quick.yaml"]])
def test_it_runs_where_nothing_is_installed(tmp_path, arguments):
    said = subprocess.run(
        [sys.executable, "-S", "-m", "shadowcore", "doctor", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert said.returncode == 1 and said.stderr == ""
    assert f"torch {doctor.pins()['torch']} is pinned and not installed\n         fix: pip install" in said.stdout
    first = said.stdout.splitlines()[0]
    assert not arguments or (first.startswith("BROKEN") and "quick.yaml" in first and "not installed" in first)


def test_disk_that_is_small_or_closed_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(0, 0, 6e9))
    assert {state for state, _ in told(doctor.disk(tmp_path / "results", 0))} == {"fine"}
    first, second = told(doctor.disk(tmp_path / "results", 7e9))
    assert first[0] == "broken" and "6 GB free" in first[1] and "7 GB needed" in first[1] and second[0] == "fine"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != tmp_path)
    assert {state for state, _ in told(doctor.disk(tmp_path / "results", 0))} == {"broken"}


def test_switches_that_forbid_what_a_study_needs_are_broken(tmp_path, monkeypatch):
    paper, quick = (load_study(ROOT / "config" / f"{name}.yaml") for name in ("paper", "quick"))
    for name in (*doctor.OFFLINE, "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert {state for study in (paper, quick, None) for state, _ in told(doctor.hub(study))} == {"fine"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first, second = told(doctor.hub(paper))
    assert "0 of" in first[1] and second[0] == "broken" and "HF_HUB_OFFLINE set, and opt-30b, " in second[1]
    fetched = paper.fetched("folder")
    assert {state for study in (quick, fetched, None) for state, _ in told(doctor.hub(study))} == {"fine"}
    source = paper.models["opt-1.3b"].source["hub"]
    snapshot = tmp_path / "hub" / "models--facebook--opt-1.3b" / "snapshots" / source["revision"]
    snapshot.mkdir(parents=True)
    first, second = told(doctor.hub(paper))
    assert "1 of" in first[1] and "opt-1.3b" not in second[1] and second[0] == "broken"


@pytest.mark.parametrize(("scripts", "states"), [
    ({}, ["fine"]), ({"sbatch": "exit 0"}, ["warning"]),
    (dict.fromkeys(doctor.SLURM, "exit 1") | {"sacct": "exit 0"}, ["warning"]),
    (dict.fromkeys(doctor.SLURM, "exit 0") | {"sacct": "exit 0"}, ["fine"]),
    (dict.fromkeys(doctor.SLURM, "exit 0") | {"sacct": "exit 1"}, ["fine", "warning"]),
    (dict.fromkeys(doctor.SLURM, "exit 0"), ["fine", "warning"]),
], ids=["none", "some", "no controller", "all", "no accounts", "no sacct"])  # fmt: skip
def test_a_cluster_is_looked_at(tmp_path, monkeypatch, scripts, states):
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **scripts))
    monkeypatch.setattr(doctor, "installed", lambda: {doctor.PLUGIN: "2"})
    assert [state for state, _ in told(doctor.slurm())] == states
    if states[0] == "fine" and scripts:
        monkeypatch.setattr(doctor, "installed", dict)
        assert ("warning", f"{doctor.PLUGIN} is not installed") in told(doctor.slurm())


def test_a_driver_that_torch_does_not_see_is_broken(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", tools(tmp_path / "bin"))
    assert told(doctor.gpu())[0][0] == "fine"
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **{"nvidia-smi": "echo Pretend, 580.1, 80 MiB"}))
    ((state, what),) = told(doctor.gpu())
    assert state == "broken" and "Pretend, 580.1" in what
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert told(doctor.gpu())[0][0] == "warning"


def test_a_locked_folder_is_told(tmp_path):
    assert told(doctor.snakemake(tmp_path)) == []
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "0.input.lock").write_text("")
    assert told(doctor.snakemake(tmp_path))[0][0] == "warning"


def test_it_is_a_command_whose_code_says_whether_something_is_broken(capsys, monkeypatch):
    for state, code in (("fine", 0), ("warning", 0), ("broken", 1)):
        monkeypatch.setattr(doctor, "examine", lambda study, state=state: [doctor.Finding(state, "it", "that")])
        assert cli.main(["doctor"]) == code
        assert "it" in capsys.readouterr().out
    assert cli.main(["doctor", "nowhere.yaml"]) == 2
