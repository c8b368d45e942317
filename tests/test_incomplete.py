"""A failed job costs what needs it and no more: tables and page of the rest, which say what is missing and why."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_workflow import command, environment, results, small, snakemake, tables

from shadowcore import artifacts, cli, logs, manifests, plan
from shadowcore.config import load_study
from shadowcore.incomplete import Ended, end_of_run, report
from shadowcore.jobs import Jobs
from shadowcore.provenance import fingerprint
from shadowcore.rules import RULES
from shadowcore.schemas import MEASURED, MEASURED_TABLES, OUTCOMES
from shadowcore.states import done

INTRODUCTION = ROOT / "workflow" / "report" / "workflow.rst"


@pytest.fixture
def jobs(tmp_path):
    return Jobs(load_study(ROOT / "config" / "quick.yaml"), tmp_path)


def write_log(jobs, place, *lines):
    path = jobs.root / "logs" / f"{place}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([logs.heading(["stage"], 1.7e9), *lines, ""]))


def of_all(jobs, *failed):
    return Ended(jobs, set(failed), {work.place for work in plan.work(jobs)})


def test_a_study_of_which_nothing_succeeded_has_a_page_that_says_so(jobs, capsys):
    model = next(iter(jobs.study.models))
    write_log(jobs, f"fetch_model/{model}", "shadowcore fetch-model: no such model")
    ended = of_all(jobs, f"fetch_model/{model}", "prepare_text/wikipedia")
    report(ended, INTRODUCTION)
    missing = artifacts.missing(jobs.root / "index.html")
    reasons = {one["job"]: one["reason"] for one in missing}
    assert reasons[f"fetch_model/{model}"] == "no such model" and "no log" in reasons["prepare_text/wikipedia"]
    evaluations = sum(work.rule == "evaluate" for work in plan.work(jobs))
    assert f"{evaluations} jobs of evaluate" in reasons
    page = (jobs.root / "index.html").read_text()
    assert page.index("no such model") < page.index("Summary")
    for name in MEASURED_TABLES:
        path = jobs.root / "tables" / f"{name}.parquet"
        assert artifacts.missing(path) == missing and not MEASURED_TABLES[name].read(path).num_rows
    for rule in ("aggregate", "write_page"):
        assert not done(jobs, rule, rule)  # nobody takes it for the study
    said = "\n".join(end_of_run(ended))
    for words in ("2 jobs failed", "no such model", f"logs/fetch_model/{model}.log", "index.html"):
        assert words in said
    assert cli.main(["show", "--brief", str(jobs.root)]) == 0
    assert "no such model" in capsys.readouterr().out


def test_when_the_tables_themselves_fail_no_older_one_is_shown(jobs):
    """What Snakemake would make anew goes, and what a failed step would have made is not made another way."""
    for name in ("tables/claims.parquet", "checks/tables.json", "figures/smollm2-135m.json"):
        (jobs.root / name).parent.mkdir(parents=True, exist_ok=True)
        (jobs.root / name).write_text("of the last run")
    write_log(jobs, "aggregate", "shadowcore aggregate: 50.parquet: damaged Parquet")
    ended = Ended(jobs, {"aggregate"}, {work.place for work in plan.work(jobs) if RULES[work.rule].joins})
    report(ended, INTRODUCTION)
    assert [one["job"] for one in artifacts.missing(jobs.root / "index.html")] == ["aggregate"]
    assert not list((jobs.root / "tables").iterdir()) and not list((jobs.root / "checks").iterdir())
    assert "damaged Parquet" in (jobs.root / "logs" / "aggregate.log").read_text()  # its own log stays


def test_what_an_unfinished_job_would_write_anew_is_in_no_table(jobs):
    """Its file is of another configuration or code: a number from it would be a wrong one."""
    manifest = Path(jobs.manifests()[0])
    for path in (manifest, manifests.unfinished(manifest)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("an old one")
    report(of_all(jobs, "prepare_text/wikipedia"), INTRODUCTION)  # would be damaged, if it were read
    assert len(artifacts.missing(jobs.root / "tables" / "accuracy.parquet")) > 1


def test_what_a_failed_evaluation_measured_is_in_the_tables(jobs):
    """As far as it is what the job was to measure: conditions of another configuration or code are left out."""
    (key, conditions), *_ = ((key, found) for key, found in jobs.evaluations.items() if len(found) > 2)
    manifest = jobs.root / "outcomes" / key[0] / key[1] / f"{key[2]}.json"
    name, condition = next(iter(conditions.items()))
    path = manifests.outcome(manifest, name)
    keys = vars(condition) | dict.fromkeys(MEASURED, 0.3) | {"task": "piqa", "metric": "acc", "fewshot": 0, "weight": 1}
    rows = [keys | {"document": str(number), "value": float(number % 2)} for number in range(8)]
    artifacts.write_table(path, OUTCOMES.schema, OUTCOMES.build(rows), {"spec": {}})
    place, wanted = f"evaluate/{'/'.join(key)}", json.loads(jobs.spec("evaluate", *key))
    made = {"stage": "evaluate", "spec": wanted, "code": fingerprint("shadowcore.stages.evaluate"), "inputs": {}}
    for header, expected in ((made, 1), (made | {"code": "another"}, 0), (made | {"spec": {}}, 0)):
        manifests.write(manifests.unfinished(manifest), {name: path}, header)
        report(of_all(jobs, place), INTRODUCTION)
        assert MEASURED_TABLES["accuracy"].read(jobs.root / "tables" / "accuracy.parquet").num_rows == expected
    report(of_all(jobs, "prepare_text/wikipedia"), INTRODUCTION)  # the job did not run at all
    assert not MEASURED_TABLES["accuracy"].read(jobs.root / "tables" / "accuracy.parquet").num_rows


def test_a_step_of_the_report_that_fails_is_named_and_the_page_is_made(jobs, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("half a study\nin two lines")

    monkeypatch.setattr("shadowcore.stages.judge_claims.run", broken)
    report(of_all(jobs, "prepare_text/wikipedia"), INTRODUCTION)
    reasons = {one["job"]: one["reason"] for one in artifacts.missing(jobs.root / "index.html")}
    assert reasons["judge_claims"] == "ZeroDivisionError: half a study"
    assert "judge_claims" not in {one["job"] for one in artifacts.missing(jobs.root / "tables" / "accuracy.parquet")}


# ---- with Snakemake

FAILING = """
import os, pathlib, sys
broken = pathlib.Path("broken")
if broken.exists() and all(word in " ".join(sys.orig_argv) for word in broken.read_text().split()):
    print("shadowcore stage: trace.safetensors: damaged safetensors", file=sys.stderr, flush=True)
    os._exit(2)
