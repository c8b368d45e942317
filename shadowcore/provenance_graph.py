"""Find out which job wrote a file of a study, and from which files.

A header has the stage and the hashes of the files that it read, but no paths, because folders are moved. The log of the
job begins with its command, which has the paths. The hashes then show whether the files are still the same.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from shadowcore import artifacts, logs, manifests, provenance
from shadowcore.errors import ArtifactError

Named = dict[str, list[str]]


class Job(NamedTuple):
    """A job of a study: the path and the content of its log, and the path of the study's folder in its command."""

    log: Path
    content: logs.Log
    folder: str


def run_of(header: Mapping[str, Any], job: Job | None) -> dict[str, str]:
    """Commit, versions and device of the run that wrote a file, from its header or else its log; empty if unknown."""
    if "run" in header or job is None:
        return dict(header.get("run", {}))
    names = ("python", "machine", "commit", *provenance.RECORDED_PACKAGES)
    run = {name: job.content.environment[name] for name in names if name in job.content.environment}
    return run | ({"device": job.content.device} if job.content.device else {})


class ProvenanceGraph:
    """The jobs of one study's folder, by the files in their commands."""

    def __init__(self, root: Path):
        self.root = root
        self._named: dict[str, list[tuple[Path, logs.Log, str, str]]] = {}
        for log in sorted((root / "logs").rglob("*.log")):
            content = logs.read(log)
            for option, words in files_of(content).items():
                for word in words:
                    parts = Path(word).parts
                    for start in range(len(parts)):  # under every ending of the path: the folder may have been moved
                        self._named.setdefault("/".join(parts[start:]), []).append((log, content, option, word))

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The graph of the study's folder that a file is in; None if no folder above the file has logs."""
        root = next((folder for folder in path.resolve().parents if (folder / "logs").is_dir()), None)
        if root is None:
            return None
        return cls(root if path.is_absolute() else Path(os.path.relpath(root)))

    def inside(self, path: Path) -> Path:
        """A path relative to the study's folder."""
        return path.resolve().relative_to(self.root.resolve())

    def job(self, path: Path, header: Mapping[str, Any]) -> Job | None:
        """The job of its stage whose command has a file as an output, or the manifest that lists an outcome file."""
        if header["stage"].startswith("evaluate") and path.suffix == ".parquet":
            path = manifests.of_outcome(path) or path
        inside = self.inside(path)
        for named in map(str, (inside, inside.parent)):  # figures are written to a folder
            for log, content, option, word in self._named.get(named, ()):
                if content.command[:1] == [header["stage"]] and option not in header["inputs"]:
                    return Job(log, content, word.removesuffix(named))
        return None

    def inputs(self, header: Mapping[str, Any], job: Job) -> dict[str, list[Path]]:
        """The files that a job read, by the input names of the header."""
        named = files_of(job.content)
        for words in list(named.values()):  # a figure's header names single tables of its input `tables`
            named = {Path(word).stem: [word] for word in words if word.endswith(".parquet")} | named
        files = {name: [self._here(word, job) for word in named.get(name, ())] for name in header["inputs"]}
        return {name: _own(paths, header["inputs"][name]) for name, paths in files.items()}

    def behind(self, path: Path) -> Iterator[tuple[Path, Mapping[str, Any], Job | None]]:
        """All files that a file was made from, itself first, each once, with its header and its job."""
        seen, waiting = set(), [path]
        while waiting:
            file = waiting.pop()
            try:
                header = artifacts.read_origin(file)["header"]
            except ArtifactError:  # a folder of weights or a caption, which has no header
                continue
            job = self.job(file, header) if "stage" in header else None
            yield file, header, job
            read = [path for paths in self.inputs(header, job).values() for path in paths] if job else []
            if file.suffix == ".json" and header.get("stage", "").startswith("evaluate"):
                read += manifests.listed(file)
            waiting += [path for path in read if path not in seen and path.is_file()]
            seen.update(read)

    def _here(self, word: str, job: Job) -> Path:
        return self.root / word.removeprefix(job.folder) if word.startswith(job.folder) else Path(word)


def _own(paths: list[Path], hashes: list[str]) -> list[Path]:
    """The files with these hashes, of all that a job read: an outcome comes from one of the job's predictors."""
    if len(paths) <= len(hashes):
        return paths
    same = {path for path in paths if path.is_file() and artifacts.digest(path) in hashes}
    return [path for path in dict.fromkeys(paths) if path in same or not same and hashes]


def files_of(log: logs.Log) -> Named:
    """The files in a log's command, by the stage's fields (`--two-words` is `two_words`)."""
    options: Named = {}
    words: list[str] = []
    for word in log.command:
        if word.startswith("--"):
            words = options.setdefault(word[2:].replace("-", "_"), [])
        else:
            words.append(word)
    return {name: words for name, words in options.items() if name not in ("spec", "threads", "devices")}
