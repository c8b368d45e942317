"""The study as a whole, on tiny random models of both families: complete, never stale, never redone."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, write_benchmarks, write_words
from fork_server import forking

from shadowcore import manifests
from shadowcore.commands.explain import explain
from shadowcore.config import load_study
from shadowcore.jobs import Jobs
from shadowcore.measure.methods import METHODS
from shadowcore.method.criteria import CRITERIA
from shadowcore.plan import work
from shadowcore.report import drawn
from shadowcore.report.figures import FIGURES
from shadowcore.rules import outputs
from shadowcore.schemas import FINAL_TABLES
from shadowcore.states import states

LEFT = ("logs", "benchmarks", "study.txt")  # in a results folder beside what jobs write
PARTS = ("Snakefile", "workflow", "shadowcore", "profiles", "config", "environment.yml")


def tiny_study(folder):
    """The smoke study, and what it leaves out: two models, a text and benchmarks in a folder, every criterion."""
    study = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    (model,) = study["models"].values()
    grid = {"methods": ["shadow"], "criteria": ["plainact"], "predictors": ["small"], "sparsities_pct": [50]}
    return study | {
        "study": "tiny",
        "models": {
            f"tiny-{f}": {"source": {"random": model["source"]["random"] | {"family": f}}} for f in ("llama", "opt")
        },
        "texts": {"words": study["texts"]["words"] | {"source": {"folder": {"path": str(folder / "words")}}}},
        "traces": study["traces"] | {"criteria": sorted(CRITERIA)},
        "predictors": {
            **study["predictors"],
            "tiny": {"recipe": "published", "rank_neurons": 8, "rank_heads": 4, "batch": 16, "bits": 8, "block": 8},
            "deja": {"recipe": "dejavu", "rank_neurons": 8, "rank_heads": 4, "batch": 16, "epochs": 2},
            "windows": {"recipe": "published_lookahead", "rank_neurons": 8, "rank_heads": 4, "batch": 4, "epochs": 2},
        },
        "conditions": [
            {"methods": ["random"], "sparsities_pct": [50]},
            grid | {"methods": ["static", "shadow", "oracle"], "units": ["both"]},
            grid | {"models": ["tiny-opt"], "units": ["both"], "seeds": [1]},
            grid | {"predictors": ["tiny"], "models": ["tiny-llama"], "policies": ["global"]},
            {"methods": ["threshold", "cats", "proxy2_ahead"], "models": ["tiny-opt"], "sparsities_pct": [50]},
            {"methods": ["griffin"], "models": ["tiny-opt"], "protocols": ["prompt"], "sparsities_pct": [50]},
            {"methods": ["relu", "sparseinfer"], "models": ["tiny-opt"], "sparsities_pct": [0]},
            grid | {"methods": ["dejavu"], "predictors": ["deja"], "models": ["tiny-opt"]},
            grid | {"methods": ["static_tuned", "proxy2_ahead_tuned"], "predictors": ["tuned"], "models": ["tiny-opt"]},
            grid | {"predictors": ["windows"], "models": ["tiny-opt"], "protocols": ["lookahead"], "units": ["both"]},
            study["conditions"][-1],
        ],
        "evaluation": study["evaluation"] | {
            "windows": 2, "rolling_tokens": 48, "tasks": [*study["evaluation"]["tasks"], "piqa", "wikitext"],
            "offline_dir": str(folder / "benchmarks"), "limit": {"piqa": 4}, "fewshot": [0, 1],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project with a tiny study, run once; its commands are forks of one interpreter."""
    folder = prepared(tmp_path_factory.mktemp("house"))
    with forking(folder / ".bin"):
        yield run_in(folder)


def prepared(folder):
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    write_words(folder / "words")
    write_benchmarks(folder / "benchmarks")
    (folder / "config" / "tiny.yaml").write_text(yaml.safe_dump(tiny_study(folder)))
    return folder


def small(folder, *models):
    """A house with a study of every stage that writes something large, and few of each; models: by default both."""
    folder.mkdir()
    house = prepared(folder)
    path = house / "config" / "tiny.yaml"
    study = yaml.safe_load(path.read_text())
    study["models"] = {name: study["models"][name] for name in models or study["models"]}
    study["evaluation"] |= {"tasks": ["true_continuation"], "limit": {}}
    study["conditions"] = [
        {"methods": ["static", "shadow"], "criteria": ["plainact"], "predictors": ["small"], "sparsities_pct": [50]}
    ]
    path.write_text(yaml.safe_dump(study | {"latency": None}))
    return house


