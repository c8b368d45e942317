"""Check that the files of a model folder are those in its card.

Weights may be links into another folder, where they can be replaced by other weights of the same size. Hashing 60 GB
before every job would take longer than the job. So a hidden file in the folder records the state (size, times of
change, inode) that each file had when it was hashed, and a file is only hashed again if its state has changed. The card
has no times and no paths, so that it is the same on every machine.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from shadowcore.atomic import replacing
from shadowcore.errors import ArtifactError
from shadowcore.provenance import file_sha256

HASHED = ".hashed.json"  # {name: {"state": [...], "sha256": ...}}; hidden, so it does not count as a file of the model
HASHED_AT_ONCE = 8
ALWAYS = "SHADOWCORE_HASH_WEIGHTS"  # 1: hash all files in every job


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file of a model folder, for its card; records the states of the files."""
    states = {name: _state(path) for name, path in sorted(_files(folder).items())}
    hashes = _hashes(folder, states)
    _keep(folder, _record(states, hashes))
    return {name: {"bytes": states[name][0], "sha256": hashes[name]} for name in states}


def check_files(folder: Path, card: dict[str, Any]) -> None:
    """Raise ArtifactError unless the folder has exactly the card's files with the same sizes and content.

    Only files whose state has changed are hashed, or all files with SHADOWCORE_HASH_WEIGHTS=1.
    """
    folder = Path(folder)
    states = {name: _state(path) for name, path in _files(folder).items()}
    for name in sorted(states.keys() | card["files"].keys()):
        expected, size = card["files"].get(name, {}).get("bytes"), states.get(name, (None,))[0]
        if size != expected:
            raise ArtifactError(
                f"{folder / name}: {_size(size)} found{_link(folder / name)}, but the model's card has "
                f"{_size(expected)}; delete the folder and run the study again"
            )
    hashes = {name: file["sha256"] for name, file in card["files"].items()}
    record, kept = _record(states, hashes), _kept(folder)
    changed = [name for name in record if record[name] != kept.get(name)]
    hashed = record if os.environ.get(ALWAYS, "0") not in ("", "0") else changed
    for name, sha256 in _hashes(folder, {name: states[name] for name in hashed}).items():
        if sha256 != hashes[name]:
            raise ArtifactError(
                f"{folder / name}: its content has changed: sha256 {sha256[:16]}... found{_link(folder / name)}, but "
                f"the model's card has {hashes[name][:16]}...; restore the old file, or delete the folder and run the "
                "study again"
            )
    if changed:
        _keep(folder, record)


def _files(folder: Path) -> dict[str, Path]:
    """The model's files by name, without hidden files, which are ours or Snakemake's time stamp."""
    return {path.name: path for path in Path(folder).glob("[!.]*") if path.is_file()}


def _state(path: Path) -> tuple[int, ...]:
    """Bytes, times of change and inode of a file (of a link's target), which change when the file is replaced."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _hashes(folder: Path, states: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """SHA-256 of files by name, several at once, because a good disk reads faster than one file is hashed."""
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        return dict(zip(states, pool.map(lambda name: _sha256(folder / name, states[name]), states), strict=True))


@cache
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    """SHA-256 of a file in this state; cached, because a job checks the folder for the tokenizer and for the model."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}){_link(path)}") from None


def _record(states: dict[str, tuple[int, ...]], hashes: dict[str, str]) -> dict[str, Any]:
    return {name: {"state": list(states[name]), "sha256": hashes[name]} for name in hashes}


def _kept(folder: Path) -> dict[str, Any]:
    """The recorded states and hashes; empty if there is no readable record, so that all files are hashed."""
    try:
        kept = json.loads((folder / HASHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(folder: Path, record: dict[str, Any]) -> None:
    try:
        with replacing(folder / HASHED) as partial:
            partial.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except ArtifactError:  # the folder cannot be written, so the next job hashes the files again
        pass


def _link(path: Path) -> str:
    """The target of a link, for error messages."""
    return f" (it links to {os.readlink(path)})" if path.is_symlink() else ""


def _size(size: int | None) -> str:
    return "no file" if size is None else f"{size} bytes"
