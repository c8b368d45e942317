"""Manifests: the list of an evaluation job's outcome files, one per condition, with their checksums.

The manifest, `outcomes/<model>/<text>/<part>.json`, is the only output that Snakemake knows. The outcome files,
`<slug>/<sparsity>.parquet` in the same folder, are never deleted by Snakemake, so that a job measures only conditions
that are not there yet. Until all conditions are measured, `unfinished-<part>.json` lists the finished ones.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shadowcore import artifacts
from shadowcore.errors import ArtifactError

SCHEMA = "evaluation/1"
ORACLE = "oracle"
UNFINISHED = "unfinished-"


def part(method: str, sparsity_pct: int, trainings_before: int = 0) -> str:
    """The name of the evaluation job of a condition, and of its manifest; the oracle has one job for all sparsities.

    trainings_before: number of predictors that the condition's own predictor begins with. Predictors with more of them
    are finished later, so they have a job of their own, such as `50-1`, and the job `50` need not wait for them.
    """
    if method == "oracle":
        return ORACLE
    return f"{sparsity_pct}-{trainings_before}" if trainings_before else str(sparsity_pct)


def name(slug: str, sparsity_pct: int) -> str:
    """The name of a condition among those of its model and text."""
    return f"{slug}/{sparsity_pct}"


def outcome(manifest: Path, name: str) -> Path:
    """The outcome file of the condition with this name."""
    return manifest.parent / f"{name}.parquet"


def of_outcome(path: Path) -> Path | None:
    """The manifest of the job that wrote an outcome file, which may not be complete; None if no list has the file."""
    name = json.dumps(path.relative_to(path.parents[1]).as_posix())
    listings = (file for file in path.parents[1].glob("*.json") if name in file.read_text(encoding="utf-8"))
    return next((file.with_name(file.name.removeprefix(UNFINISHED)) for file in listings), None)


def unfinished(manifest: Path) -> Path:
    """The list of the finished outcome files of a job that is not complete."""
    return manifest.with_name(f"{UNFINISHED}{manifest.name}")


def write(manifest: Path, files: Mapping[str, Path], header: artifacts.Header) -> None:
    """Write a manifest of outcome files by the names of their conditions."""
    record = {
        name: {"outcomes": path.relative_to(manifest.parent).as_posix(), "sha256": artifacts.digest(path)}
        for name, path in files.items()
    }
    artifacts.write_record(manifest, SCHEMA, record, header)


def listed(manifest: Path) -> dict[Path, str]:
    """The outcome files of a manifest and their checksums; ArtifactError if it is damaged."""
    record: dict[str, Any] = artifacts.read_record(manifest, SCHEMA)
    try:
        return {manifest.parent / entry["outcomes"]: entry["sha256"] for entry in record.values()}
    except (KeyError, TypeError):
        raise ArtifactError(f"{manifest}: damaged record; delete the file and run the study again") from None


def absent(manifest: Path) -> bool:
    """Whether an outcome file of a manifest is missing, so that the job must run again."""
    try:
        return not all(path.is_file() for path in listed(manifest))
    except ArtifactError:
        return True


def outcomes(manifests: Iterable[Path]) -> list[Path]:
    """The outcome files of several manifests; ArtifactError if a file is missing or has another checksum."""
    paths = []
    for manifest in manifests:
        for path, sha256 in listed(manifest).items():
            if not path.is_file():
                raise ArtifactError(f"{path}: no such file, but {manifest} lists it; run the study again")
            if artifacts.digest(path) != sha256:
                raise ArtifactError(
                    f"{path}: its SHA-256 is not the one in {manifest}; delete the file and run the study again"
                )
            paths.append(path)
    return paths