def command(*arguments):
    return ["python", "-m", "snakemake", "--configfile", "config/tiny.yaml", "--show-failed-logs", *arguments]


def environment(folder):
    path = f"{folder / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(folder), "PATH": path}


def snakemake(folder, *arguments):
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600
    )


def run_in(folder):
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def waiting(folder, *arguments):
    """Rules that would run, and how many jobs of each."""
    said = snakemake(folder, *arguments, "--dry-run", "--quiet", "reason")
    assert said.returncode == 0, said.stderr
    counts = re.findall(r"^(\w+) +(\d+)$", said.stdout + said.stderr, re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule not in ("total", "all")}


def results(folder):
    return folder / "results" / "tiny"


def jobs_of(folder):
    return Jobs(load_study(folder / "config" / "tiny.yaml"), folder / "results")


def tables(folder):
    """Parquet files and predictors that hold no times."""
    paths = [*results(folder).rglob("*.parquet"), *results(folder).rglob("*.safetensors")]
    untimed = [path for path in sorted(paths) if "latency" not in str(path) and path.stem not in ("claims", "refused")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in untimed}


def test_it_makes_every_table_and_figure(house):
    for name in FINAL_TABLES:
        rows = pq.read_table(results(house) / "tables" / f"{name}.parquet").num_rows
        assert rows == 0 if name == "refused" else rows > 0
    for one in drawn.read(results(house).glob("figures/*.json")):
        assert {*one.files, *one.left_out} == set(FIGURES) and "perplexity" in one.files
        files = [path for png in one.files.values() for path in (png, png.with_suffix(".pdf"))]
        assert all(path.stat().st_size > 1000 for path in files)
        assert sorted(files) == sorted(results(house).glob(f"figures/{one.model}/*.p*"))
    assert (results(house) / "index.html").stat().st_size > 100_000
    assert not [*results(house).rglob("*.partial"), *results(house).rglob(".*.checkpoint.*")]


def test_every_file_is_an_output_that_some_job_is_known_for_and_others_may_read_it(house):
    root, jobs = results(house), jobs_of(house)
    known = {path for one in work(jobs) for path in outputs(root, one.rule, one.name)}
    files = {path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] not in LEFT}
    outcomes = {
        manifests.outcome(Path(manifest), name)
        for manifest, conditions in zip(jobs.manifests(), jobs.evaluations.values(), strict=True)
        for name in conditions
    }
    files = {next((parent for parent in path.parents if parent in known), path) for path in files}
    assert len(outcomes) == len(jobs.conditions) and files == known | outcomes
    umask = os.umask(0o022)
    os.umask(umask)
    for path in root.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.is_symlink() or path.stat().st_mode & 0o777 == wanted, path


def test_the_plan_has_these_jobs_and_bytes(house):
    planned = work(jobs_of(house), strict=True)
    assert Counter(one.rule for one in planned) == waiting(house, "--forceall")
    for one in planned:
        if one.rule.startswith("trace"):
            content = (results(house) / "traces" / f"{one.name}.safetensors").read_bytes()
            assert one.written == len(content) - 8 - int.from_bytes(content[:8], "little")  # without the header
    assert all(one.measured_seconds(results(house)) for one in planned)  # every name leads to a file of times


def test_every_job_is_done_and_leads_from_its_files_to_its_command(house, monkeypatch):
    monkeypatch.chdir(house)
    found = states(jobs_of(Path(".")), time.time())
    assert {job.state for job in found} == {"done"} and all(job.content.command and job.seconds for job in found)
    root = Path("results/tiny")
    kinds = ("parquet", "safetensors", "json", "png", "pdf", "html")
    files = [path for kind in kinds for path in root.rglob(f"*.{kind}") if "weights" not in path.parts]
    files = {(path.relative_to(root).parts[0], path.suffixes[-1]): path for path in files}.values()  # one of each kind
    for path in files:
        facts = explain(path)
        said = dict(facts)
        # outcomes are written by their job's manifest, figures by their folder
        written = {"outcomes": root / "outcomes", "figures": root / "figures"}.get(path.parts[2], path)
        assert str(written) in said["command"] and "same as here" in said["code"] and "took" in said
        read = [line for word, line in facts if word == "from"]
        assert all("latency" in line or "refused" in line or not line.endswith(")") for line in read)
        assert read or any(f"the stage {name}" in said["kind"] for name in ("fetch", "prepare"))
    assert len(files) > 12
    behind = [line for word, line in explain(root / "index.html") if word == "behind it"]
    stages = {line.split(":")[0] for line in behind}
    assert stages == {job.content.command[0] for job in found} - {"write-page", "check-disjoint", "check-tables"}


