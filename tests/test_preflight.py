"""What is known before the first job stops plan, doctor and the dry run: sources, sizes, and what a machine lacks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from conftest import QUICK, ROOT, write_benchmarks, write_words
from conftest import small_study as study_of

from shadowcore import artifacts, cli, machine, plan, preflight
from shadowcore.config import load_study, parse_study
from shadowcore.errors import ConfigError
from shadowcore.jobs import Jobs
from shadowcore.rules import outputs
from shadowcore.stages.base import CARD_SCHEMA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text, benchmarks, and folders that hold something else."""
    folder = tmp_path_factory.mktemp("sources")
    write_words(folder / "words")
    write_benchmarks(folder / "benchmarks")
    (folder / "empty").mkdir()
    for name, suffix in (("plain", "txt"), ("few plain", "txt"), ("lines", "jsonl")):
        (folder / name).mkdir()
        for number in range(20 if name == "plain" else 2):
            (folder / name / f"{number}.{suffix}").write_text('{"text": "some words"}\n')
    shutil.copytree(folder / "benchmarks", folder / "no piqa", ignore=lambda *_: ["piqa"])
    return folder


def problems(study, results):
    return preflight.problems(Jobs(parse_study(study, "mine.yaml"), results))


def placed(fields, folder):
    """Fields with the place of a folder filled in."""
    return {key: one.replace("FOLDER", str(folder)) if isinstance(one, str) else one for key, one in fields.items()}


def test_a_study_whose_sources_are_there_has_no_problem(folder, tmp_path):
    assert problems(study_of(folder), tmp_path) == []
    assert problems(QUICK, tmp_path) == []
    for name in ("plain", "lines"):  # lines are not counted before they are read
        study = study_of(folder)
        study["texts"]["wikipedia"]["source"] = {"folder": {"path": f"{folder}/{name}"}}
        assert problems(study, tmp_path) == []


def with_model(**fields):
    return lambda study, folder: study["models"]["tiny"]["source"]["random"].update(fields)


def with_source(part, name, **source):
    def change(study, folder):
        study[part][name]["source"] = {kind: placed(fields, folder) for kind, fields in source.items()}

    return change


def with_keys(part, **keys):
    return lambda study, folder: study[part].update(placed(keys, folder))


def segments(count):
    def change(study, folder):
        study["predictors"]["small"]["segments"] = count
        study["conditions"][1]["methods"] = ["segments"]

    return change


def timed(**changes):
    def change(study, folder):
        study["latency_random"] = {
            "models": ["opt-tiny"], "dtype": "float32", "units": "both", "sparsities_pct": [50],
            "designs": [{"method": "segments", "rank_heads": 4, "rank_neurons": 4, "segments": 2}], "baselines": [],
            "active": 0.1, "prompt_tokens": 4, "short_tokens": 2, "new_tokens": 4, "repeats": 1, "warmup": 0,
        } | changes  # fmt: skip

    return change


