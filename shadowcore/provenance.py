"""Which code and which machine made a file.

`fingerprint` hashes a module together with everything it imports from this package, so that a rule
reruns when code it stands on changes its behaviour, and only then: comments, docstrings, formatting
and time stamps do not count.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parent
RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "numpy", "pandas", "pyarrow", "safetensors")


def module_path(module: str) -> Path | None:
    """File of a module of this package ("shadowcore.method.criteria"), or None if there is none."""
    path = PACKAGE.parent / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that `module` imports directly, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(module_path(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from package import name`: name may be a module or something defined in package
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if name.split(".")[0] == PACKAGE.name and module_path(name))


def closure(module: str) -> list[str]:
    """`module` and every module of this package it stands on, sorted."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(imports(name))
    return sorted(seen)


@cache
def behaviour(module: str) -> str:
    """Hash of what a module does: its syntax tree without docstrings, comments and positions."""
    tree = ast.parse(module_path(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def fingerprint(module: str) -> str:
    """Hash of the behaviour of a module and of its import closure inside this package."""
    lines = [f"{name} {behaviour(name)}" for name in closure(module)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def run_information() -> dict[str, str]:
    """Commit, versions and device: equal for two runs of one commit on one machine (no time stamps)."""
    information = {"python": platform.python_version(), "machine": platform.machine()}
    information |= {"device": device_name(), "commit": _commit()}
    for package in RECORDED_PACKAGES:
        try:
            information[package] = version(package)
        except PackageNotFoundError:
            information[package] = "absent"
    return information


def device_name() -> str:
    """The GPU that torch has been using in this process, or the processor."""
    torch = sys.modules.get("torch")  # who has not imported it has used no GPU
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    return processor_name()


@cache
def processor_name() -> str:
    """The processor's model name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def _commit() -> str:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=PACKAGE, capture_output=True, encoding="utf-8", errors="replace", check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
