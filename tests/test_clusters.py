"""Submission to clusters: what is asked for, on stub commands; whole studies on a SLURM of one node (marker slurm)."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import stub_slurm
import yaml
from conftest import ROOT
from one_node_slurm import NEEDED, available, one_node
from test_workflow import environment, prepared, results, run_in, small, tables
from test_workflow import snakemake as run_here

from shadowcore import artifacts
from shadowcore.models.published import PUBLISHED
from shadowcore.stages.base import CARD_SCHEMA

PROFILES = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/profile.yaml"))
QUICKLY = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
# the plugin looks after its jobs for the first time after 40 seconds, whatever it is told
AT_ONCE = """
import sys
if "--workflow-profile" in sys.orig_argv:
    import snakemake_executor_plugin_slurm as plugin
    plugin.common_settings.init_seconds_before_status_checks = 1
"""


def cluster_house(folder):
    """A house whose Snakemake looks after its jobs at once."""
    folder.mkdir()
    prepared(folder)
    (folder / "sitecustomize.py").write_text(AT_ONCE)
    return folder


def snakemake(folder, profile, *arguments, **more):
    """Snakemake as docs/cluster.md calls it."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--workflow-profile", f"profiles/{profile}", "--configfile",
         "config/tiny.yaml", *arguments],
        cwd=folder, env=environment(folder) | more, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A machine on which SLURM's commands are stubs; the folder in which they keep their jobs."""
    stub_slurm.install(tmp_path / "bin")
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB_SLURM", str(tmp_path / "queue"))
    return tmp_path / "queue"


def submitted(queue):
    """What each submission asked for: options with their values."""
    asked = []
    for line in (queue / "submitted").read_text().splitlines():
        words, found = json.loads(line), {}
        for word, after in zip(words, [*words[1:], ""], strict=True):
            if word.startswith("-") and not word.startswith("--wrap"):
                name, _, value = word.partition("=")
                found[name] = value or ("" if after.startswith("-") else after)
        asked.append(found | {"command": next(word for word in words if word.startswith("--wrap="))})
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["slurm", "slurm-gres"])
def test_a_job_asks_by_the_size_of_its_model_and_for_more_when_it_is_tried_again(stubs, tmp_path, profile):
    folder = cluster_house(tmp_path / "house")
    study = yaml.safe_load((folder / "config" / "tiny.yaml").read_text())
    study |= {"models": {"large": {"source": {"folder": {"path": "opt-30b"}}, "dtype": "bfloat16"}}, "latency": None}
    study["conditions"] = study["conditions"][:1]
    (folder / "config" / "tiny.yaml").write_text(yaml.safe_dump(study))
    # what a trace is made of, so that it is all there is to do
    card = {"model_type": "opt", "dimensions": vars(PUBLISHED["opt-30b"].dimensions), "files": {}}
    header = {"spec": {"kind": "folder", "source": study["models"]["large"]["source"]["folder"]}}  # so it is there
    artifacts.write_record(results(folder) / "models/large/card.json", CARD_SCHEMA, card, header)
    for path in ("models/large/weights/x", "texts/words/documents.parquet"):
        (results(folder) / path).parent.mkdir(parents=True, exist_ok=True)
        (results(folder) / path).touch()
    said = snakemake(
        folder, profile, *QUICKLY, "--retries", "1", "results/tiny/traces/large/words/train-0.safetensors",
        "--default-resources", "slurm_account=lab", "slurm_partition=long", STUB_SLURM_STATE="TIMEOUT",
    )  # fmt: skip
    assert said.returncode != 0
    first, second = submitted(stubs)
    for one in (first, second):
        assert one["--gpus" if profile == "slurm" else "--gres"] == ("1" if profile == "slurm" else "gpu:1")
        assert ("--gres" in one) != ("--gpus" in one)
        assert (one["-A"], one["-p"], "--requeue" in one) == ("lab", "long", True)
    assert int(first["--mem"]) > 60_000 * 1.2 and int(second["--mem"]) == 2 * int(first["--mem"])
    assert int(second["-t"]) == 2 * int(first["-t"]) >= 60
    assert "--attempt 1" in first["command"] and "--attempt 2" in second["command"]


@pytest.mark.slow
def test_another_queue_gets_its_resources_and_runs_the_job(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    qsub = tmp_path / "bin" / "qsub"
    qsub.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\nbash "${{@: -1}}" > /dev/null 2>&1 &\necho 1\n')
    qsub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    folder = cluster_house(tmp_path / "house")
    said = snakemake(folder, "generic", "--latency-wait", "5", "--", "results/tiny/tasks/piqa.parquet")
    assert said.returncode == 0, said.stderr[-3000:]
    asked = (tmp_path / "asked").read_text()
    assert "-l select=1:ncpus=1:mem=2000mb:ngpus=0 -l walltime=30:00" in asked and "-N prepare_benchmark" in asked


def test_a_machine_without_slurm_says_so_at_once(tmp_path):
    """Whatever the executor does without `sbatch`, it waited for ever."""
    if shutil.which("sbatch"):
        pytest.skip("this machine has SLURM")
    folder = cluster_house(tmp_path / "house")
    said = snakemake(folder, "slurm", "--", "results/tiny/tasks/piqa.parquet")
    assert said.returncode != 0 and not (results(folder) / "tasks").exists()
    assert "no SLURM" in said.stderr and "sbatch" in said.stderr and "Traceback" not in said.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_agree_on_what_makes_a_result_stale(profile):
    default, other = (
        yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text()) for name in ("default", profile)
    )
    for key in ("rerun-triggers", "max-checksum-file-size", "rerun-incomplete", "keep-going"):
        assert other[key] == default[key]