def test_benchmarks_are_rows_of_their_own(house):
    accuracy = pq.read_table(results(house) / "tables" / "accuracy.parquet").to_pandas()
    asked = accuracy[accuracy["task"] == "piqa"]
    assert set(zip(asked["data"], asked["fewshot"], asked["n"], strict=True)) == {("piqa", 0, 4), ("piqa", 1, 4)}
    others = {name for name in METHODS if name.startswith("proxy")} - {"proxy2_ahead", "proxy2_ahead_tuned"}
    assert set(asked["method"]) == set(METHODS) - {"layerwise", "layerwise_own"} - others
    perplexity = pq.read_table(results(house) / "tables" / "perplexity.parquet").to_pandas()
    rolled = perplexity[perplexity["task"] == "wikitext"]
    assert set(rolled["metric"]) == {"token_perplexity", "word_perplexity", "byte_perplexity"}
    # chosen from a prompt, which whole documents and windows have not
    measured = asked[asked["method"] != "griffin"]
    assert len(rolled) == 3 * len(measured[["model", "method", "predictor", "seed"]].drop_duplicates())


def test_a_second_run_a_touch_and_a_comment_do_nothing(house):
    assert waiting(house) == {}
    criteria = house / "shadowcore" / "method" / "criteria.py"
    text = criteria.read_text()
    criteria.write_text("# a comment\n" + text.replace('"""Scores of whole', '"""The scores of whole'))
    files = [path for path in house.rglob("*") if ".snakemake" not in path.parts and path.is_file()]
    random.Random(1).shuffle(files)
    for number, path in enumerate(files):  # as a copy may have them: in an order that has nothing to do with the study
        os.utime(path, (1.7e9 + number, 1.7e9 + number))
    assert waiting(house) == {}
    criteria.write_text(text)


def test_a_deleted_outcome_file_is_made_again_the_same_and_nothing_else_is_measured(house):
    outcomes = sorted((results(house) / "outcomes" / "tiny-opt").rglob("50.parquet"))
    lost = next(path for path in outcomes if "random" in str(path))
    content, before = lost.read_bytes(), {path: path.stat().st_mtime_ns for path in outcomes}
    lost.unlink()
    # which needs it: Snakemake makes nothing for its own sake
    (results(house) / "tables" / "accuracy.parquet").unlink()
    due = waiting(house)
    assert due["evaluate"] == 1 and "evaluate_oracle" not in due and "trace" not in due
    jobs = jobs_of(house)
    again = {job.work.rule: job for job in states(jobs, time.time()) if job.state != "done"}
    assert again.keys() == {"evaluate", "aggregate"} and again["evaluate"].work.name == "tiny-opt/words/50"
    assert again["evaluate"].deleted
    assert snakemake(house).returncode == 0 and waiting(house) == {}
    assert lost.read_bytes() == content
    assert {path for path in outcomes if path.stat().st_mtime_ns != before[path]} == {lost}


@pytest.mark.parametrize(("file", "before", "after", "due", "more"), [
    # `50` and `50-1` of each model; the evaluations of no sparsity, dense and relu, do not stand on criteria
    ("method/criteria.py", "s.ga.abs()", "2 * s.ga.abs()", {"evaluate": 4, "evaluate_oracle": 2},
     {"trace", "average", "train_predictor", "latency", "aggregate"}),
    ("report/style.py", "PNG_DPI = 150", "PNG_DPI = 151", {"draw": 2, "write_page": 1}, set()),
])  # fmt: skip
def test_an_edit_reruns_exactly_what_stands_on_it(house, file, before, after, due, more):
    path = house / "shadowcore" / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    found = waiting(house)
    path.write_text(text)
    assert due.items() <= found.items() and more <= set(found) and (more or found == due)
    assert not {"fetch_model", "prepare_text"} & set(found)


def test_a_number_of_gpus_given_to_snakemake_is_the_number_that_the_job_reserves(house):
    said = snakemake(
        house, "--dry-run", "--printshellcmds", "--forcerun", "trace", "--set-resources", "trace:devices=3"
    )
    assert said.returncode == 0, said.stderr
    traces = re.findall(r"shadowcore trace .*--devices (\d+)", said.stdout + said.stderr)
    others = re.findall(r"shadowcore train-predictor .*--devices (\d+)", said.stdout + said.stderr)
    assert set(traces) == {"3"} and set(others) == {"0"}
    # a job that runs has the option, too: Snakemake evaluates its command later than the one that it prints
    commands = [job.content.command for job in states(jobs_of(house), time.time())]
    assert {command[command.index("--devices") + 1] for command in commands} == {"0"}


