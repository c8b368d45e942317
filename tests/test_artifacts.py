"""Files between stages: same bytes for the same content, nothing half-written, no other schema read."""

import errno
import os

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from shadowcore import artifacts
from shadowcore.errors import ArtifactError

HEADER = {"stage": "test", "spec": {"b": 1, "a": [1, 2]}}
KINDS = {
    "record.json": (artifacts.write_record, artifacts.read_record, {"x": 1}),
    "table.parquet": (artifacts.write_table, artifacts.read_table, pa.table({"x": [1, 2], "y": ["a", None]})),
    "tensors.safetensors": (artifacts.write_tensors, artifacts.read_tensors, {"x": torch.arange(6.0).view(2, 3)}),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request, tmp_path):
    return tmp_path / request.param, *KINDS[request.param]


def test_what_is_written_is_read(kind):
    path, write, read, content = kind
    write(path, "thing/1", content, HEADER)
    got = read(path, "thing/1")
    if isinstance(content, pa.Table):
        assert got.equals(content)
    elif isinstance(content.get("x"), torch.Tensor):
        assert torch.equal(got["x"], content["x"])
    else:
        assert got == content
    assert artifacts.read_header(path) == HEADER


def test_equal_content_is_equal_bytes(kind, tmp_path):
    path, write, _, content = kind
    other = tmp_path / "again" / path.name
    write(path, "thing/1", content, HEADER)
    write(other, "thing/1", content, {"spec": {"a": [1, 2], "b": 1}, "stage": "test"})  # another key order
    assert path.read_bytes() == other.read_bytes()


def test_another_version_is_refused(kind):
    path, write, read, content = kind
    write(path, "thing/1", content, HEADER)
    with pytest.raises(ArtifactError, match=rf"{path.name}: schema 'thing/1' where 'thing/2' is read"):
        read(path, "thing/2")


def test_a_missing_file_says_what_makes_it(kind):
    path, _, read, _ = kind
    with pytest.raises(ArtifactError, match="no such file; run the stage that writes it"):
        read(path, "thing/1")


@pytest.mark.parametrize("left", [0, 3, 0.5, -1])
def test_a_truncated_file_is_one_sentence(kind, left):
    path, write, read, content = kind
    write(path, "thing/1", content, HEADER)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * left) if isinstance(left, float) else left])
    if path.suffix == ".json" and left == -1:
        return  # only the last line's end is gone: still the whole record
    with pytest.raises(ArtifactError, match="damaged"):
        read(path, "thing/1")


def test_nothing_appears_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), artifacts.replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_without_an_origin_says_so(kind, tmp_path):
    path, write, _, content = kind
    write(path, "thing/1", content, HEADER)
    assert artifacts.read_origin(path) == {"schema": "thing/1", "header": HEADER}
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ArtifactError, match=f"{path.name}: damaged"):
        artifacts.read_origin(path)
    for name, text in (("page.html", "<html></html>"), ("other.json", "[1]"), ("figure.pdf", "%PDF /Keywords (x")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ArtifactError, match=f"{name}: no header of this project"):
            artifacts.read_origin(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match="notes.txt: files of this kind have no header"):
        artifacts.read_origin(tmp_path / "notes.txt")


def test_two_that_write_the_same_file_do_not_meet_and_old_leftovers_go(tmp_path):
    path = tmp_path / "file"
    left = tmp_path / ".file.0.partial"
    left.write_text("half")
    os.utime(left, (1e9, 1e9))
    with artifacts.replacing(path) as ours:
        ours.write_text("ours")
        with artifacts.replacing(path) as theirs:  # of a run that was given up, and goes on
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_sentence_and_the_old_file_stays(kind, code):
    path, write, read, content = kind
    write(path, "thing/1", content, HEADER)
    message = rf"{path.name}: cannot be written \({os.strerror(code)}\)"
    with pytest.raises(ArtifactError, match=message), artifacts.replacing(path):
        raise OSError(code, os.strerror(code))
    with pytest.raises(ArtifactError, match=message), artifacts.writable(path):
        raise SafetensorError(f"Error while serializing: I/O error: what (os error {code})")
    read(path, "thing/1")
    assert list(path.parent.iterdir()) == [path]
