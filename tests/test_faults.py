"""Killed, on a full disk, on a read-only one, started twice: a study loses nothing and ends in the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from test_workflow import command, environment, run_in, small, snakemake, tables

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("FAULTS_KILLS", "50"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run_in(small(tmp_path_factory.mktemp("undisturbed") / "house", "tiny-llama"))


def same_study(folder, undisturbed):
    """A house with the undisturbed one's code and configuration, which names the same texts, and nothing done."""
    return shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("results", ".snakemake"))


def start(house):
    return subprocess.Popen(
        command(), cwd=house, env=environment(house), start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_study_killed_again_and_again_ends_in_the_same_bytes(undisturbed, tmp_path):
    """One job, Snakemake without its jobs (they go on, and meet those of the next run), or all at once."""
    chooser, kills, rounds = random.Random(int(os.environ.get("FAULTS_SEED", "0"))), 0, 0
    counts = {"job": 0, "snakemake": 0, "all": 0}
    deadline = time.monotonic() + float(os.environ.get("FAULTS_SECONDS", "1e9"))

    def more():
        return kills < KILLS and time.monotonic() < deadline

    while more():
        house, rounds, finished = same_study(tmp_path / f"house-{rounds}", undisturbed), rounds + 1, False
        while not finished:
            snakemake(house, "--unlock")
            process = start(house)
            what = chooser.choice(list(counts))
            try:  # a run that gets on is left alone once there are enough kills
                said, _ = process.communicate(timeout=chooser.uniform(3, 14) if more() else 600)
                finished = process.returncode == 0
                assert finished or "Traceback" not in said, said[-3000:]
                continue
            except subprocess.TimeoutExpired:
                pass
            if what == "job":
                jobs = [
                    one for one in psutil.Process(process.pid).children(recursive=True) if "shadowcore" in _line(one)
                ]
                if not jobs:
                    what = "snakemake"
                else:
                    chooser.choice(jobs).kill()
                    said, _ = process.communicate(timeout=600)
                    finished = process.returncode == 0
            if what == "snakemake":
                process.kill()
                process.stdout.close()
                process.wait()
            if what == "all":
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            kills, counts[what] = kills + 1, counts[what] + 1
            print(f"kill {kills}: {what}", flush=True)
        assert tables(house) == tables(undisturbed)
        shutil.rmtree(house)
    print(f"{kills} kills in {rounds} studies, each to the bytes of the undisturbed one: {counts}")


def _line(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own: a function that mounts it anew with options."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]).returncode != 0:
        pytest.skip("needs the right to mount")
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def on_disk(house, tmp_path):
    (house / "results").symlink_to(tmp_path / "disk")


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_cannot_be_written_is_one_sentence_and_the_rest_stays(undisturbed, disk, tmp_path, fault):
    house = same_study(tmp_path / "house", undisturbed)
    on_disk(house, tmp_path)
    disk("size=100k" if fault == "full" else "ro,size=64m")
    said = snakemake(house)
    assert said.returncode != 0
    text = said.stdout + said.stderr
    message = "No space left on device" if fault == "full" else "Read-only file system"
    assert message in text and "Traceback (most recent call last)" not in text, text[-4000:]
    kept = {path: path.read_bytes() for path in (tmp_path / "disk").rglob("*.parquet")}
    assert not list((tmp_path / "disk").rglob("*.partial"))
    disk("rw,size=64m")
    run_in(house)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert {str(Path(name)) for name in tables(undisturbed)} == {name for name in tables(house)}
    assert tables(house) == tables(undisturbed)


def test_two_who_start_the_same_study_in_one_folder_do_no_harm(undisturbed, tmp_path):
    house = same_study(tmp_path / "house", undisturbed)
    first, second = start(house), start(house)
    said = [process.communicate(timeout=600)[0] for process in (first, second)]
    codes = [process.returncode for process in (first, second)]
    assert sorted(codes) == [0, 1] and "Directory cannot be locked" in said[codes.index(1)], said
    assert tables(house) == tables(undisturbed)
