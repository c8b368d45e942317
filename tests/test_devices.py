"""One job per GPU, on pretend devices: no two jobs that want one alone ever meet on it, and nobody waits for ever."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
import uuid

import pytest

from shadowcore import cli, devices

# holds a device for a while, and tells from when to when
JOB = """
import os, sys, time
from shadowcore.devices import reserved
with reserved(int(sys.argv[1])) as found:
    start = time.monotonic()
    time.sleep(float(sys.argv[2]))
    assert os.environ["CUDA_VISIBLE_DEVICES"].split(",") == found
    print(" ".join(found), start, time.monotonic())
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with as many devices as asked for, as `nvidia-smi` lists them."""

    def with_devices(count):
        names = [f"GPU-{uuid.uuid4()}" for _ in range(count)]
        command = tmp_path / "nvidia-smi"
        command.write_text("#!/bin/sh\n" + "".join(f"echo {name}\n" for name in names))
        command.chmod(0o755)
        return names

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield with_devices
    for path in devices.LOCKS.glob("shadowcore-GPU-*.lock"):
        path.unlink()


def start(count, seconds):
    return subprocess.Popen([sys.executable, "-c", JOB, str(count), str(seconds)], stdout=subprocess.PIPE, text=True)


def held(process):
    *names, begin, end = process.communicate(timeout=60)[0].split()
    assert process.returncode == 0
    return names, float(begin), float(end)


def test_jobs_that_want_a_device_alone_never_meet_on_it(machine):
    names = machine(2)
    jobs = [held(process) for process in [start(1, 0.3) for _ in range(5)] + [start(2, 0.2)]]
    for i, (ours, begin, end) in enumerate(jobs):
        for theirs, other_begin, other_end in jobs[:i]:
            assert not set(ours) & set(theirs) or end <= other_begin or other_end <= begin
    assert {name for ours, *_ in jobs for name in ours} == set(names)


def test_small_jobs_share_and_a_large_one_waits_for_them_but_not_behind_later_ones(machine):
    machine(1)
    shared = [start(0, 1.5), start(0, 1.5)]
    time.sleep(0.5)
    alone = start(1, 0.2)
    time.sleep(0.5)
    late = start(0, 0.1)
    (first, second), large, last = [held(process) for process in shared], held(alone), held(late)
    assert first[1] < second[2] and second[1] < first[2]  # at the same time
    assert large[1] >= max(first[2], second[2]) and last[1] >= large[2]


def test_a_few_small_jobs_share_one_device_and_many_use_all_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "LOCKS", tmp_path)
    with contextlib.ExitStack() as held:
        found = [devices._share(held, ["a", "b"]) for _ in range(12)]
        assert found == 4 * ["a"] + 4 * ["b"] + 4 * ["a"]
    with contextlib.ExitStack() as held:
        assert devices._lock(held, "a", fcntl.LOCK_EX | fcntl.LOCK_NB)  # a job has it alone
        found = [devices._share(held, ["a", "b"]) for _ in range(devices.MOST + 1)]
        assert found == devices.MOST * ["b"] + [None]
    with contextlib.ExitStack() as held:  # all places are free again
        assert devices._share(held, ["a", "b"]) == "a"


def test_a_killed_job_lets_go_of_its_device(machine):
    machine(1)
    killed = start(1, 60)
    time.sleep(0.5)
    killed.kill()
    killed.wait()
    assert held(start(1, 0))


def test_the_job_sees_its_devices_and_what_was_set_comes_back(machine, monkeypatch):
    names = machine(3)
    with devices.reserved(2) as found:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(found) and set(found) < set(names)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")  # what the user, or a cluster, allows
    with devices.reserved(2) as found:
        assert found == [names[2], names[0]]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    with devices.reserved(0) as found:
        assert found == ["MIG-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with devices.reserved(1) as found:
        assert found == []


def test_a_job_that_needs_more_devices_than_there_are_does_not_start(machine, monkeypatch, capsys, tmp_path):
    machine(2)
    spec = {"model": "m", "calibration": "c", "windows": 1, "window_tokens": 8, "methods": [], "sparsities_pct": []}
    files = [
        word for name in ("card", "weights", "documents", "thresholds") for word in (f"--{name}", f"{tmp_path}/no")
    ]
    arguments = ["calibrate-thresholds", *files, "--devices", "3", "--batch", "1", "--spec"]
    arguments += [json.dumps(spec | {"dtype": "float32", "seed": 0})]
    for visible, words in ((None, "this machine has 2"), ("1", "CUDA_VISIBLE_DEVICES allows 1")):
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert cli.main(arguments) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert "--devices" in said and "3 GPUs" in said and words in said


def test_a_stage_without_a_gpu_waits_for_none(machine, monkeypatch, tmp_path):
    machine(1)
    monkeypatch.setattr(cli, "reserved", lambda count: pytest.fail("it reserves devices"))
    arguments = ["average", "--traces", f"{tmp_path}/no", "--scores", f"{tmp_path}/no", "--devices", "0"]
    assert cli.main([*arguments, "--spec", json.dumps({"model": "m", "calibration": "c", "criteria": []})]) == 2


def test_the_lock_of_one_user_can_be_opened_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "LOCKS", tmp_path)
    before = os.umask(0o077)
    try:
        with contextlib.ExitStack() as held:
            assert devices._lock(held, "GPU-0", fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert not devices._lock(held, "GPU-0", fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.umask(before)
    (lock,) = tmp_path.iterdir()
    assert lock.stat().st_mode & 0o777 == 0o644
