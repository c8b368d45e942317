"""The `shadowcore` command: every stage of the study, and ways to look at its results.

A stage is called with a JSON specification and one option per file:

    shadowcore trace --spec '{"split": "train", ...}' --card ... --documents ... --trace ...
"""

from __future__ import annotations

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

from shadowcore import __version__, logs
from shadowcore.devices import reserved
from shadowcore.errors import ConfigError, OutOfMemory, ShadowcoreError, one_of, out_of_memory
from shadowcore.terminal import tolerant

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
STAGES = {
    "fetch-model": "get a model from its source, checked, as safetensors",
    "relufy": "make a ReLU model of another one by distilling it into itself",
    "prepare-text": "get a text, split it by document, write its multiple-choice task",
    "prepare-benchmark": "get a benchmark's documents, cut to a seeded subset",
    "gather-benchmarks": "put the documents of all benchmarks into one file",
    "check-disjoint": "refuse calibration documents among the evaluated ones",
    "trace": "importance scores and predictor features of one shard of a text",
    "trace-on-policy": "scores and features of a model while a predictor's masks act on it",
    "average": "mean score of every unit over the calibration windows",
    "calibrate-thresholds": "activations below which shares of every layer's neurons lie",
    "train-predictor": "train a predictor and report its ranking quality",
    "tune-predictor": "tune a predictor on the sparse model that its masks make",
    "evaluate": "accuracy and perplexity of conditions of one sparsity",
    "evaluate-oracle": "accuracy and perplexity with each example's own scores",
    "latency": "time per token of our decoder, dense and skipping",
    "latency-random": "time per token of a published model's dimensions with random weights",
    "aggregate": "final tables from every job's measurements",
    "judge-claims": "verdicts on the published claims from the final tables",
    "check-tables": "refuse final tables with values that cannot be",
    "draw": "draw a model's figures from the final tables",
    "write-page": "write a study's page: its figures, tables and origin in one HTML file",
}
COMMANDS = {
    "new": "write a commented configuration with defaults to config/NAME.yaml",
    "doctor": "what is wrong with this machine and environment, each with its fix",
    "fetch": "gather a study's models, texts and benchmarks for a machine without internet",
    "plan": "what a study will take: jobs, hours, disk and memory of every stage",
    "status": "which jobs of a study are done, run, failed or wait, and when the rest may end",
    "show": "print a study's final tables",
    "generate": "continue a prompt with a study's model, dense and sparse, with the speed of each",
    "diff": "which numbers of a study moved beyond noise between two runs",
    "explain": "by which command a file was made, from which files, by which code, on which device",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or another with one sentence on standard error."""
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
            "stages, as the rules of the Snakefile call them:",
            *stages,
            "",
            "before and after a study:",
            *others,
        ]
    )


def run_stage(name: str, arguments: Sequence[str]) -> None:
    """Parse a stage's options and run it."""
    stage = import_module(f"shadowcore.stages.{name.replace('-', '_')}").STAGE
    # after the import above: `--help` of shadowcore stays fast
    from shadowcore.stages.base import parse_spec, runtime_fields

    parser = argparse.ArgumentParser(
        prog=f"shadowcore {name}", description=STAGES[name], epilog=stage.spec.__doc__,
        fromfile_prefix_chars="@",  # @FILE: more arguments, one a line
    )  # fmt: skip
    keys = ", ".join(field.name for field in dataclasses.fields(stage.spec)) or "none"
    parser.add_argument("--spec", default="{}", metavar="JSON", help=f"what to do; keys: {keys}")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="CPU threads (default: torch's own)")
    devices_help = "GPUs to have alone, 0 to share one (default: those that CUDA shows, used by others or not)"
    parser.add_argument("--devices", type=int, default=None, metavar="N", help=devices_help)
    for name in runtime_fields(stage.spec):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help="no result depends on it")
    for part, what in ((stage.inputs, "input"), (stage.outputs, "output")):
        hints = typing.get_type_hints(part)
        for field in dataclasses.fields(part):
            many = hints[field.name] is not Path
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=Path, nargs="*" if many else None,
                default=() if many else None, required=not many, metavar="FILE", help=what,
            )  # fmt: skip
    parsed = parser.parse_args(arguments)
    try:
        data = json.loads(parsed.spec)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--spec: not JSON ({error}); it must be an object with the keys {keys}") from None
    chosen = {name: value for name in runtime_fields(stage.spec) if (value := getattr(parsed, name)) is not None}
    spec = parse_spec(stage.spec, data | chosen if isinstance(data, dict) else data)
    keep_freed_memory()
    if parsed.threads:
        import torch

        torch.set_num_threads(parsed.threads)
    files = [
        part(**{
            field.name: tuple(value) if isinstance(value := getattr(parsed, field.name), (list, tuple)) else value
            for field in dataclasses.fields(part)
        })
        for part in (stage.inputs, stage.outputs)
    ]  # fmt: skip
    with nullcontext() if parsed.devices is None else reserved(parsed.devices), enough_memory():
        started = time.time()
        print(logs.heading(words_of(parser, parsed), started), file=sys.stderr, flush=True)
        stage.run(spec, *files)
        empty_gpu()
        print(logs.ending(started), file=sys.stderr, flush=True)


def keep_freed_memory() -> None:
    """Have the C library keep what a step of work frees, up to 2 GiB, for the next step.

    glibc returns it to the system, which hands it out again in pages that it first sets to zero: a tenth of a trace's
    time on a CPU, a fifth of a training's. Other C libraries have no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 2**30)


def empty_gpu() -> None:
    """Give a GPU's memory back: the job that waits for its lock asks at once how much is free."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn what Python, and torch on either device, raise when memory is short into OutOfMemory."""
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


def words_of(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> list[str]:
    """The words after `shadowcore` that say what was asked, whichever way it was said."""
    words = [parser.prog.split()[-1]]
    for name, value in vars(parsed).items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if values and value is not None:
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Parse a command's options and run it; its exit code, 0 unless it says otherwise."""
    command = import_module(f"shadowcore.commands.{name}")
    parser = argparse.ArgumentParser(prog=f"shadowcore {name}", description=COMMANDS[name])
    command.options(parser)
    return command.run(parser.parse_args(arguments)) or 0


if __name__ == "__main__":
    sys.exit(main())
