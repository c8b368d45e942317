"""Are the files of a model folder those of its card? Known by their state, or else by their bytes.

Weights may be links into somebody's folder, where they can be replaced by others of the same size. To read 60 GB before
every job would take longer than the job, so a hidden file in the folder keeps the state that each file had when its
bytes were last hashed: size, times of change and inode. A file is hashed again when its state differs. The card itself
holds no times and no places, so that it is the same on every machine.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from shadowcore.artifacts import replacing
from shadowcore.errors import ArtifactError
from shadowcore.provenance import file_sha256

HASHED = ".hashed.json"  # {name: {"state": [...], "sha256": ...}}; hidden, so it is none of the model's files
HASHED_AT_ONCE = 8
ALWAYS = "SHADOWCORE_HASH_WEIGHTS"  # 1: hash all files in every job, whatever their state


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file of a model folder, as its card lists them; their states are kept."""
    states = {name: _state(path) for name, path in sorted(_files(folder).items())}
    hashes = _hashes(folder, states)
    _keep(folder, _record(states, hashes))
    return {name: {"bytes": states[name][0], "sha256": hashes[name]} for name in states}


def check_files(folder: Path, card: dict[str, Any]) -> None:
    """Raise ArtifactError unless the folder holds exactly the card's files, with their sizes and their bytes.

    Bytes are read only where the kept state of a file is not its present one, or with SHADOWCORE_HASH_WEIGHTS=1.
    """
    folder = Path(folder)
    states = {name: _state(path) for name, path in _files(folder).items()}
    for name in sorted(states.keys() | card["files"].keys()):
        expected, found = card["files"].get(name, {}).get("bytes"), states.get(name, (None,))[0]
        if found != expected:
            raise ArtifactError(
                f"{folder / name}: {_size(found)}{_link(folder / name)} where the model's card has {_size(expected)}; "
                "delete the folder and run the study again"
            )
    hashes = {name: file["sha256"] for name, file in card["files"].items()}
    record, kept = _record(states, hashes), _kept(folder)
    changed = [name for name in record if record[name] != kept.get(name)]
    judged = record if os.environ.get(ALWAYS, "0") not in ("", "0") else changed
    for name, found in _hashes(folder, {name: states[name] for name in judged}).items():
        if found != hashes[name]:
            raise ArtifactError(
                f"{folder / name}: its content is not what was fetched: sha256 {found[:16]}...{_link(folder / name)} "
                f"where the model's card has {hashes[name][:16]}...; put the old file back, or delete the folder and "
                "run the study again"
            )
    if changed:
        _keep(folder, record)


def _files(folder: Path) -> dict[str, Path]:
    """The model's files by name; hidden ones are ours and Snakemake's, which leaves a time stamp in the folder."""
    return {path.name: path for path in Path(folder).glob("[!.]*") if path.is_file()}


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written anew or replaced: bytes, times of change, inode; of a link's target."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _hashes(folder: Path, states: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """SHA-256 of files by name, several at once: hashing one is slower than reading it from a good disk."""
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        return dict(zip(states, pool.map(lambda name: _sha256(folder / name, states[name]), states), strict=True))


@cache
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    """SHA-256 of a file that is in this state: a job asks for the tokenizer and for the model, and reads them once."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}){_link(path)}") from None


def _record(states: dict[str, tuple[int, ...]], hashes: dict[str, str]) -> dict[str, Any]:
    return {name: {"state": list(states[name]), "sha256": hashes[name]} for name in hashes}


def _kept(folder: Path) -> dict[str, Any]:
    """What was kept of the files; nothing where there is no record, or an unreadable one: then files are hashed."""
    try:
        kept = json.loads((folder / HASHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(folder: Path, record: dict[str, Any]) -> None:
    try:
        with replacing(folder / HASHED) as partial:
            partial.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except ArtifactError:  # a folder that is not ours to write to: the next job hashes the files again
        pass


def _link(path: Path) -> str:
    """Where a link points, for error messages."""
    return f" (it links to {os.readlink(path)})" if path.is_symlink() else ""


def _size(size: int | None) -> str:
    return "no file" if size is None else f"{size} bytes"
