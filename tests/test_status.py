"""The state of a study from its files and logs: every state, the time that is left, and nothing touched."""

import io
import logging
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from shadowcore import cli, logs, plan, progress_line
from shadowcore.commands.status import print_status
from shadowcore.config import load_study
from shadowcore.jobs import Jobs
from shadowcore.rules import RULES, outputs
from shadowcore.states import states as status

QUICK = Path(__file__).parent / "base_study.yaml"
NOW = 1.7e9


@pytest.fixture
def jobs(tmp_path):
    return Jobs(load_study(QUICK), tmp_path)


def one_of(jobs, rule):
    return next(one for one in plan.work(jobs) if one.rule == rule)


def write_log(jobs, rule, *lines, started=NOW - 100, written=NOW, head=str):
    path = jobs.root / "logs" / f"{one_of(jobs, rule).place}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head(logs.heading([rule.replace("_", "-")], started)), *lines, ""]))
    os.utime(path, (written, written))


def write_times(jobs, rule, seconds):
    path = jobs.root / "benchmarks" / f"{one_of(jobs, rule).place}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")


def write_files(jobs, rule):
    job = one_of(jobs, rule)
    for path in outputs(jobs.root, rule, job.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def states(jobs):
    return {job.work.rule: job for job in reversed(status(jobs, NOW)) if job.log.is_file()}


def test_before_anything_ran_every_job_waits(jobs):
    found = status(jobs, NOW)
    assert [job.work for job in found] == sorted(plan.work(jobs), key=lambda one: list(RULES).index(one.rule))
    assert all(job.state == "waiting" and job.left == job.work.seconds({}) for job in found)
    assert not jobs.root.exists()  # looking changes nothing


def test_every_state_is_told_from_its_log(jobs):
    write_log(jobs, "prepare_text", logs.ending(NOW - 100))
    write_times(jobs, "prepare_text", 42.0)
    write_files(jobs, "prepare_text")
    write_log(jobs, "trace", "[trace] 2/8 after 25 s, about 75 s left", written=NOW - 15)
    write_log(jobs, "average", "shadowcore average: trace.safetensors: damaged")
    another = os.getpid()
    write_log(jobs, "train_predictor", head=lambda head: head.replace(f"process={another}", "process=4194303"))
    write_log(jobs, "evaluate", head=lambda head: head.replace("host=", "host=node-"), written=NOW - 3600)
    found = states(jobs)
    assert (found["prepare_text"].state, found["prepare_text"].seconds, found["prepare_text"].left) == ("done", 42, 0)
    assert (found["trace"].state, found["trace"].seconds, found["trace"].left) == ("running", 100, 60)
    assert (found["average"].state, found["average"].content.error) == ("failed", "trace.safetensors: damaged")
    assert found["train_predictor"].state == "interrupted" and found["train_predictor"].left > 0
    assert found["evaluate"].state == "running"
    done = f"1 of {len(plan.work(jobs))} jobs done"
    for words in (done, "with 2 jobs at a time", "100 s, step 2 of 8, about 60 s left", "silent for 60 min",
                  "trace.safetensors: damaged (", "process ended without an error message"):  # fmt: skip
        assert words in said(jobs)


def said(jobs):
    console = Console(file=io.StringIO(), width=150)
    print_status(status(jobs, NOW), NOW, console)
    return console.file.getvalue()


def test_a_job_without_its_files_is_not_done_and_one_with_them_needs_no_log(jobs):
    write_log(jobs, "average", logs.ending(NOW - 100))
    assert states(jobs)["average"].state == "waiting" and states(jobs)["average"].deleted
    assert "1 finished job" in said(jobs) and one_of(jobs, "average").place in said(jobs)
    write_files(jobs, "average")
    assert states(jobs)["average"].state == "done"
    (jobs.root / "logs" / f"{one_of(jobs, 'average').place}.log").unlink()
    assert "1 of" in said(jobs) and next(job for job in status(jobs, NOW) if job.work.rule == "average").state == "done"
    outputs(jobs.root, "average", one_of(jobs, "average").name)[0].unlink()
    write_times(jobs, "average", 5.0)  # as Snakemake left them
    assert "0 of" in said(jobs)


def test_a_log_without_a_heading_is_of_a_job_that_starts_or_never_did(jobs):
    write_log(jobs, "average", "bash: python: command not found", head=lambda head: "")
    assert states(jobs)["average"].state == "running"
    write_log(jobs, "average", "bash: python: command not found", head=lambda head: "", written=NOW - 3600)
    assert states(jobs)["average"].state == "interrupted"


def test_where_nothing_runs_no_time_of_an_end_is_given(jobs):
    clock = re.compile(r"\d\d:\d\d")
    assert not clock.search(said(jobs)) and "no job is running" in said(jobs)
    write_log(jobs, "average", "[average] 1/2 after 5 s, about 5 s left")
    assert clock.search(said(jobs)) and "no job is running" not in said(jobs)


def test_what_is_left_is_told_by_what_was_measured(jobs):
    before = {job.work: job.left for job in status(jobs, NOW)}
    slow = 10 * one_of(jobs, "trace").seconds({"trace": 1e11})
    write_times(jobs, "trace", slow)
    write_files(jobs, "trace")
    for job in status(jobs, NOW):
        if job.work == one_of(jobs, "trace"):
            assert job.state == "done" and job.left == 0
        elif job.work.rule == "trace":  # as its like
            assert job.left == pytest.approx(slow * job.work.flops / one_of(jobs, "trace").flops, rel=0.2)
        elif job.work.flops:  # at the only rate that is known of this machine
            assert job.left > before[job.work]


def test_it_is_a_command_and_bad_input_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status", str(QUICK)]) == 0
    assert re.search(
        r"^0 of \d+ jobs done; no job is running; with one at a time, about", capsys.readouterr().out, re.MULTILINE
    )
    assert cli.main(["status", "nowhere.yaml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("out", "written"), [(io.StringIO, r"\d\d:\d\d:\d\d  {}\n"), (Terminal, r"\r{}\x1b\[K\n")])
def test_a_run_shows_one_line_of_progress(monkeypatch, out, written):
    monkeypatch.setattr(progress_line, "states", lambda jobs, now: [])
    logger, stream = logging.Logger("snakemake"), out()
    logger.addHandler(line := progress_line.ProgressLine(None, stream))
    logger.info("Select jobs to execute...")
    for _ in range(3):  # in quick succession: the first is written
        logger.info("", extra={"event": "progress", "done": 1, "total": 2})
    line.close()
    assert re.fullmatch(written.format("0 of 0 jobs done"), stream.getvalue())
