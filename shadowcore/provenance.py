"""Record which code and which machine made a file.

`fingerprint` hashes a module and all modules of this package that it imports. A rule reruns when that code changes, but
not for changes of comments, docstrings, formatting or time stamps.
"""

import ast
import hashlib
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shadowcore.processes import ask

PACKAGE = Path(__file__).parent
RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "numpy", "pandas", "pyarrow", "safetensors")


def module_path(module: str) -> Path | None:
    """File of a module of this package, such as "shadowcore.method.criteria"; None if there is no such module."""
    path = PACKAGE.parent / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that `module` imports directly, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(module_path(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # in `from package import name`, name may be a module or something that package defines
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE.name and module_path(name))


def closure(module: str) -> list[str]:
    """`module` and all modules of this package that it imports, directly or not, sorted."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(imports(name))
    return sorted(seen)


@cache
def behaviour(module: str) -> str:
    """Hash of a module's syntax tree without docstrings, comments and positions."""
    tree = ast.parse(module_path(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def fingerprint(module: str) -> str:
    """Hash of the behaviour of a module and of all modules in its closure."""
    lines = [f"{name} {behaviour(name)}" for name in closure(module)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def run_information() -> dict[str, str]:
    """Commit, versions and device, without time stamps, so that reruns of one commit on one machine agree."""
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
    torch = sys.modules.get("torch")  # a process that has not imported torch has used no GPU
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    return processor_name()


@cache
def processor_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def _commit() -> str:
    return ask("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*", folder=PACKAGE) or "unknown"
