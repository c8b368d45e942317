"""`shadowcore explain`: by which command a file was made, from which files, by which code, on which device.

A file's header holds the stage, its specification and the hashes of what it read, but no paths. Those are in the log
of the job that made it, whose command is looked for among the study's logs; the hashes then tell whether the files
are still those that were read. Logs and files of times are explained by their command, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shadowcore import artifacts, logs, provenance
from shadowcore.commands import console
from shadowcore.errors import ArtifactError

Facts = list[tuple[str, str]]
LISTED = 12  # files read that are named one by one
COMPARED = 4e9  # bytes of them that are hashed again
UNKNOWN = " (not in the header, as measured times are not; or changed since)"


class Job(NamedTuple):
    """A job of a study: the study's folder, the job's log, and the study's folder as its command calls it."""

    root: Path
    log: Path
    called: str


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a table, figure, page, predictor, trace, log or file of times")


def run(parsed: argparse.Namespace) -> None:
    out = console()
    for name, value in explain(parsed.file):
        out.print(f"{name:9} {value}", highlight=False, markup=False, soft_wrap=True)


def explain(path: Path) -> Facts:
    """What is known of a file, as pairs of a word and a line. Raises ArtifactError where nothing is."""
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path}: no such file; one that a study made would fit, such as a table or a figure")
    root = next((folder for folder in path.resolve().parents if (folder / "logs").is_dir()), None)
    inside = path.resolve().relative_to(root) if root else path
    if root and not path.is_absolute():
        root = Path(os.path.relpath(root))
    if inside.parts[0] in ("logs", "benchmarks") and root:
        return [("file", str(path)), *_of_job(root / "logs" / Path(*inside.parts[1:]).with_suffix(".log"))]
    facts = [("file", str(path))]
    if (
        "weights" in inside.parts
        and (card := path.parents[inside.parts[::-1].index("weights")] / "card.json").is_file()
    ):
        facts.append(("card", f"{card} has the hashes of the weights"))
        return facts + explain(card)[1:]
    found = artifacts.read_origin(path)
    header = found["header"]
    if "stage" not in header:  # joined by hand, as tables of several machines are
        parts = [("part", _part(one)) for one in header.get("parts", [])]
        return [*facts, ("kind", str(found["schema"])), ("made by", header.get("made by", "not recorded")), *parts]
    made_by = job_of(root, inside, header) if root else None
    facts += [("kind", f"{found['schema']}, made by the stage {header['stage']}")]
    facts += _origin(header) + _read(header["inputs"], made_by)
    if made_by:
        facts += [("log", str(made_by.log)), *_times(made_by.root, made_by.log)]
    return facts + _command(header, made_by)


def _part(header: Mapping[str, Any]) -> str:
    run = ", ".join(f"{name} {value}" for name, value in header["run"].items())
    return f"{header['stage']} {header['spec'].get('model', '')}: code {header['code']}, {run}"


def job_of(root: Path, inside: Path, header: Mapping[str, Any]) -> Job | None:
    """The job that wrote a file, by its path inside the study: the one whose command names it, not as an input."""
    for log in sorted((root / "logs").rglob("*.log")):
        command = logs.read(log).command
        if command[:1] == [header["stage"]]:
            for option, words in _options(command).items():
                for word in words if option not in header["inputs"] else ():
                    if word == str(inside) or word.endswith(f"/{inside}"):
                        return Job(root, log, word.removesuffix(str(inside)))
    return None


def _command(header: Mapping[str, Any], made_by: Job | None) -> Facts:
    if made_by:
        return [("command", shlex.join(["python", "-m", "shadowcore", *logs.read(made_by.log).command]))]
    words = ["python", "-m", "shadowcore", header["stage"], "--spec", json.dumps(header["spec"])]
    return [("command", f"{shlex.join(words)} ... (its log is not there, which would have the files)")]


