"""benchmarks/chain.py: every stage in turn without Snakemake, on tiny dimensions, and what it writes down of each."""

import importlib.util
import subprocess
import sys
from contextlib import redirect_stderr

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, write_benchmarks, write_words

from shadowcore import manifests, plan, rates
from shadowcore.config import parse_study
from shadowcore.jobs import Jobs

SCRIPT = ROOT / "benchmarks" / "chain.py"
STUDY = yaml.safe_load((ROOT / "benchmarks" / "chain.yaml").read_text())
SPEC = importlib.util.spec_from_file_location("chain", SCRIPT)
chain = importlib.util.module_from_spec(SPEC)
sys.modules["chain"] = chain
SPEC.loader.exec_module(chain)


def tiny(folder):
    """The chain's study with tiny dimensions, texts and benchmarks."""
    dimensions = {"family": "opt", "layers": 3, "width": 16, "heads": 4, "neurons": 32}
    recipe = {"recipe": "best", "rank_heads": 4, "rank_neurons": 4, "epochs": 1, "batch": 16}
    questions = {"documents": 4, "context_words": 6, "continuation_words": 3}
    words = {"source": {"folder": {"path": str(write_words(folder / "words"))}}, "heldout_fraction": 0.2}
    few = {"window_tokens": 80, "windows": 4, "tokens_per_window": 8, "heldout_windows": 2}
    evaluated = {"tasks": ["true_continuation", "piqa"], "limit": {"piqa": 4}, "fewshot": [0, 1], "windows": 2}
    evaluated |= {"window_tokens": 64, "offline_dir": str(write_benchmarks(folder / "benchmarks"))}
    return STUDY | {
        "models": {"one": {"source": {"random": dimensions}}, "two": {"source": {"random": dimensions | {"seed": 1}}}},
        "texts": {"wikipedia": STUDY["texts"]["wikipedia"] | words | {"true_continuation": questions}},
        "traces": STUDY["traces"] | few | {"heldout_tokens_per_window": 8},
        "predictors": {"published": recipe, "small": recipe | {"rank_neurons": 2}},
        "evaluation": STUDY["evaluation"] | evaluated,
    }


