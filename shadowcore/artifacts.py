"""The files between stages: safetensors, Parquet and JSON, each naming its schema and its origin; so do figures.

Every file carries a header: schema name and version, the stage and its specification, the hashes of
its inputs, the code fingerprint, commit and versions. Equal inputs and code give equal bytes. A file
appears under its name only when it is complete; a reader refuses any other schema.
"""

from __future__ import annotations

import errno
import glob
import html
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadowcore import processes
from shadowcore.errors import ArtifactError
from shadowcore.provenance import file_sha256

Header = Mapping[str, Any]
METADATA_KEY = "shadowcore"
ABANDONED = 3600.0  # seconds since somebody wrote to it, after which an unfinished file is a killed run's
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside `path`; its file takes the place of `path` when the block ends well.

    In a folder of its own: what writes the file may put temporary files beside it, as safetensors does, and those of
    a killed run are found again. Raises ArtifactError where the disk is full or not ours to write to; what was at
    `path` stays then.
    """
    path = Path(path)
    with writable(path):
        folder = neighbour(path)
        folder.mkdir()
        partial = folder / path.name
        try:
            yield partial
            with open(partial, "rb+") as handle:
                os.fsync(handle.fileno())
            readable(partial, folder)
            os.replace(partial, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def readable(path: Path, made: Path) -> None:
    """Give a file, or all files below a folder, the permissions that the user's umask asks for.

    safetensors gives its files to their owner alone. made: a folder that this process made, whose permissions say
    what the umask is; to ask the system for it is to change it for a moment, for every thread. Linked files stay as
    they are: they are not ours.
    """
    mode = made.stat().st_mode & 0o666
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        found = file.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and stat.S_IMODE(found.st_mode) != mode:
            file.chmod(mode)


def neighbour(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has; what killed runs left under such names is removed.

    Nobody else: a run that was given up may still be writing the same file, on another machine of a cluster.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    return path.with_name(f".{path.name}.{processes.name()}-{secrets.token_hex(4)}.partial")


def remove_abandoned(path: Path) -> None:
    """Remove what killed runs left of `path`.

    A name says which process of which machine has it. Where that process ran on this machine and is no more, nobody
    writes there any longer. Of another machine's, which may still be writing, only the time of the last change tells.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        writer = left.name.removesuffix(".partial").rpartition(".")[2].rpartition("-")[0]
        try:
            if processes.gone(writer) or time.time() - _changed(left) > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except (FileNotFoundError, PermissionError):  # its owner, or another like us, was faster; or it is another's
            pass


def _changed(path: Path) -> float:
    """When somebody last wrote to a file, or to anything in a folder: seconds since 1970."""
    return max(one.lstat().st_mtime for one in ([path, *path.rglob("*")] if path.is_dir() else [path]))


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk, met inside the block, into ArtifactError."""
    try:
        yield
    except Exception as error:  # tokenizers raises no narrower one; the system's number is in its text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else getattr(error, "errno", None)
        if code not in UNWRITABLE:
            raise
        raise ArtifactError(
            f"{path}: cannot be written ({os.strerror(code)}); what was there before is untouched, and the study goes "
            "on from here when it can be written"
        ) from None


def write_record(path: Path, schema: str, record: Mapping[str, Any], header: Header) -> None:
    """Write a JSON file: `record` under its header."""
    text = json.dumps({"schema": schema, "header": dict(header), "record": dict(record)}, indent=1, sort_keys=True)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_record(path: Path, schema: str) -> dict[str, Any]:
    """The record of a JSON file written by `write_record` under the same schema."""
    try:
        content = json.loads(_existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: damaged JSON ({error}); delete the file and run the study again") from None
    _require_schema(path, content.get("schema") if isinstance(content, dict) else None, schema)
    if not isinstance(content.get("record"), dict):
        raise ArtifactError(f"{path}: no record; delete the file and run the study again")
    return content["record"]


def write_tensors(path: Path, schema: str, tensors: Mapping[str, Any], header: Header) -> None:
    """Write torch tensors to a safetensors file."""
    from safetensors.torch import save_file

    # under one key: safetensors writes several in any order
    metadata = {METADATA_KEY: origin(schema, header)}
    with replacing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)


def seal_of(path: Path) -> Path:
    """Where the checksum of a large file is kept, as `sha256sum` writes it."""
    return Path(f"{path}.sha256")


def write_sealed(path: Path, schema: str, tensors: Mapping[str, Any], header: Header) -> None:
    """Write tensors and, beside them, their seal: who asks what a large file holds need not read it."""
    seal_of(path).unlink(missing_ok=True)  # before the file changes: a seal is never another file's
    write_tensors(path, schema, tensors, header)
    with replacing(seal_of(path)) as partial:
        partial.write_text(f"{file_sha256(path)}  {Path(path).name}\n", encoding="utf-8")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; of a sealed one as its seal says it."""
    seal = seal_of(path)
    return seal.read_text(encoding="utf-8").split()[0] if seal.is_file() else file_sha256(path)


