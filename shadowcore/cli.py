"""The `shadowcore` command: the stages of a study, and commands for users before, during and after it.

A stage takes a JSON specification and one option per file:

    shadowcore trace --spec '{"split": "train", ...}' --card ... --documents ... --trace ...
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import sys
import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType

from shadowcore import __version__, logs
from shadowcore.devices import reserved
from shadowcore.errors import ConfigError, OutOfMemory, ShadowcoreError, one_of, out_of_memory
from shadowcore.rules import RULES
from shadowcore.terminal import tolerant

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
KEPT = 3 * 2**29  # bytes of freed memory that a job keeps
STAGES = {name.replace("_", "-"): rule.does for name, rule in RULES.items()}
COMMANDS = {
    "new": "write a commented configuration with defaults to config/NAME.yaml",
    "doctor": "check this machine and environment for problems and suggest fixes",
    "fetch": "download a study's models, texts and benchmarks for a machine without internet",
    "plan": "estimate a study's jobs, hours, disk and memory, stage by stage",
    "status": "show the state of a study's jobs and the estimated time left",
    "show": "print a study's results",
    "generate": "continue a prompt with a study's model, dense and sparse, with the speed of each",
    "diff": "list the numbers of a study that changed more than noise between two runs",
    "explain": "show the command, inputs, code and device that made a file",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; an error is one sentence on standard error."""
    tolerant()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    try:
        one_of(arguments[0], [*STAGES, *COMMANDS], "command")
        if arguments[0] in COMMANDS:
            return run_command(arguments[0], arguments[1:])
        run_stage(arguments[0], arguments[1:])
    except ShadowcoreError as error:
        print(f"shadowcore {arguments[0]}: {error}", file=sys.stderr)
        return error.code
    return 0


def usage() -> str:
    """The overview that `shadowcore --help` prints."""
    stages, others = ([f"  {name:20} {what}" for name, what in part.items()] for part in (STAGES, COMMANDS))
    return "\n".join(
        [
            "usage: shadowcore COMMAND [options], and shadowcore COMMAND --help",
            "",
            "Predictor-based contextual sparsity for large language models.",
            "",
            "stages (called by the rules of the Snakefile):",
            *stages,
            "",
            "commands before, during and after a study:",
            *others,
        ]  # fmt: skip
    )


def imported(name: str) -> ModuleType:
    """Import a module; from then on garbage is collected, but not among what was imported, which is never freed."""
    module = import_module(name)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    return module


def run_stage(command: str, arguments: Sequence[str]) -> None:
    """Parse a stage's options and run it."""
    rule = command.replace("-", "_")
    stage = imported(f"shadowcore.stages.{rule}")
    # imported here, so that `shadowcore --help` is fast
    from shadowcore.stages.base import Outputs, parse_spec, runtime_fields

    parser = argparse.ArgumentParser(
        prog=f"shadowcore {command}", description=STAGES[command], epilog=stage.Spec.__doc__,
    )  # fmt: skip
    keys = ", ".join(field.name for field in dataclasses.fields(stage.Spec)) or "none"
    parser.add_argument("--spec", default="{}", metavar="JSON", help=f"the specification; keys: {keys}")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="CPU threads (default: torch's own)")
    devices_help = "number of GPUs to reserve, 0 to share one (default: all that CUDA shows, without reserving them)"
    if RULES[rule].torch != "gpu":
        devices_help = "has no effect, because this stage uses no GPU"
    parser.add_argument("--devices", type=int, default=None, metavar="N", help=devices_help)
    for name in runtime_fields(stage.Spec):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help="no result depends on it")
    for name, kind in typing.get_type_hints(stage.Inputs).items():
        many = {"nargs": "*", "default": ()} if kind is not Path else {"required": True}
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="FILE", help="input", **many)
    for name in RULES[rule].outputs:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, metavar="FILE", help="output")
    parsed = parser.parse_args(arguments)
    try:
        data = json.loads(parsed.spec)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--spec: not JSON ({error}); it must be an object with the keys {keys}") from None
    chosen = {name: value for name in runtime_fields(stage.Spec) if (value := getattr(parsed, name)) is not None}
    spec = parse_spec(stage.Spec, data | chosen if isinstance(data, dict) else data)
    keep_freed_memory()
    if parsed.threads and RULES[rule].torch:
        import torch

        torch.set_num_threads(parsed.threads)
    paths = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}
    inputs = stage.Inputs(**{field.name: paths[field.name] for field in dataclasses.fields(stage.Inputs)})
    outputs = Outputs(**{name: paths[name] for name in RULES[rule].outputs})
    reserves = RULES[rule].torch == "gpu" and parsed.devices is not None
    with reserved(parsed.devices) if reserves else nullcontext(), enough_memory():
        started = time.time()
        print(logs.heading([command, *arguments], started), file=sys.stderr, flush=True)
        stage.run(spec, inputs, outputs)
        empty_gpu()
        print(logs.ending(started), file=sys.stderr, flush=True)


def keep_freed_memory() -> None:
    """Let glibc keep up to 1.5 GiB of freed memory: zeroing new pages takes 10 to 20 % of a job's time on a CPU.

    The heap gets this size at once, without pages. A block of 1 MiB or more that has no place in it is mapped alone,
    and unmapped when it is freed. A heap that grows for large blocks has no limit: a freed aligned block is too short
    for the next one of its size, unless memory next to it is free, too (glibc's bug 14581, seen in 2.36).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        if libc.mallopt(MMAP_THRESHOLD, 2**31 - 1):  # an older glibc refuses
            libc.free(libc.malloc(ctypes.c_size_t(KEPT)))
            libc.mallopt(MMAP_THRESHOLD, 2**20)


def empty_gpu() -> None:
    """Free cached GPU memory before the lock is released, because the next job measures the free memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise OutOfMemory if the block fails because memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        message = str(error).partition("\n")[0]
        raise OutOfMemory(
            f"out of memory ({message or 'Python gave no reason'}); use smaller batches, as `snakemake --retries 3` "
            "does, or a machine with more memory"
        ) from None


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Parse a command's options, run it, and return its exit code (0 by default)."""
    command = imported(f"shadowcore.commands.{name}")
    parser = argparse.ArgumentParser(prog=f"shadowcore {name}", description=COMMANDS[name])
    command.options(parser)
    return command.run(parser.parse_args(arguments)) or 0


if __name__ == "__main__":
    sys.exit(main())
