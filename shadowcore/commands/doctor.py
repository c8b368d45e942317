"""`shadowcore doctor`: check this machine and environment for problems and suggest fixes.

It needs nothing but Python, so that it can report missing packages. The exit code is 1 if something is broken, so that
a study would fail or give wrong results. A warning may be intended.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from shadowcore import machine, provenance
from shadowcore.errors import ShadowcoreError
from shadowcore.processes import ask

if TYPE_CHECKING:
    from shadowcore.config import Study
    from shadowcore.jobs import Jobs

LEAST_PYTHON = (3, 11)
LEAST_FREE = 5e9  # bytes of disk, ample for the quick study and its caches
LEAST_MEMORY = 6e9  # bytes of memory for one job of the quick study and the system
SLURM = ("sbatch", "squeue", "scancel", "sinfo")
PLUGIN = "snakemake-executor-plugin-slurm"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
MARKS = {"fine": "ok     ", "warning": "warning", "broken": "BROKEN "}


class Finding(NamedTuple):
    """The result of one check. fix: what to do, unless the state is fine."""

    state: Literal["fine", "warning", "broken"]
    what: str
    fix: str = ""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, nargs="?", help="a configuration to check for this machine")


def run(parsed: argparse.Namespace) -> int:
    jobs, findings = None, []
    if parsed.config:
        try:
            from shadowcore.config import load_study
            from shadowcore.jobs import Jobs
        except ImportError as error:
            findings.append(unchecked(str(parsed.config), error))
        else:
            jobs = Jobs(load_study(parsed.config))
    findings += examine(jobs)
    for one in findings:
        print(f"{MARKS[one.state]}  {one.what}")
        if one.fix:
            print(f"         fix: {one.fix}")
    return int(any(one.state == "broken" for one in findings))


def unchecked(what: str, error: ImportError) -> Finding:
    """The finding if a package is missing that the check itself needs."""
    fix = "install the missing packages in this list, and run doctor again"
    return Finding("broken", f"{what} was not checked: that needs {error.name or error}, which is not installed", fix)


def examine(jobs: Jobs | None = None) -> Iterator[Finding]:
    """Run all checks; with the jobs of a study, also those of their needs."""
    study = jobs.study if jobs else None
    yield python()
    yield from packages(pins(), installed())
    yield commit()
    yield from gpu()
    yield memory()
    yield from configuration(jobs) if jobs else ()
    yield from disk(Path("results"), planned(jobs) if jobs else 0)
    yield from hub(study)
    yield from snakemake(Path(".snakemake"))
    yield from slurm()


def python() -> Finding:
    found = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) < LEAST_PYTHON:
        return Finding("broken", f"Python {found}", "Python 3.11 or newer: make PYTHON=python3.11 study")
    return Finding("fine", f"Python {found}")


def pins() -> dict[str, str]:
    """Pinned versions by package, from pyproject.toml or from the metadata of the installed package."""
    project = provenance.PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        wanted = [one for one in metadata.requires("shadowcore") or [] if "extra ==" not in one]
    matches = (re.match(r"([\w.-]+)(?:\[.*?\])?==([^;\s]+)", line) for line in wanted)
    return {match.group(1): match.group(2) for match in matches if match}


def installed() -> dict[str, str]:
    """Installed versions by package, without the name of a build after `+`."""
    return {
        re.sub(r"[-_.]+", "-", one.name).lower(): one.version.split("+")[0]
        for one in metadata.distributions()
        if one.name
    }


def packages(wanted: dict[str, str], there: dict[str, str]) -> Iterator[Finding]:
    """Missing packages, and packages of another version than the pinned one."""
    names = {name: re.sub(r"[-_.]+", "-", name).lower() for name in wanted}
    fine = [name for name, version in wanted.items() if there.get(names[name]) == version]
    for name, version in wanted.items():
        found = there.get(names[name])
        fix = f"pip install '{name}=={version}', or make study, which makes an environment of its own"
        if found is None:
            yield Finding("broken", f"{name} {version} is pinned and not installed", fix)
        elif found != version:
            yield Finding("warning", f"{name} {found} is installed, {version} is pinned: numbers may differ", fix)
    yield Finding("fine", f"{len(fine)} of {len(wanted)} packages as pinned")


def commit() -> Finding:
    found = provenance.run_information()["commit"]
    if found == "unknown":
        return Finding("warning", "no git commit: files will not say which code made them", "git clone the project")
    if found.endswith("-dirty"):
        return Finding("warning", f"commit {found}: files will say that the code was edited", "git commit")
    return Finding("fine", f"commit {found}")


def gpu() -> Iterator[Finding]:
    """Whether torch can use the GPUs that the driver shows."""
    try:
        import torch
    except ImportError:  # reported by `packages`
        return
    listed = ask("nvidia-smi", "--query-gpu=name,driver_version,memory.free", "--format=csv,noheader")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(index)
            name = f"GPU {index}: {torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}"
            room = f"{free / 1e9:.0f} of {whole / 1e9:.0f} GB free"
            if free < whole / 2:
                fix = "nvidia-smi shows who has it; CUDA_VISIBLE_DEVICES chooses another"
                yield Finding("warning", f"{name}, {room}", fix)
            else:
                yield Finding("fine", f"{name}, {room}")
        if "triton" not in installed():
            yield Finding("broken", "no Triton: our decoder has no kernels on this GPU", "pip install triton")
    elif listed and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        yield Finding("warning", "CUDA_VISIBLE_DEVICES is empty: no GPU is used", "unset CUDA_VISIBLE_DEVICES")
    elif listed:
        built = torch.version.cuda or "no CUDA"
        fix = "install torch built for the driver's CUDA (pytorch.org, Get started), or a newer driver"
        yield Finding(
            "broken", f"the driver shows {listed.splitlines()[0]}, torch {torch.__version__} ({built}) no GPU", fix
        )
    else:
        yield Finding("fine", f"no GPU: jobs run on the processor, {provenance.processor_name()}")


def memory() -> Finding:
    whole = machine.memory()
    words = f"{whole / 1e9:.0f} GB of memory, {machine.processors()} processors for this process"
    if whole < LEAST_MEMORY:
        return Finding("warning", words, "snakemake --resources mem_mb=... runs only as many jobs as fit together")
    return Finding("fine", words)


def configuration(jobs: Jobs) -> Iterator[Finding]:
    """Problems of the study's sources and sizes, as in `plan`, and missing memory or GPUs."""
    from shadowcore import preflight

    try:
        wrong = preflight.problems(jobs)
    except ImportError as error:
        yield unchecked(f"configuration '{jobs.study.study}'", error)
        return
    for problem in wrong:
        yield Finding("broken", problem, "change the configuration, or what it names")
    if wrong:  # the jobs cannot be counted without the sources
        return
    yield Finding("fine", f"configuration '{jobs.study.study}': its sources exist, and its sizes are right")
    if shortage := preflight.shortage(jobs):
        state = "warning" if jobs.study.run_anyway else "broken"
        yield Finding(state, shortage, preflight.ANYWAY)


