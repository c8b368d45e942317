"""What a job's log says of itself, whole, cut off and still being written."""

import sys

import pytest

from shadowcore import cli, logs, provenance

HEAD = logs.heading(["trace", "--spec", '{"text": "it\'s $HOME"}', "--card", "a b.json"], 1.7e9)
ENVIRONMENT = {"host", "process", "started", "commit", "python", "torch"}


def said(tmp_path, *lines):
    path = tmp_path / "job.log"
    path.write_text("\n".join([HEAD, *lines, ""]))
    return logs.read(path)


def test_the_command_comes_back_word_for_word(tmp_path):
    log = said(tmp_path)
    assert log.command == ["trace", "--spec", '{"text": "it\'s $HOME"}', "--card", "a b.json"]
    assert set(log.environment) >= ENVIRONMENT and log.started == 1.7e9
    assert not log.finished and not log.gone and log.error is None and log.left is None


def test_no_secret_is_logged(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    head = logs.heading(["show"], 0)
    assert "hf_secret" not in head and "HF_HUB_OFFLINE=1" in head


def test_progress_is_the_last_one_said(tmp_path):
    log = said(
        tmp_path, "[trace] 1/8 after 2 s, about 14 s left", "bar 1%\rbar 99%", "[trace] 3/8 after 6 s, about 10 s left"
    )
    assert (log.done, log.total, log.left) == (3, 8, 10) and not log.finished
    assert said(tmp_path, "[trace] 0/8 after 0 s, about nan s left").left is None


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["shadowcore trace: a.json: no such file"], "a.json: no such file"),
        (
            ["Traceback (most recent call last):", '  File "x.py"', "RuntimeError: out of memory"],
            "RuntimeError: out of memory",
        ),
        (["[trace] 1/8 after 2 s, about 14 s left"], None),
        ([logs.ending(1.7e9)], None),
    ],
)
def test_the_error_is_one_line(tmp_path, lines, error):
    log = said(tmp_path, *lines)
    assert log.error == error and log.finished == lines[-1].startswith("[shadowcore] finished")


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
