"""`shadowcore explain`: show the command, inputs, code and device that made a file."""

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shadowcore import artifacts, logs, provenance
from shadowcore.commands import console, say
from shadowcore.errors import ArtifactError
from shadowcore.provenance_graph import Job, ProvenanceGraph, run_of

Facts = list[tuple[str, str]]
LISTED = 12  # input files that are listed one by one
UNKNOWN = " (not in the header, as measured times are not; or changed since)"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a table, figure, page, predictor, trace, log or `benchmark:` file")


def run(parsed: argparse.Namespace) -> None:
    out = console()
    for name, value in explain(parsed.file):
        say(out, f"{name:9} {value}")


def explain(path: Path) -> Facts:
    """Facts about a file, as pairs of a word and a line; ArtifactError for a file of another origin."""
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path}: no such file; name a file that a study made, such as a table or a figure")
    facts, graph = [("file", str(path))], ProvenanceGraph.of(path)
    inside = graph.inside(path) if graph else path
    if graph and inside.parts[0] in ("logs", "benchmarks"):
        return facts + _of_log(graph.root, graph.root / "logs" / Path(*inside.parts[1:]).with_suffix(".log"))
    if "weights" in inside.parts:
        card = path.parents[inside.parts[::-1].index("weights")] / "card.json"
        if card.is_file():
            return [*facts, ("card", f"{card} has the hashes of the weights"), *explain(card)[1:]]
    found = artifacts.read_origin(path)
    header = found["header"]
    if "stage" not in header:  # joined by hand, as tables of several machines are
        parts = [("part", _part(one)) for one in header.get("parts", [])]
        return [*facts, ("kind", str(found["schema"])), ("made by", header.get("made by", "not recorded")), *parts]
    facts += [("kind", f"{found['schema']}, made by the stage {header['stage']}")]
    job = graph.job(path, header) if graph else None
    facts += _origin(header, job)
    if job is None:
        words = shlex.join(["python", "-m", "shadowcore", header["stage"], "--spec", json.dumps(header["spec"])])
        return facts + _hashes(header) + [("command", f"{words} ... (its log, which has the file names, is missing)")]
    facts += [*_read(header, graph.inputs(header, job)), *_behind(graph, path), ("log", str(job.log))]
    return [*facts, *_times(graph.root, job.log), ("command", _command(job.content))]


def _origin(header: Mapping[str, Any], job: Job | None) -> Facts:
    facts, run = [], run_of(header, job)
    module = f"shadowcore.stages.{header['stage'].replace('-', '_')}"
    if provenance.module_path(module):
        same = header["code"] == provenance.fingerprint(module)
        words = "same as here" if same else "differs from the code here: snakemake would make the file again"
        facts.append(("code", f"{header['code']}, {words}"))
    facts += [(name, run.pop(name, "not recorded")) for name in ("commit", "device")]
    return [*facts, ("versions", ", ".join(f"{name} {value}" for name, value in run.items()))]


def _part(header: Mapping[str, Any]) -> str:
    run = ", ".join(f"{name} {value}" for name, value in header["run"].items())
    return f"{header['stage']} {header['spec'].get('model', '')}: code {header['code']}, {run}"


def _hashes(header: Mapping[str, Any]) -> Facts:
    return [
        ("from", f"{name}: {_files(len(were))}, sha256 {', '.join(one[:12] for one in were[:LISTED])}")
        for name, were in header["inputs"].items()
        if were
    ]


def _read(header: Mapping[str, Any], files: Mapping[str, list[Path]]) -> Facts:
    """The files that were read, and what has become of them."""
    facts = []
    for name, paths in files.items():
        were = header["inputs"][name]
        lines = [f"{name}: {path}{state}" for path, state in zip(paths, _states(paths, were), strict=True)]
        facts += [("from", line) for line in lines[:LISTED]]
        if len(lines) > LISTED:
            changed = sum(line.endswith(")") for line in lines[LISTED:])
            facts.append(("from", f"{name}: {len(lines) - LISTED} more, {changed} of them changed or missing"))
    return facts


def _states(paths: list[Path], were: list[str]) -> Iterable[str]:
    """A remark on each file in brackets; empty if it has not changed."""
    all_there = len(were) == len(paths)
    for number, path in enumerate(paths):
        if path.is_dir():
            yield ""
        elif not path.is_file():
            yield " (no longer there)"
        elif artifacts.digest(path) in ([were[number]] if all_there else were):
            yield ""
        else:
            yield " (has changed since)" if all_there else UNKNOWN


def _behind(graph: ProvenanceGraph, path: Path) -> Facts:
    """Counts of all files that it was made from, also indirectly, by stage, device and commit."""
    counts = Counter()
    for one, header, job in graph.behind(path):
        if one != path and "stage" in header:
            run = run_of(header, job)
            commit = run.get("commit", "a commit not recorded")
            counts[header["stage"], run.get("device", "a device not recorded"), commit] += 1
    return [
        ("behind it", f"{stage}: {_files(count)}, on {device}, commit {commit}")
        for (stage, device, commit), count in counts.items()
    ]


def _files(count: int) -> str:
    return f"{count} file{'s' if count > 1 else ''}"


def _of_log(root: Path, log: Path) -> Facts:
    """Facts about a job, from its log."""
    if not log.is_file():
        raise ArtifactError(f"{log}: no such log; the job that wrote the file has none")
    content = logs.read(log)
    if not content.command:
        raise ArtifactError(f"{log}: no command in it; logs of this version of shadowcore begin with one")
    ended = f"failed: {content.error}" if content.error else "not finished"
    ended = f"finished, on {content.device}" if content.finished else ended
    environment = ", ".join(f"{name} {value}" for name, value in content.environment.items())
    return [("ended", ended), ("ran on", environment), *_times(root, log), ("command", _command(content))]


def _command(log: logs.Log) -> str:
    return shlex.join(["python", "-m", "shadowcore", *log.command])


def _times(root: Path, log: Path) -> Facts:
    measured = root / "benchmarks" / log.relative_to(root / "logs").with_suffix(".tsv")
    row = logs.times(measured)
    return [("took", f"{float(row['s']):.0f} s, {row['max_rss']} MB at most ({measured})")] if row else []