def planned(jobs: Jobs) -> float:
    """Bytes that a study needs on its disk; 0 if a missing source makes that unknown."""
    from shadowcore import plan

    try:
        return plan.disk(jobs.study, plan.work(jobs))
    except (ShadowcoreError, ImportError):
        return 0


def disk(results: Path, needed: float) -> Iterator[Finding]:
    """Free space and write permission in the folders of results and downloads."""
    for what, folder, need in (("results", results, max(needed, LEAST_FREE)), ("hub cache", hub_cache(), LEAST_FREE)):
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        words = f"{what}: {free / 1e9:,.0f} GB free at {folder}"
        if not os.access(there, os.W_OK):
            fix = f"chmod u+w {there}, or another folder" + ("" if what == "results" else ": export HF_HOME=...")
            yield Finding("broken", f"{what}: {there} cannot be written", fix)
        elif free < need:
            state = "broken" if needed and what == "results" else "warning"
            yield Finding(
                state, f"{words}, {need / 1e9:,.0f} GB needed", "free some, or link the folder to a larger disk"
            )
        else:
            yield Finding("fine", words)


def hub_cache() -> Path:
    """The folder of the hub's cache."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(home).expanduser()


def hub(study: Study | None) -> Iterator[Finding]:
    """Whether downloads are switched off although a source from the hub is not in the cache."""
    switched = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    sources = {**study.models, **study.texts} if study else {}
    remote = {
        name: one.source["hub"] for name, one in sources.items() if "hub" in one.source
    }  # empty for a fetched study
    missing = [name for name, source in remote.items() if not _snapshot(source).is_dir()]
    if remote:
        yield Finding("fine", f"{len(remote) - len(missing)} of {len(remote)} sources from the hub are in its cache")
    if switched and missing:
        fix = f"unset {' '.join(switched)}; or shadowcore fetch where there is internet, then offline: FOLDER"
        yield Finding("broken", f"{', '.join(switched)} set, and {', '.join(missing)} must be downloaded", fix)
    elif switched:
        yield Finding("fine", f"{', '.join(switched)} set: nothing is downloaded from the hub")
    else:
        yield Finding("fine", "the hub may be used; `offline:` in a configuration forbids it")


def _snapshot(source: Mapping[str, str]) -> Path:
    """The folder of a model or a data set at one commit in the hub's cache."""
    kind, name = ("models", source["repo"]) if "repo" in source else ("datasets", source["dataset"])
    cache = os.environ.get("HF_HUB_CACHE") or hub_cache() / "hub"
    return Path(cache) / f"{kind}--{name.replace('/', '--')}" / "snapshots" / source["revision"]


def snakemake(state: Path) -> Iterator[Finding]:
    """Whether a Snakemake runs in this folder, or was killed in it."""
    if any((state / "locks").glob("*")):
        fix = "shadowcore status CONFIG shows whether jobs run; if none does: snakemake --unlock"
        yield Finding("warning", "this folder is locked: a Snakemake runs here, or was killed", fix)
    if any((state / "incomplete").glob("*")):
        yield Finding("fine", "an interrupted run left incomplete files, which will be made again")


def slurm() -> Iterator[Finding]:
    """Whether SLURM jobs can be submitted here; only warnings, because a study does not need a cluster."""
    there = [name for name in SLURM if shutil.which(name)]
    if not there:
        yield Finding("fine", "no SLURM on this machine")
        return
    if missing := [name for name in SLURM if name not in there]:
        yield Finding("warning", f"SLURM lacks {', '.join(missing)}", "put the cluster's SLURM commands on the PATH")
        return
    if ask("sinfo", "--noheader", "--format=%P") is None:
        yield Finding("warning", "SLURM: sinfo fails, no controller answers", "run this on a login node of the cluster")
        return
    yield Finding("fine", "SLURM answers")
    if PLUGIN not in installed():
        yield Finding("warning", f"{PLUGIN} is not installed", f"pip install {PLUGIN}, and docs/cluster.md")
    if ask("sacct", "--noheader", "--allocations", "--starttime=now") is None:
        fix = "snakemake --slurm-status-command squeue"
        yield Finding("warning", "SLURM keeps no accounts here: Snakemake would wait for ever for a job's end", fix)