RANDOM = "models.tiny.source.random"
PROBLEMS = [
    # sources check themselves; here each is named by its key
    (with_model(width=15), [f"{RANDOM}.width", "15"]),
    (with_model(family="phi"), ["latency", "models.tiny", "'phi'", "llama, mistral", "docs/extend.md"]),
    (with_source("models", "tiny", folder={"path": "FOLDER/empty"}), ["models.tiny.source.folder.path", "config.json"]),
    (with_source("models", "tiny", package={"name": "opt"}), ["models.tiny.source.package.name", "opt"]),
    (with_source("texts", "wikipedia", folder={"path": "FOLDER/nowhere"}), ["wikipedia.source.folder.path", "nowhere"]),
    (with_source("texts", "wikipedia", folder={"path": "FOLDER/words", "column": "tekst"}),
     ["wikipedia.source.folder.column", "tekst"]),
    (with_source("texts", "wikipedia", folder={"path": "FOLDER/few plain"}), ["heldout_fraction", "documents"]),
    (with_source("texts", "wikipedia", random={"documents": 2}), ["texts.wikipedia.", "documents"]),
    (with_keys("evaluation", offline_dir="FOLDER/nowhere"), ["evaluation.offline_dir", "nowhere"]),
    (with_keys("evaluation", offline_dir="FOLDER/no piqa"), ["piqa", "validation.parquet"]),
    (with_keys("evaluation", limit={"piqa": 9}), ["evaluation.limit", "piqa", "9", "8"]),
    # all of them, in one folder
    (lambda study, folder: study.update(offline=f"{folder}/nowhere"), ["offline: ", "nowhere"]),
    # sizes that a model does not have
    (with_keys("traces", window_tokens=129), ["traces.window_tokens", "129", "128", "models.tiny"]),
    (with_keys("evaluation", window_tokens=129), ["evaluation.window_tokens", "129", "128", "models.tiny"]),
    (with_keys("latency", prompt_tokens=100, new_tokens=29), ["latency.prompt_tokens + new_tokens", "129", "128"]),
    (segments(3), ["predictors.small.segments", "3", "models.tiny", "1 to 2"]),
    (lambda study, folder: study["predictors"]["small"].update(block=5), ["predictors.small.block", "5", "24"]),
    (timed(prompt_tokens=61), ["latency_random.prompt_tokens + new_tokens", "65", "64"]),
    (timed(also=[{"new_tokens": 61}]), ["latency_random.prompt_tokens + new_tokens", "65", "64"]),
    (timed(designs=[{"method": "segments", "rank_heads": 4, "rank_neurons": 4, "segments": 3}]),
     ["latency_random.designs", "segments", "3", "1 to 2"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "names"), PROBLEMS)
def test_what_would_stop_a_job_is_one_sentence_that_names_the_key(folder, tmp_path, change, names):
    study = study_of(folder)
    change(study, folder)
    found = problems(study, tmp_path)
    assert len(found) == 1 and "\n" not in found[0], found
    assert all(name in found[0] for name in names), found


def test_what_fits_exactly_is_no_problem(folder, tmp_path):
    study = study_of(folder)
    for change in (
        with_keys("traces", window_tokens=128), with_keys("evaluation", window_tokens=128, limit={"piqa": 8}),
        with_keys("latency", prompt_tokens=100, new_tokens=28), segments(2), timed(prompt_tokens=60),
    ):  # fmt: skip
        change(study, folder)
    assert problems(study, tmp_path) == []


def test_a_source_is_not_needed_again_once_its_output_is_there(folder, tmp_path):
    study = study_of(folder)
    for part, name, place in (("models", "tiny", "model"), ("texts", "wikipedia", "words")):
        with_source(part, name, folder={"path": f"{tmp_path}/gone/{place}"})(study, folder)
    study["evaluation"]["offline_dir"] = f"{tmp_path}/gone/benchmarks"
    jobs = Jobs(parse_study(study, "mine.yaml"), tmp_path)
    assert len(preflight.problems(jobs)) == 3  # that of the benchmarks once
    sizes = {"layers": 3, "width": 16, "heads": 2, "kv_heads": 2, "head_width": 8, "neurons": 24, "vocabulary": 320,
             "positions": 128}  # fmt: skip
    header = {"spec": jobs.fetch_model("tiny")}
    record = {"model_type": "llama", "dimensions": sizes, "files": {}}
    artifacts.write_record(jobs.root / "models/tiny/card.json", CARD_SCHEMA, record, header)
    table = pa.table({"text": ["x"]})
    for path, spec in (
        ("texts/wikipedia/documents.parquet", jobs.prepare_text("wikipedia")),
        ("tasks/piqa.parquet", jobs.prepare_benchmark("piqa")),
        ("tasks/wikitext.parquet", jobs.prepare_benchmark("wikitext")),
    ):
        artifacts.write_table(jobs.root / path, "any", table, {"spec": spec})
    assert preflight.problems(jobs) == []
    study["texts"]["wikipedia"]["heldout_fraction"] = 0.2  # now the text has to be prepared again
    study["evaluation"]["limit"] = {"piqa": 4}
    found = problems(study, tmp_path)
    assert len(found) == 2 and "wikipedia.source.folder.path" in found[0] and "evaluation.offline_dir" in found[1]


# ---- this machine


@pytest.fixture
def small_machine(monkeypatch):
    """24 GB and no GPU."""
    monkeypatch.setattr(machine, "memory", lambda: 24_000_000_000)
    monkeypatch.setattr(machine, "gpu_memory", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("small_machine")
def test_a_study_that_needs_more_than_the_machine_has_is_refused_unless_it_is_to_run_anyway(tmp_path, monkeypatch):
    def lacking(name, **keys):
        data = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
        jobs = Jobs(parse_study(data | keys, name), tmp_path)
        try:
            preflight.check_machine(jobs)
        except ConfigError as error:
            return str(error)

    assert lacking("quick") is None
    for name in ("gpu", "paper"):
        assert "no GPU" in lacking(name) and "run_anyway" in lacking(name) and lacking(name, run_anyway="true") is None
    # OPT-66B in 16 bits is 133 GB, on one GPU
    monkeypatch.setattr(machine, "gpu_memory", lambda: [80e9, 80e9])
    assert "cannot use its GPU" in lacking("gpu")  # torch without CUDA would calculate on the processor
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "opt-66b" in lacking("gpu") and "80 GB of memory on its largest GPU" in lacking("gpu")
    monkeypatch.setattr(machine, "gpu_memory", lambda: [141e9])
    assert lacking("gpu") is None
    assert "24 GB of memory" in lacking("paper") and "opt-30b" in lacking("paper")
    monkeypatch.setattr(machine, "memory", lambda: 10**12)
    assert lacking("paper") is None
    # OPT-30B in 16 bits is 60 GB, on as many GPUs as it takes
    monkeypatch.setattr(machine, "gpu_memory", lambda: [40e9])
    assert "opt-30b" in lacking("paper") and "40 GB of GPU memory" in lacking("paper")
    monkeypatch.setattr(machine, "gpu_memory", lambda: [40e9] * 3)
    assert lacking("paper") is None


@pytest.mark.usefixtures("small_machine")
def test_jobs_that_have_run_and_tiny_models_with_random_weights_need_no_gpu(folder, tmp_path):
    study = study_of(folder)
    timed()(study, folder)
    assert preflight.shortage(Jobs(parse_study(study, "mine.yaml"), tmp_path)) is None
    jobs = Jobs(load_study(ROOT / "config" / "gpu.yaml"), tmp_path)
    large = [one for one in plan.work(jobs) if one.needs_gpu]
    for one in large:
        assert "no GPU" in preflight.shortage(jobs)
        for path in outputs(jobs.root, one.rule, one.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert large and preflight.shortage(jobs) is None


def test_the_gpus_of_this_machine_are_those_that_the_process_may_use(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\ncase "$1" in *memory*) echo "GPU-a, 81920"; echo "GPU-b, [N/A]";; '
                      "*) echo GPU-a; echo GPU-b;; esac\n")  # fmt: skip
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpu_memory() == [81920 * 2**20, float("inf")]
    for visible, found in (("0", [81920 * 2**20]), ("", []), ("MIG-1", [float("inf")])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.gpu_memory() == found
    script.write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine.gpu_memory() == []


def test_a_container_may_have_less_memory_than_its_machine(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "LIMITS", (limit,))
    whole = machine.memory()
    for text, found in (("max\n", whole), ("1000000\n", 1_000_000), (f"{2**63}\n", whole)):
        limit.write_text(text)
        assert machine.memory() == found


# ---- where it is asked


@pytest.fixture
def written(folder, tmp_path, monkeypatch):
    """Write a study to a file and go to an empty folder; returns the file's path."""
    monkeypatch.chdir(tmp_path)

    def write(study):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(study))
        return str(path)

    return write


@pytest.mark.usefixtures("small_machine")
def test_plan_and_doctor_and_fetch_name_the_same_problem(folder, written, capsys):
    study = study_of(folder)
    assert cli.main(["plan", written(study)]) == 0 and "cannot run" not in capsys.readouterr().out
    study["texts"]["wikipedia"]["source"] = {"folder": {"path": f"{folder}/nowhere"}}
    study["models"]["tiny"]["source"]["random"]["width"] = 15
    path = written(study)
    for command in (["plan", path], ["fetch", path, "--to", "there"]):
        assert cli.main(command) == 2
        said = capsys.readouterr()
        assert "models.tiny.source.random.width" in said.err and len(said.err.splitlines()) == 1
    assert cli.main(["doctor", path]) == 1
    said = capsys.readouterr().out
    broken = [line for line in said.splitlines() if line.startswith("BROKEN")]
    assert any("models.tiny.source.random.width" in line for line in broken)
    assert any("wikipedia.source.folder.path" in line for line in broken)


@pytest.mark.usefixtures("small_machine")
def test_plan_says_that_this_machine_cannot_run_it_and_doctor_that_it_is_broken(written, capsys):
    data = yaml.safe_load((ROOT / "config" / "gpu.yaml").read_text())
    assert cli.main(["plan", written(data)]) == 0
    assert "cannot run" in capsys.readouterr().out
    assert cli.main(["doctor", written(data)]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("BROKEN") and "no GPU" in line]
    cli.main(["doctor", written(data | {"run_anyway": True})])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning") and "no GPU" in line]


def dry_run(path, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--configfile", path, "--dry-run", "--quiet", "rules", *arguments],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_dry_run_refuses_repeated_keys_and_a_machine_without_a_gpu(folder, written):
    study = study_of(folder) | {"study": "dry"}
    path = Path(written(study))
    path.write_text(path.read_text() + "seed: 1\n")
    code, said = dry_run(path)
    assert code != 0 and "'seed'" in said and f"line {len(path.read_text().splitlines())}" in said
    code, said = dry_run("config/gpu.yaml")
    assert code != 0 and "no GPU" in said and "run_anyway" in said


@pytest.mark.slow
def test_a_machine_that_only_submits_jobs_needs_no_gpu(monkeypatch):
    for arguments in (["--workflow-profile", "profiles/generic"], ["--config", "run_anyway=true"]):
        code, said = dry_run("config/gpu.yaml", *arguments)
        assert code == 0 and "latency_random" in said, said
