"""Read and write the files between stages: safetensors, Parquet and JSON, each with a header. Figures have one, too.

A header has the schema's name and version, the stage and its specification, the hashes of the stage's inputs, the
fingerprint of its code, commit and versions. Equal inputs and code give equal bytes. Files are written atomically, and
readers refuse files of another schema.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadowcore.atomic import replacing
from shadowcore.errors import ArtifactError
from shadowcore.provenance import file_sha256

Header = Mapping[str, Any]
METADATA_KEY = "shadowcore"


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
        raise ArtifactError(f"{path}: no key 'record'; delete the file and run the study again")
    return content["record"]


def write_tensors(path: Path, schema: str, tensors: Mapping[str, Any], header: Header) -> None:
    """Write torch tensors to a safetensors file."""
    from safetensors.torch import save_file

    # under one key: safetensors writes several in any order
    metadata = {METADATA_KEY: origin(schema, header)}
    with replacing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)


def checksum_file(path: Path) -> Path:
    """Path of the file with a large file's checksum, in the format of `sha256sum`."""
    return Path(f"{path}.sha256")


def write_with_checksum(path: Path, schema: str, tensors: Mapping[str, Any], header: Header) -> None:
    """Write tensors and their checksum file, so that readers of the checksum need not read the large file."""
    checksum_file(path).unlink(missing_ok=True)  # first, so that a checksum never belongs to an older file
    write_tensors(path, schema, tensors, header)
    with replacing(checksum_file(path)) as partial:
        partial.write_text(f"{file_sha256(path)}  {Path(path).name}\n", encoding="utf-8")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, from its checksum file if it has one."""
    checksum = checksum_file(path)
    return checksum.read_text(encoding="utf-8").split()[0] if checksum.is_file() else file_sha256(path)


class Tensors:
    """An open safetensors file, like that of `safetensors.safe_open`; a missing tensor raises ArtifactError."""

    def __init__(self, path: Path, handle: Any):
        self.path, self.handle = path, handle

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self.handle.keys())

    def get_tensor(self, name: str) -> Any:
        """The whole tensor."""
        return self.handle.get_tensor(self._existing(name))

    def get_slice(self, name: str) -> Any:
        """A view of the tensor that reads only the parts that are indexed."""
        return self.handle.get_slice(self._existing(name))

    def _existing(self, name: str) -> str:
        if name not in self.handle.keys():  # noqa: SIM118 (not a dict)
            raise ArtifactError(f"{self.path}: no tensor '{name}'; delete the file and run the study again")
        return name


@contextmanager
def open_tensors(path: Path, schema: str) -> Iterator[Tensors]:
    """Open a safetensors file for reading tensor by tensor, memory-mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(_existing(path), framework="pt")
        metadata = _tensor_metadata(handle)
    except (SafetensorError, ValueError) as error:  # ValueError: the metadata is not JSON
        raise ArtifactError(f"{path}: damaged safetensors ({error}); delete the file and run the study again") from None
    with handle:
        _require_schema(path, metadata.get("schema"), schema)
        yield Tensors(path, handle)


def read_tensors(path: Path, schema: str) -> dict[str, Any]:
    """All tensors of a safetensors file written under the same schema."""
    with open_tensors(path, schema) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)


def write_table(path: Path, schema: str, table: pa.Table, header: Header) -> None:
    """Write an Arrow table to Parquet (zstd); equal data give equal bytes."""
    write_parts(path, schema, table.schema, [table], header)


def write_parts(path: Path, schema: str, columns: pa.Schema, parts: Iterable[pa.Table], header: Header) -> None:
    """Write a table that comes in parts, of which only one is in memory."""
    described = columns.with_metadata({"schema": schema, "header": json.dumps(dict(header), sort_keys=True)})
    with replacing(path) as partial, pq.ParquetWriter(partial, described, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.replace_schema_metadata(described.metadata))


def read_table(path: Path, schema: str) -> pa.Table:
    """The table of a Parquet file written under the same schema."""
    with _parquet(path, schema) as file:
        return file.read()


def read_parts(path: Path, schema: str) -> Iterator[pa.Table]:
    """The parts of such a file, of which only one is in memory."""
    with _parquet(path, schema) as file:
        yield from map(file.read_row_group, range(file.num_row_groups))


@contextmanager
def _parquet(path: Path, schema: str) -> Iterator[pq.ParquetFile]:
    try:
        # a memory-mapped file would crash this process if another one replaced the file
        with pq.ParquetFile(_existing(path), memory_map=False) as file:
            _require_schema(path, (file.schema_arrow.metadata or {}).get(b"schema", b"").decode(), schema)
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path}: damaged Parquet ({reason}); delete the file and run the study again") from None


def read_header(path: Path) -> dict[str, Any]:
    """The header of any of our files: stage, specification, input hashes, code, commit, versions, device."""
    return read_origin(path)["header"]


def missing(path: Path) -> list[dict[str, str]]:
    """The failed jobs whose results are not in a table, figure or page, with reasons; empty if it is complete."""
    return read_header(path).get("spec", {}).get("missing", [])


def read_origin(path: Path) -> dict[str, Any]:
    """The `schema` and the `header` of any file of ours, also of figures and pages; ArtifactError if it has none."""
    path = _existing(path)
    if path.suffix not in ORIGINS:
        raise ArtifactError(f"{path}: '{path.suffix}' files have no header; allowed are {', '.join(ORIGINS)}")
    try:
        content = ORIGINS[path.suffix](path)
    except (ValueError, OSError) as error:  # from pyarrow, PIL or json
        raise ArtifactError(f"{path}: damaged {path.suffix[1:]} ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or "header" not in content:
        raise ArtifactError(f"{path}: it has no header of this project; only files that a stage wrote have one")
    return {"schema": content.get("schema"), "header": content["header"]}


def origin(schema: str, header: Header) -> str:
    """Schema and header as text, for formats that can store a text next to their content."""
    return json.dumps({"schema": schema, "header": dict(header)}, sort_keys=True)


def _of_parquet(path: Path) -> dict[str, Any]:
    meta = pq.read_schema(path).metadata or {}
    return {"schema": meta[b"schema"].decode(), "header": json.loads(meta[b"header"])} if b"header" in meta else {}


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
    match = re.search(rb"/Keywords \(((?:[^()\\]|\\.)*)\)", path.read_bytes(), re.DOTALL)
    return json.loads(re.sub(rb"\\(.)", rb"\1", match.group(1))) if match else {}


def _of_html(path: Path) -> dict[str, Any]:
    match = re.search(f'<meta name="{METADATA_KEY}" content="([^"]*)">', path.read_text(encoding="utf-8"))
    return json.loads(html.unescape(match.group(1))) if match else {}


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
            f"{path}: schema '{found or 'none'}' found, '{expected}' needed; delete the file and run the study again"
        )