"""


def failing(folder, *words):
    """A house with a small study of two models, of which every job whose command has these words fails."""
    house = small(folder)
    (house / "sitecustomize.py").write_text(FAILING)
    (house / "broken").write_text(" ".join(words))
    return house


def ran_well(house):
    said = snakemake(house)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-4000:]


@pytest.mark.slow
def test_a_failed_job_costs_what_needs_it_and_the_next_run_makes_the_study_whole(tmp_path):
    house = failing(tmp_path / "house", "shadowcore", "train-predictor", "tiny-opt")
    job, sentence = "train_predictor/tiny-opt/words/shadow+plainact+small", "trace.safetensors: damaged safetensors"
    said = snakemake(house)
    assert said.returncode != 0 and "Traceback" not in said.stdout + said.stderr
    end = (said.stdout + said.stderr).partition("1 job failed:")[2]
    assert f"{job}: {sentence}" in end and f"results/tiny/logs/{job}.log" in end and "index.html" in end
    names = ["index.html", "checks/tables.json", "figures/tiny-llama/perplexity.png", "figures/tiny-opt.json"]
    for path in [*(results(house) / "tables").iterdir(), *(results(house) / name for name in names)]:
        missing = artifacts.missing(path)
        assert [one["job"] for one in missing] == [job, "1 job of evaluate"] and missing[0]["reason"] == sentence
    (house / "broken").unlink()
    ran_well(house)
    assert not any(artifacts.missing(path) for path in (results(house) / "tables").iterdir())
    whole, page = tables(house), (results(house) / "index.html").read_bytes()
    shutil.rmtree(results(house))
    shutil.rmtree(house / ".snakemake")
    ran_well(house)  # undisturbed
    assert tables(house) == whole
    assert (results(house) / "index.html").read_bytes() == page


@pytest.mark.slow
def test_tables_of_a_part_are_made_again_even_where_nothing_else_is_to_be_done(tmp_path):
    """A condition is added, fails, and is taken back: every input of the tables is then what it was before."""
    house = failing(tmp_path / "house", "nothing")
    path = house / "config" / "tiny.yaml"
    study = yaml.safe_load(path.read_text())
    study["models"].pop("tiny-llama")
    study["conditions"] = [{"methods": ["random"], "sparsities_pct": [50]}]
    path.write_text(yaml.safe_dump(study))
    ran_well(house)
    whole = tables(house)
    path.write_text(yaml.safe_dump(study | {"conditions": [{"methods": ["random"], "sparsities_pct": [50, 60]}]}))
    (house / "broken").write_text("shadowcore outcomes/tiny-opt/words/60.json")
    assert snakemake(house).returncode != 0
    assert artifacts.missing(results(house) / "tables" / "accuracy.parquet")
    path.write_text(yaml.safe_dump(study))
    ran_well(house)
    assert {name: content for name, content in tables(house).items() if name in whole} == whole


@pytest.mark.slow
def test_an_interrupted_run_makes_no_page(tmp_path):
    house = failing(tmp_path / "house", "nothing")
    process = subprocess.Popen(
        command(), cwd=house, env=environment(house), start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(results(house).rglob("documents.parquet")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "interrupted" in said
    assert not (results(house) / "index.html").exists() and not (results(house) / "tables").exists()