@pytest.mark.slow
def test_a_second_attempt_has_half_the_batch(tmp_path):
    """A job that finds its memory too small says so by its exit code; the study finishes with smaller batches."""
    folder = prepared(tmp_path)
    study = yaml.safe_load((folder / "config" / "tiny.yaml").read_text())
    study["models"] = {"tiny-opt": study["models"]["tiny-opt"]}
    study["conditions"] = [{"methods": ["threshold"], "sparsities_pct": [50]}]
    study["traces"]["batch"] = 4
    (folder / "config" / "tiny.yaml").write_text(yaml.safe_dump(study | {"latency": None}))
    # torch runs out of memory at batches above 2
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if '--batch' in sys.argv and int(sys.argv[sys.argv.index('--batch') + 1]) > 2:\n"
        "    import shadowcore.method.thresholds as t, torch\n"
        "    def full(*_): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')\n"
        "    t.neuron_magnitudes = full\n"
    )
    target = "results/tiny/thresholds/tiny-opt/words.parquet"
    said = run_here(folder, "--retries", "1", target)
    assert said.returncode == 0, said.stderr[-3000:]
    assert "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB); use smaller batches" in said.stderr
    assert (folder / target).is_file()
    again = yaml.safe_load((folder / "config" / "tiny.yaml").read_text())
    again["traces"]["batch"] = 1  # how it is made does not make it another
    (folder / "config" / "tiny.yaml").write_text(yaml.safe_dump(again))
    said = run_here(folder, "--dry-run", target)
    assert "Nothing to be done" in said.stdout + said.stderr


# ---- a real one


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a SLURM of one node."""
    if not available():
        pytest.skip(NEEDED)
    with one_node(tmp_path_factory.mktemp("slurm")) as needed:
        yield needed


ON_ONE_NODE = ["--slurm-status-command", "squeue", "--default-resources", "slurm_account=lab", "slurm_partition=main"]


def queue(slurm):
    """State and name of every job."""
    said = subprocess.run(
        ["squeue", "--states=all", "-h", "-o", "%i|%T|%k"], capture_output=True, text=True, env=os.environ | slurm
    )
    return [line.split("|") for line in said.stdout.splitlines()]


@pytest.mark.slurm
def test_a_study_on_slurm_is_the_study_on_one_machine(slurm, tmp_path):
    house, home = (small(tmp_path / name, "tiny-llama") for name in ("house", "home"))
    (house / "sitecustomize.py").write_text(AT_ONCE)
    shutil.copy(house / "config" / "tiny.yaml", home / "config" / "tiny.yaml")
    began = time.monotonic()
    said = snakemake(house, "slurm", "--cores", "2", *QUICKLY, *ON_ONE_NODE, **slurm)  # as many as the node has
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-5000:]
    states = [state for _, state, _ in queue(slurm)]
    print(f"{len(states)} submissions, {time.monotonic() - began:.0f} s")
    assert set(states) == {"COMPLETED"}
    run_in(home)
    assert tables(house) == tables(home)


@pytest.mark.slurm
def test_a_preempted_job_goes_back_into_the_queue_and_finishes(slurm, tmp_path):
    folder = cluster_house(tmp_path / "house")
    target = "results/tiny/traces/tiny-opt/words/train-0.safetensors"
    running = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm", "--configfile", "config/tiny.yaml",
         *QUICKLY, target, *ON_ONE_NODE],
        cwd=folder, env=environment(folder) | slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    before = {job for job, *_ in queue(slurm)}
    deadline = time.monotonic() + 300
    preempted = None
    while preempted is None and time.monotonic() < deadline:
        time.sleep(0.5)
        traced = [job for job, state, name in queue(slurm) if state == "RUNNING" and "rule_trace" in name]
        preempted = next((job for job in traced if job not in before), None)
    assert preempted
    # more urgent work takes the whole node
    urgent = subprocess.run(
        ["srun", "-p", "urgent", "--exclusive", "sleep", "3"], env=os.environ | slurm, capture_output=True, text=True
    )
    assert urgent.returncode == 0, urgent.stderr
    said = running.communicate(timeout=400)[0]
    assert running.returncode == 0, said[-4000:]
    shown = subprocess.run(
        ["scontrol", "show", "job", preempted], capture_output=True, text=True, env=os.environ | slurm
    ).stdout
    assert "Restarts=1" in shown and "JobState=COMPLETED" in shown
    assert (folder / target).is_file()
