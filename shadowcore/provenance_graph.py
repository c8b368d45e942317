"""Who wrote a study's file, from which files: from the headers of files and the commands in the logs beside them.

A header holds the stage and the hashes of what it read, but no paths, since folders are moved. The log of the job
that wrote the file begins with its command, which has them; hashes then tell whether they are still the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shadowcore import artifacts, logs, manifests, provenance
from shadowcore.errors import ArtifactError

Named = dict[str, list[str]]


class Job(NamedTuple):
    """A job of a study: its log, what that says, and the study's folder as its command calls it."""

    log: Path
    said: logs.Log
    called: str


def run_of(header: Mapping[str, Any], job: Job | None) -> dict[str, str]:
    """Commit, versions and device of the run that wrote a file: its header's, else its log's; empty if unknown."""
    if "run" in header or job is None:
        return dict(header.get("run", {}))
    names = ("python", "machine", "commit", *provenance.RECORDED_PACKAGES)
    run = {name: job.said.environment[name] for name in names if name in job.said.environment}
    return run | ({"device": job.said.device} if job.said.device else {})


class Lineage:
    """The jobs of one study's folder by the files that their commands name."""

    def __init__(self, root: Path):
        self.root = root
        self._named: dict[str, list[tuple[Path, logs.Log, str, str]]] = {}
        for log in sorted((root / "logs").rglob("*.log")):
            said = logs.read(log)
            for option, words in files_of(said).items():
                for word in words:
                    parts = Path(word).parts
                    for start in range(len(parts)):  # by every way that the word ends: the folder may have been moved
                        self._named.setdefault("/".join(parts[start:]), []).append((log, said, option, word))

    @classmethod
    def of(cls, path: Path) -> Lineage | None:
        """That of the study's folder a file is in: the nearest one above with logs; None where there is none."""
        root = next((folder for folder in path.resolve().parents if (folder / "logs").is_dir()), None)
        if root is None:
            return None
        return cls(root if path.is_absolute() else Path(os.path.relpath(root)))

    def inside(self, path: Path) -> Path:
        """A path relative to the study's folder."""
        return path.resolve().relative_to(self.root.resolve())

    def job(self, path: Path, header: Mapping[str, Any]) -> Job | None:
        """The job that wrote a file of this header: one of its stage whose command names it, not as an input.

        The command of an evaluation names its manifest, which lists the files that it wrote.
        """
        if header["stage"].startswith("evaluate") and path.suffix == ".parquet":
            path = manifests.of_outcome(path, header["stage"])
        inside = str(self.inside(path))
        for log, said, option, word in self._named.get(inside, ()):
            if said.command[:1] == [header["stage"]] and option not in header["inputs"]:
                return Job(log, said, word.removesuffix(inside))
        return None

    def inputs(self, header: Mapping[str, Any], job: Job) -> dict[str, list[Path]]:
        """The files that a job read, by the names that a header has for them."""
        named = files_of(job.said)
        for words in list(named.values()):  # a figure names the tables it looked at, of all that there were
            named = {Path(word).stem: [word] for word in words if word.endswith(".parquet")} | named
        files = {name: [self._here(word, job) for word in named.get(name, ())] for name in header["inputs"]}
        return {name: _own(paths, header["inputs"][name]) for name, paths in files.items()}

    def behind(self, path: Path) -> Iterator[tuple[Path, Mapping[str, Any], Job | None]]:
        """Every file of the study that a file stands on, itself first, with its header and its job, each once."""
        seen, waiting = set(), [path]
        while waiting:
            one = waiting.pop()
            try:
                header = artifacts.read_origin(one)["header"]
            except ArtifactError:  # a folder of weights, a caption: its card, or nothing, says more
                continue
            job = self.job(one, header) if "stage" in header else None
            yield one, header, job
            found = [path for paths in self.inputs(header, job).values() for path in paths] if job else []
            if one.suffix == ".json" and header.get("stage", "").startswith("evaluate"):
                found += manifests.listed(one)
            waiting += [path for path in found if path not in seen and path.is_file()]
            seen.update(found)

    def _here(self, word: str, job: Job) -> Path:
        return self.root / word.removeprefix(job.called) if word.startswith(job.called) else Path(word)


def _own(paths: list[Path], hashes: list[str]) -> list[Path]:
    """Of the files that a job read, those with these hashes: an outcome stands on one predictor of many."""
    if len(paths) <= len(hashes):
        return paths
    same = {path for path in paths if path.is_file() and artifacts.digest(path) in hashes}
    return [path for path in dict.fromkeys(paths) if path in same or not same and hashes]


def files_of(said: logs.Log) -> Named:
    """Words of a log's command by the option before them, as the fields of a stage are called."""
    found: Named = {}
    words: list[str] = []
    for word in said.command:
        if word.startswith("--"):
            words = found.setdefault(word[2:].replace("-", "_"), [])
        else:
            words.append(word)
    return {name: words for name, words in found.items() if name not in ("spec", "threads", "devices")}
