"""Files between stages: same bytes for the same content, nothing half-written, no other schema read."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conftest import ROOT, refused
from safetensors import SafetensorError

from shadowcore import artifacts, atomic, processes
from shadowcore.errors import ArtifactError
from shadowcore.models import sources

HEADER = {"stage": "test", "spec": {"b": 1, "a": [1, 2]}}
KINDS = {
    "record.json": (artifacts.write_record, artifacts.read_record, {"x": 1}),
    "table.parquet": (artifacts.write_table, artifacts.read_table, pa.table({"x": [1, 2], "y": ["a", None]})),
    "tensors.safetensors": (artifacts.write_tensors, artifacts.read_tensors, {"x": torch.arange(6.0).view(2, 3)}),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request, tmp_path):
    return tmp_path / request.param, *KINDS[request.param]


def test_what_is_written_is_read_in_the_same_bytes_and_as_its_own_version_alone(kind, tmp_path):
    path, write, read, content = kind
    refused("no such file; run the stage that writes it", read, path, "thing/1")
    write(path, "thing/1", content, HEADER)
    got = read(path, "thing/1")
    if isinstance(content, pa.Table):
        assert got.equals(content)
    elif isinstance(content.get("x"), torch.Tensor):
        assert torch.equal(got["x"], content["x"])
    else:
        assert got == content
    assert artifacts.read_header(path) == HEADER
    other = tmp_path / "again" / path.name
    write(other, "thing/1", content, {"spec": {"a": [1, 2], "b": 1}, "stage": "test"})  # another key order
    assert path.read_bytes() == other.read_bytes()
    refused(rf"{path.name}: .*'thing/1'.*'thing/2'", read, path, "thing/2")


@pytest.mark.parametrize("left", [0, 3, 0.5, -1])
def test_a_truncated_file_is_one_sentence(kind, left):
    path, write, read, content = kind
    write(path, "thing/1", content, HEADER)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * left) if isinstance(left, float) else left])
    if path.suffix == ".json" and left == -1:
        return  # only the last line's end is gone: still the whole record
    refused("damaged", read, path, "thing/1")


def test_a_seal_is_what_sha256sum_says_of_the_file_and_of_no_other(tmp_path):
    path = tmp_path / "large.safetensors"
    plain = tmp_path / "plain.safetensors"
    for value in (1.0, 2.0):  # written anew, sealed anew
        artifacts.write_with_checksum(path, "thing/1", {"x": torch.tensor([value])}, HEADER)
        artifacts.write_tensors(plain, "thing/1", {"x": torch.tensor([value])}, HEADER)
        wanted = hashlib.sha256(path.read_bytes()).hexdigest()
        assert artifacts.checksum_file(path).read_text() == f"{wanted}  large.safetensors\n"
        assert artifacts.digest(path) == artifacts.digest(plain) == wanted
    with pytest.raises(TypeError):
        artifacts.write_with_checksum(path, "thing/1", {"x": torch.tensor([3.0])}, {"not": {1, 2}})
    assert not artifacts.checksum_file(path).exists()


def test_a_file_without_an_origin_says_so(kind, tmp_path):
    path, write, _, content = kind
    write(path, "thing/1", content, HEADER)
    assert artifacts.read_origin(path) == {"schema": "thing/1", "header": HEADER}
    path.write_bytes(path.read_bytes()[:20])
    refused(f"{path.name}: damaged", artifacts.read_origin, path)
    for name, text in (("page.html", "<html></html>"), ("other.json", "[1]"), ("figure.pdf", "%PDF /Keywords (x")):
        (tmp_path / name).write_text(text)
        refused(f"{name}.*header", artifacts.read_origin, tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    refused("notes.txt: .*no header", artifacts.read_origin, tmp_path / "notes.txt")


def test_two_that_write_the_same_file_do_not_meet_and_old_leftovers_go(tmp_path):
    path = tmp_path / "file"
    left = tmp_path / ".file.0.partial"
    left.write_text("half")
    os.utime(left, (1e9, 1e9))
    with atomic.replacing(path) as ours:
        ours.write_text("ours")
        with atomic.replacing(path) as theirs:  # of a run that was given up, and goes on
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_sentence_and_the_old_file_stays(kind, code):
    path, write, read, content = kind
    write(path, "thing/1", content, HEADER)
    message = rf"{path.name}: cannot be written \({os.strerror(code)}\)"
    with pytest.raises(ArtifactError, match=message), atomic.replacing(path):
        raise OSError(code, os.strerror(code))
    with pytest.raises(ArtifactError, match=message), atomic.writable(path):
        raise SafetensorError(f"Error while serializing: I/O error: what (os error {code})")
    read(path, "thing/1")
    assert list(path.parent.iterdir()) == [path]


KILLED = """
import os, signal, sys, torch
from shadowcore import artifacts
import safetensors.torch
os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
artifacts.write_tensors(sys.argv[1], "thing/1", {"x": torch.zeros(2)}, {})
"""


def test_what_a_killed_run_left_goes_with_the_next_run_of_the_same_job(tmp_path):
    """At once, and with the temporary files that safetensors makes beside its own."""
    path = tmp_path / "tensors.safetensors"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        (left,) = tmp_path.iterdir()  # of two killed runs the second one's only
        assert left.name.startswith(".tensors.safetensors.") and left.name.endswith(".partial")
        (left / ".tmpAbCdEf").write_bytes(b"half")
    artifacts.write_tensors(path, "thing/1", {"x": torch.zeros(2)}, HEADER)
    assert list(tmp_path.iterdir()) == [path]


def partial_of(path, writer):
    left = path.with_name(f".{path.name}.{writer}-00000000.partial")
    left.mkdir()
    (left / path.name).write_bytes(b"half")
    return left


def test_what_another_process_may_still_be_writing_stays(tmp_path):
    """Of a process that runs, of another machine, of another container on this one, which has numbers of its own."""
    path, ours = tmp_path / "file", processes.name()
    place, number, start = ours.split("-")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [partial_of(path, ours), partial_of(path, f"00000000-{dead.pid}-1")]
    gone = [partial_of(path, f"{place}-{dead.pid}-1"), partial_of(path, f"{place}-{number}-{int(start) + 1}")]
    with atomic.replacing(path) as partial:
        partial.write_text("new")
    assert all(map(Path.exists, kept)) and not any(map(Path.exists, gone))
    for old in (*kept[1].iterdir(), kept[1]):  # an hour after its last change nobody writes there any longer
        os.utime(old, (1e9, 1e9))
    atomic.remove_abandoned(path)
    assert kept[0].exists() and not kept[1].exists()


def test_a_process_that_ended_and_was_not_waited_for_is_gone():
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    ended.stdout.read()
    start, deadline = processes.born(ended.pid), time.monotonic() + 10
    while start is not None and time.monotonic() < deadline:
        start = processes.born(ended.pid)
    assert start is None
    ended.wait()


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_have_the_permissions_that_the_user_asks_for_and_linked_files_their_own(tmp_path, umask):
    for name, (write, _, content) in KINDS.items():
        write(tmp_path / "new" / "folder" / name, "thing/1", content, HEADER)
    artifacts.write_with_checksum(tmp_path / "new" / "sealed.safetensors", "thing/1", {"x": torch.zeros(2)}, HEADER)
    sources.fetch(sources.RandomModel("opt", layers=2, width=16, heads=2, neurons=24), tmp_path / "made")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) > 2 + len(KINDS) + 2
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path
    private = tmp_path / "made" / "model.safetensors"
    private.chmod(0o600)
    sources.fetch(sources.FolderModel(str(tmp_path / "made")), tmp_path / "linked")
    assert (tmp_path / "linked" / "model.safetensors").is_symlink() and stat.S_IMODE(private.stat().st_mode) == 0o600