def test_one_model_at_a_time_keeps_no_weights_and_no_traces_and_makes_the_same_tables(house, tmp_path):
    folder, config = prepared(tmp_path), tmp_path / "config" / "tiny.yaml"
    study = yaml.safe_load((house / "config" / "tiny.yaml").read_text())  # its folders are in specifications
    study |= {"one_model_at_a_time": True, "latency": None}
    config.write_text(yaml.safe_dump(study))
    first, second = study["models"]
    root, python = results(folder), folder / ".bin" / "python"

    def large():
        return {path.relative_to(root).parts[1] for place in ("models/*/weights", "traces/*/**/*.safetensors")
                for path in root.glob(place)}  # fmt: skip

    with forking(folder / ".bin"):
        whole = python.rename(python.with_name("whole")) if python.exists() else sys.executable
        python.write_text(f'#!/bin/sh\ncase "$*" in *evaluate-oracle*{first}*) exit 1;; esac\nexec {whole} "$@"\n')
        python.chmod(0o755)
        assert snakemake(folder, "tables").returncode == 1
        assert large() == {first}  # whose failed jobs need them; the second model's jobs were not held up ...
        before = [path.stat().st_mtime for path in (*root.glob(f"outcomes/{first}/**/*.json"),
                                                    *root.glob(f"predictors/{first}/**/*.sha256"))]  # fmt: skip
        assert before and max(before) < (root / "models" / second / "card.json").stat().st_mtime  # ... and came later
        python.write_text(f'#!/bin/sh\nexec {whole} "$@"\n')
        assert snakemake(folder, "tables").returncode == 0
        assert large() == set() and waiting(folder, "tables") == {}
        found = states(jobs_of(folder), time.time())
        assert {job.state for job in found if job.work.rule not in ("draw", "write_page")} == {"done"}
        assert tables(folder) == {path: content for path, content in tables(house).items()
                                  if "/weights/" not in path and "/traces/" not in path}  # fmt: skip

        # another predictor of the second model: what it needs is made again, with the same bytes, and nothing else
        seals = {path: path.read_bytes() for path in (*root.rglob("*.sha256"), *root.rglob("card.json"))}
        grid = {"methods": ["shadow"], "criteria": ["plainact"], "predictors": ["small"], "sparsities_pct": [50],
                "models": [second], "seeds": [2]}  # fmt: skip
        config.write_text(yaml.safe_dump(study | {"conditions": [*study["conditions"], grid]}))
        manifest = str((root / "outcomes" / second / "words" / "50.json").relative_to(folder))
        due = {"fetch_model": 1, "trace": 2, "train_predictor": 1, "evaluate": 1}
        assert waiting(folder, manifest) == due
        assert snakemake(folder, manifest).returncode == 0 and waiting(folder, manifest) == {}
        assert large() == set() and {path: path.read_bytes() for path in seals} == seals


@pytest.mark.slow
def test_the_report_has_figures_first_and_names_the_model_of_each(house, tmp_path):
    said = snakemake(house, "--report", str(tmp_path / "report.zip"))
    assert said.returncode == 0, said.stderr
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        page = archive.read("report/report.html").decode()
    categories, results = (
        json.JSONDecoder().raw_decode(page, re.search(rf"var {name}\s*= (?={{)", page).end())[0]
        for name in ("categories", "results")
    )
    assert sorted(categories) == ["Figures", "Page", "Tables"]  # as the report shows them
    figures = [results[path]["labels"] for path in categories["Figures"]["Other"]]
    assert all(list(labels) == ["figure", "model"] for labels in figures)
    assert {labels["model"] for labels in figures} == {"tiny-llama", "tiny-opt"}


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(house, tmp_path):
    (tmp_path / "killed").mkdir()
    folder = prepared(tmp_path / "killed")
    # the text's folder is in the specification, so both runs must name the same one
    (folder / "config" / "tiny.yaml").write_text((house / "config" / "tiny.yaml").read_text())
    with forking(folder / ".bin") as forks:
        process = subprocess.Popen(
            command(), cwd=folder, env=environment(folder), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(results(folder).rglob("train-0.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.2)
        for group in {process.pid, forks or process.pid}:
            os.killpg(group, signal.SIGKILL)
        process.wait()
    with forking(folder / ".bin"):
        snakemake(folder, "--unlock")
        run_in(folder)
    assert tables(folder) == tables(house)
