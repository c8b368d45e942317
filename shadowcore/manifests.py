"""Manifests: which outcome files an evaluation job has written, one a condition, and their checksums.

The manifest is what Snakemake knows of the job: `outcomes/<model>/<text>/<part>.json`. The outcome files are beside it,
`<setup>/<sparsity>.parquet`, and Snakemake never deletes them, so that a job measures only what is not there yet.
While conditions are left to be measured, or when some have failed, those that are there are listed in
`unfinished-<part>.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shadowcore import artifacts
from shadowcore.errors import ArtifactError

SCHEMA = "evaluation/1"
ORACLE = "oracle"


def part(method: str, sparsity_pct: int) -> str:
    """What the manifest of a condition's job is called; the oracle has one job for all sparsities."""
    return ORACLE if method == "oracle" else str(sparsity_pct)


def name(setup: str, sparsity_pct: int) -> str:
    """What a condition is called among those of its model and text."""
    return f"{setup}/{sparsity_pct}"


def outcome(manifest: Path, name: str) -> Path:
    """The outcome file of a condition by its name."""
    return manifest.parent / f"{name}.parquet"


def of_outcome(path: Path, stage: str) -> Path:
    """The manifest of the job that wrote an outcome file; stage: by the file's header."""
    return path.parents[1] / f"{ORACLE if stage == 'evaluate-oracle' else path.stem}.json"


def unfinished(manifest: Path) -> Path:
    """Where a job lists its outcome files until all of them are there."""
    return manifest.with_name(f"unfinished-{manifest.name}")


def write(manifest: Path, files: Mapping[str, Path], header: artifacts.Header) -> None:
    """Write a manifest of outcome files by the names of their conditions."""
    record = {
        name: {"outcomes": path.relative_to(manifest.parent).as_posix(), "sha256": artifacts.digest(path)}
        for name, path in files.items()
    }
    artifacts.write_record(manifest, SCHEMA, record, header)


def listed(manifest: Path) -> dict[Path, str]:
    """The outcome files of a manifest and their checksums; ArtifactError where it says nothing of the kind."""
    record: dict[str, Any] = artifacts.read_record(manifest, SCHEMA)
    try:
        return {manifest.parent / one["outcomes"]: one["sha256"] for one in record.values()}
    except (KeyError, TypeError):
        raise ArtifactError(f"{manifest}: damaged record; delete the file and run the study again") from None


def absent(manifest: Path) -> bool:
    """Whether an outcome file of a manifest is gone: the job must run again."""
    try:
        return not all(path.is_file() for path in listed(manifest))
    except ArtifactError:
        return True


def outcomes(manifests: Iterable[Path]) -> list[Path]:
    """The outcome files of several manifests; ArtifactError if one is missing, or not what its manifest says."""
    found = []
    for manifest in manifests:
        for path, sha256 in listed(manifest).items():
            if not path.is_file():
                raise ArtifactError(f"{path}: no such file, and {manifest} lists it; run the study again")
            if artifacts.digest(path) != sha256:
                raise ArtifactError(
                    f"{path}: its SHA-256 is not the one in {manifest}; delete the file and run the study again"
                )
            found.append(path)
    return found
