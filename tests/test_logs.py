"""What a job's log says of itself, whole, cut off and still being written."""

import sys

import pytest

from shadowcore import cli, logs, provenance

COMMAND = ["trace", "--spec", '{"text": "it\'s $HOME"}', "--card", "a b.json"]
HEAD = logs.heading(COMMAND, 1.7e9)


def test_the_command_comes_back_word_for_word_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "job.log"
    path.write_text(logs.heading(COMMAND, 1.7e9) + "\n")
    log = logs.read(path)
    assert log.command == COMMAND and log.started == 1.7e9
    assert set(log.environment) >= {"host", "process", "started", "commit", "python", "torch"}
    assert "hf_secret" not in path.read_text() and "HF_HUB_OFFLINE=1" in path.read_text()


STEP = "[trace] {}/8 after 2 s, about {} s left"


@pytest.mark.parametrize(("lines", "expected"), [
    ([], {"finished": False, "gone": False, "error": None, "left": None}),
    ([STEP.format(1, 14), "bar 1%\rbar 99%", STEP.format(3, 10)], {"done": 3, "total": 8, "left": 10, "error": None}),
    ([STEP.format(0, "nan")], {"left": None}),
    (["shadowcore trace: a.json: no such file"], {"error": "a.json: no such file", "finished": False}),
    (["Traceback (most recent call last):", '  File "x.py"', "RuntimeError: no"], {"error": "RuntimeError: no"}),
    ([logs.ending(1.7e9)], {"error": None, "finished": True}),
])  # fmt: skip
def test_progress_end_and_error_are_the_last_ones_said(tmp_path, lines, expected):
    path = tmp_path / "job.log"
    path.write_text("\n".join([HEAD, *lines, ""]))
    log = logs.read(path)
    assert {name: getattr(log, name) for name in expected} == expected


@pytest.mark.parametrize("length", [0, 1, 30, len(HEAD) // 2, len(HEAD) - 3])
def test_a_log_cut_off_anywhere_is_read(tmp_path, length):
    path = tmp_path / "job.log"
    path.write_bytes(HEAD.encode()[:length])
    log = logs.read(path)
    assert log.started is None and not log.finished and not log.gone
    path.write_bytes(b"\xff\xfe\x00 not text")
    assert logs.read(path) == logs.Log()


def test_a_stage_says_what_it_runs_and_how_it_ends(capsys, tmp_path):
    words = ["check-tables", "--tables", str(tmp_path / "accuracy.parquet"), "--record", str(tmp_path / "record.json")]
    assert cli.main(words) == 2
    path = tmp_path / "job.log"
    path.write_text(capsys.readouterr().err)
    log = logs.read(path)
    assert log.command == words and "no such file" in log.error and log.environment["python"]


@pytest.mark.parametrize("text", ["", "s\th:m:s", "s\th:m:s\n"])
def test_times_that_are_not_there_yet_are_none(tmp_path, text):
    path = tmp_path / "job.tsv"
    assert logs.times(path) == {}
    path.write_text(text)
    assert logs.times(path) == {}
    path.write_text("s\th:m:s\tmax_rss\n12.5\t0:00:12\t100\n")
    assert logs.times(path) == {"s": "12.5", "h:m:s": "0:00:12", "max_rss": "100"}


def test_the_device_is_the_gpu_only_once_it_is_used(monkeypatch):
    import torch

    processor = provenance.processor_name()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretend GPU")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert provenance.device_name() == processor != "" and provenance.run_information()["device"] == processor
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert provenance.device_name() == "Pretend GPU" and logs.ending(0).endswith(" s on Pretend GPU")
    monkeypatch.delitem(sys.modules, "torch")  # a stage that never imported it
    assert provenance.device_name() == processor