class Tensors:
    """An open safetensors file, as `safetensors.safe_open` gives it; what it lacks is an ArtifactError."""

    def __init__(self, path: Path, handle: Any):
        self.path, self.handle = path, handle

    def keys(self) -> list[str]:
        """Names of its tensors."""
        return list(self.handle.keys())

    def get_tensor(self, name: str) -> Any:
        """A whole tensor."""
        return self.handle.get_tensor(self._known(name))

    def get_slice(self, name: str) -> Any:
        """A tensor to cut from."""
        return self.handle.get_slice(self._known(name))

    def _known(self, name: str) -> str:
        if name not in self.handle.keys():  # noqa: SIM118 (not a dict)
            raise ArtifactError(f"{self.path}: no tensor '{name}'; delete the file and run the study again")
        return name


@contextmanager
def open_tensors(path: Path, schema: str) -> Iterator[Tensors]:
    """Open a safetensors file for reading tensor by tensor, memory-mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(_existing(path), framework="pt")
        found = _tensor_metadata(handle)
    except (SafetensorError, ValueError) as error:  # also of the JSON in its metadata
        raise ArtifactError(f"{path}: damaged safetensors ({error}); delete the file and run the study again") from None
    with handle:
        _require_schema(path, found.get("schema"), schema)
        yield Tensors(path, handle)


def read_tensors(path: Path, schema: str) -> dict[str, Any]:
    """All tensors of a safetensors file written under the same schema."""
    with open_tensors(path, schema) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)


def write_table(path: Path, schema: str, table: pa.Table, header: Header) -> None:
    """Write an Arrow table to Parquet (zstd), byte for byte the same for equal data."""
    metadata = {"schema": schema, "header": json.dumps(dict(header), sort_keys=True)}
    with replacing(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")


def read_table(path: Path, schema: str) -> pa.Table:
    """The table of a Parquet file written under the same schema."""
    try:
        # memory_map=False: a file replaced while mapped would kill the reader
        table = pq.read_table(_existing(path), memory_map=False)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path}: damaged Parquet ({reason}); delete the file and run the study again") from None
    found = (table.schema.metadata or {}).get(b"schema", b"").decode()
    _require_schema(path, found or None, schema)
    return table


def read_header(path: Path) -> dict[str, Any]:
    """The header of any of our files: stage, specification, input hashes, code, commit, versions, device."""
    return read_origin(path)["header"]


def missing(path: Path) -> list[dict[str, str]]:
    """What a table, figure or page lacks of its study, by its header: jobs, and why; empty where it has everything."""
    return read_header(path).get("spec", {}).get("missing", [])


def read_origin(path: Path) -> dict[str, Any]:
    """The `schema` and the `header` of any of our files, figures and pages too; ArtifactError where it has none."""
    path = _existing(path)
    if path.suffix not in ORIGINS:
        raise ArtifactError(f"{path}: files of this kind have no header; {', '.join(ORIGINS)} have")
    try:
        found = ORIGINS[path.suffix](path)
    except (ValueError, OSError) as error:  # what pyarrow, PIL and json raise
        raise ArtifactError(f"{path}: damaged {path.suffix[1:]} ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict) or "header" not in found:
        raise ArtifactError(f"{path}: no header of this project in it; a file that a stage wrote has one")
    return {"schema": found.get("schema"), "header": found["header"]}


def origin(schema: str, header: Header) -> str:
    """What a file says of where it is from, as text: for formats that have a place for text beside the content."""
    return json.dumps({"schema": schema, "header": dict(header)}, sort_keys=True)


def _of_parquet(path: Path) -> dict[str, Any]:
    found = pq.read_schema(path).metadata or {}
    return {"schema": found[b"schema"].decode(), "header": json.loads(found[b"header"])} if b"header" in found else {}


def _of_tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as handle:
            return _tensor_metadata(handle)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _of_png(path: Path) -> dict[str, Any]:
    from PIL import Image

    with Image.open(path) as image:
        return json.loads(image.info.get(METADATA_KEY, "{}"))


def _of_pdf(path: Path) -> dict[str, Any]:
    found = re.search(rb"/Keywords \(((?:[^()\\]|\\.)*)\)", path.read_bytes(), re.DOTALL)
    return json.loads(re.sub(rb"\\(.)", rb"\1", found.group(1))) if found else {}


def _of_html(path: Path) -> dict[str, Any]:
    found = re.search(f'<meta name="{METADATA_KEY}" content="([^"]*)">', path.read_text(encoding="utf-8"))
    return json.loads(html.unescape(found.group(1))) if found else {}


ORIGINS = {
    ".parquet": _of_parquet,
    ".safetensors": _of_tensors,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".png": _of_png,
    ".pdf": _of_pdf,
    ".html": _of_html,
}


def _tensor_metadata(handle: Any) -> dict[str, Any]:
    return json.loads((handle.metadata() or {}).get(METADATA_KEY, "{}"))


def _existing(path: Path) -> Path:
    if not Path(path).is_file():
        raise ArtifactError(f"{path}: no such file; run the stage that writes it (`snakemake` does)")
    return Path(path)


def _require_schema(path: Path, found: str | None, expected: str) -> None:
    if found != expected:
        raise ArtifactError(
            f"{path}: schema '{found or 'none'}' where '{expected}' is read; delete the file and run the study again"
        )