def _read(hashes: Mapping[str, list[str]], made_by: Job | None) -> Facts:
    """The files that were read, and what has become of them."""
    facts = []
    named = _options(logs.read(made_by.log).command) if made_by else {}
    for words in list(named.values()):  # a figure names the tables it looked at, of all that there were
        named = {Path(word).stem: [word] for word in words if Path(word).suffix == ".parquet"} | named
    for name, were in hashes.items():
        words = named.get(name, [])
        if not words and were:
            facts.append(("from", f"{name}: {len(were)} files, sha256 {', '.join(one[:12] for one in were[:LISTED])}"))
            continue
        paths = [
            made_by.root / word.removeprefix(made_by.called) if word.startswith(made_by.called) else Path(word)
            for word in words
        ]
        told = [f"{name}: {path}{state}" for path, state in zip(paths, _states(paths, were), strict=True)]
        facts += [("from", line) for line in told[:LISTED]]
        if len(told) > LISTED:
            changed = sum("(" in line for line in told[LISTED:])
            facts.append(("from", f"{name}: {len(told) - LISTED} more, {changed} of them changed or gone"))
    return facts


def _states(paths: list[Path], were: list[str]) -> Iterable[str]:
    """Of each file: nothing if it is as it was, or what has become of it."""
    there = [path.is_file() for path in paths]
    size = sum(path.stat().st_size for path, is_there in zip(paths, there, strict=True) if is_there)
    all_there = len(were) == len(paths)
    for number, (path, is_there) in enumerate(zip(paths, there, strict=True)):
        if path.is_dir():
            yield ""
        elif not is_there:
            yield " (no longer there)"
        elif size > COMPARED:
            yield " (too large to compare here)"
        elif provenance.file_sha256(path) in ([were[number]] if all_there else were):
            yield ""
        else:
            yield " (has changed since)" if all_there else UNKNOWN


def _origin(header: Mapping[str, Any]) -> Facts:
    facts, run = [], dict(header.get("run", {}))
    module = f"shadowcore.stages.{header['stage'].replace('-', '_')}"
    if provenance.module_path(module):
        same = header.get("code") == provenance.fingerprint(module)
        words = "as in this tree" if same else "another than this tree's: snakemake would make the file again"
        facts.append(("code", f"{header.get('code')}, {words}"))
    facts.append(("commit", run.pop("commit", "not recorded")))
    facts.append(("device", run.pop("device", "not recorded")))
    facts.append(("versions", ", ".join(f"{name} {value}" for name, value in run.items())))
    return facts


def _of_job(log: Path) -> Facts:
    """A job by its log."""
    if not log.is_file():
        raise ArtifactError(f"{log}: no such log; the job that wrote the file has none")
    said = logs.read(log)
    if not said.command:
        raise ArtifactError(f"{log}: no command in it; logs of this version of shadowcore begin with one")
    ended = "finished" if said.finished else f"failed: {said.error}" if said.error else "not finished"
    facts = [("ended", ended)]
    facts += [("ran on", ", ".join(f"{name} {value}" for name, value in said.environment.items()))]
    root = next(folder.parent for folder in log.parents if folder.name == "logs")
    return [*facts, *_times(root, log), ("command", shlex.join(["python", "-m", "shadowcore", *said.command]))]


def _times(root: Path, log: Path) -> Facts:
    measured = root / "benchmarks" / log.relative_to(root / "logs").with_suffix(".tsv")
    if not measured.is_file():
        return []
    names, values = (line.split("\t") for line in measured.read_text().splitlines()[:2])
    row = dict(zip(names, values, strict=True))
    return [("took", f"{float(row['s']):.0f} s, {row['max_rss']} MB at most ({measured})")]


def _options(command: Iterable[str]) -> dict[str, list[str]]:
    """Words of a command by the option before them, as the fields of a stage are called."""
    found: dict[str, list[str]] = {}
    words: list[str] = []
    for word in command:
        if word.startswith("--"):
            words = found.setdefault(word[2:].replace("-", "_"), [])
        else:
            words.append(word)
    return {name: words for name, words in found.items() if name not in ("spec", "threads")}