def here(record, log, arguments):
    """Run a job in this process."""
    with log.open("w") as handle, redirect_stderr(handle):
        return chain.run_job(record, arguments)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The jobs of the tiny study, and the rows of its first model after they have run."""
    folder = tmp_path_factory.mktemp("chain")
    jobs = Jobs(parse_study(tiny(folder), "tiny"), folder / "results")
    made = chain.Chain(jobs)
    assert chain.run(jobs.root, "shared", made.of(""), float("inf"), here)
    assert chain.run(jobs.root, "one", [*made.of("one"), *made.alone("one", 2)], float("inf"), here)
    return jobs, pd.read_parquet(jobs.root / "measured" / "one.parquet")


def test_every_job_has_a_row_with_its_costs(study):
    jobs, rows = study
    assert list(rows) == list(chain.COLUMNS) and not rows["error"].any() and (rows["attempts"] == 1).all()
    planned = {one.place: one for one in plan.work(jobs) if one.name.split("/")[0] == "one" and one.rule != "draw"}
    assert set(planned) == set(rows["job"]) - {row for row in rows["job"] if chain.ALONE in row}
    for row in rows.to_dict("records"):
        assert row["seconds"] > 0 and row["host_bytes"] > 1e8 and row["written_bytes"] > 0
        if row["job"] in planned:
            assert row["multiplications"] == planned[row["job"]].flops
    measured = rows.set_index("job")
    assert measured.loc["evaluate/one/wikipedia/50", "conditions"] == 5
    assert measured.loc["evaluate/one/wikipedia/oracle", "conditions"] == 1
    assert measured.loc["trace/one/wikipedia/train-0", "tokens"] == 4 * 80
    files = manifests.outcomes([jobs.root / "outcomes" / "one" / "wikipedia" / "50.json"])
    assert measured.loc["evaluate/one/wikipedia/50", "written_bytes"] > sum(path.stat().st_size for path in files)


def test_a_condition_alone_has_the_outcomes_that_it_has_among_others(study):
    jobs, rows = study
    folder = jobs.root / "outcomes"
    together = {path.parent.name: path for path in manifests.outcomes([folder / "one" / "wikipedia" / "50.json"])}
    alone = [row.removeprefix("evaluate/") for row in rows["job"] if chain.ALONE in row]
    assert len(alone) == 2
    for path in manifests.outcomes(folder / f"{name}.json" for name in alone):
        assert path != together[path.parent.name]
        pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(together[path.parent.name]))


def test_only_a_job_that_spreads_its_model_gets_several_gpus(study):
    arguments = {job.stage: job.arguments for job in chain.Chain(study[0], gpus=2).of("one")}
    asked = {stage: words[-1] for stage, words in arguments.items() if "--devices" in words}
    assert asked == {"trace": "2", "train-predictor": "1", "evaluate": "2", "evaluate-oracle": "2"}
    row = {"model": "m", "stage": "trace", "job": "trace/m", "error": "", "seconds": 1.0, "written_bytes": 0}
    row |= {"gpu_bytes": 7e9, "host_bytes": 1e9, "weights_bytes": 1e9}
    several = [row | {"each_gpu_bytes": np.array(each)} for each in ([7e9, 2e9], [1e9, 6e9])]
    assert "| 7.0 + 6.0 |" in chain.table(several)[-1] and "| 7.0 |" in chain.table([row])[-1]


def test_what_has_ended_well_is_not_run_again(study):
    jobs, _ = study

    def never(*_):
        raise AssertionError("a job ran again")

    assert chain.run(jobs.root, "one", chain.Chain(jobs).of("one"), float("inf"), never)


def test_a_job_that_fails_stops_no_other(study, tmp_path):
    jobs, _ = study

    def failing(record, log, arguments):
        log.write_text("shadowcore trace: no memory\n")
        return 2

    whole = chain.run(jobs.root, "two", chain.Chain(jobs).of("two"), float("inf"), failing)
    rows = pd.read_parquet(jobs.root / "measured" / "two.parquet")
    assert not whole and set(rows["error"]) == {"shadowcore trace: no memory"}
    assert {"fetch-model", "evaluate", "evaluate-oracle"} <= set(rows["stage"])


def test_what_was_measured_is_printed_as_table_and_rates(study, capsys):
    jobs, rows = study
    chain.print_table(chain.read(jobs.root))
    printed = capsys.readouterr().out
    assert "| one | train-predictor | 4 |" in printed and "one: a job each: 2 conditions in" in printed
    chain.print_rates([row | {"device": "some GPU"} for row in rows.to_dict("records")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ",".join(rates.COLUMNS)
    stages = [line.split(",")[1] for line in lines[1:]]
    assert stages == ["evaluate", "evaluate_oracle", "trace", "train_predictor"]


@pytest.mark.slow
def test_the_command_runs_jobs_as_forks_and_goes_on(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny(tmp_path)))
    command = [sys.executable, SCRIPT, tmp_path / "tiny.yaml", "one", "--results", tmp_path]
    stopped = subprocess.run([*command, "--stop-after", "0"], capture_output=True, text=True, check=False)
    assert stopped.returncode == 1 and "a job is a fork" in stopped.stdout
    subprocess.run(command, check=True)
    rows = pd.read_parquet(tmp_path / "chain" / "measured" / "one.parquet")
    assert not rows["error"].any() and (rows["start_seconds"] > 0).all()
    assert not (tmp_path / "chain" / "traces" / "one").exists()  # large files are gone
    shown = subprocess.run([*command, "--table"], capture_output=True, text=True, check=True)
    assert "| one | train-predictor | 4 |" in shown.stdout
