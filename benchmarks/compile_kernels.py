"""Compile every kernel of our decoders for GPUs that are not there: registers, spilled bytes and shared memory.

    python benchmarks/compile_kernels.py [CAPABILITY ...]

A capability is a number such as 80 (A100), 89 (L4), 90 (H100, H200) or 100 (B200); without one, these four. The
decoders' own code launches the kernels, with models of published widths and few layers, but Triton only compiles them.
The exit code is 1 if a kernel needs more shared memory than the GPU gives a program.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from command_line import run as run_command
from markdown_tables import markdown
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from shadowcore.decode.kernels import batched_gemm, launch, low_bit, select
from shadowcore.decode.random_weights import random_layout
from shadowcore.errors import one_of
from shadowcore.measure.latency_variants import Design, Modes, variants
from shadowcore.models.published import PUBLISHED

compile_only = JITFunction.run  # `pretend` replaces it
SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}  # KiB a program, by capability
LAYERS, VOCABULARY, ROOM = 3, 1000, 160
MODELS = ("opt-1.3b", "llama-2-7b")
DESIGNS = (
    *(Design("shadow", 256, 256, bits=bits) for bits in (16, 8)),
    Design("layerwise", 256, 256),
    *(Design(method) for method in ("proxy4", "proxy3", "proxy4_ahead")),
)


class Compiled(NamedTuple):
    """What the assembler says of a kernel, numbers a thread; shared memory in bytes a program."""

    kernel: str
    registers: int
    stack: int
    shared: int


class NoGpu:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, _: int) -> int:
        return 0


def pretend(capability: int) -> list[tuple[str, Any]]:
    """From now on launches compile for this GPU; returns the list that gets each launch's kernel."""
    launched: list[tuple[str, Any]] = []
    triton.runtime.driver.set_active(NoGpu(capability))
    launch.overlaps = lambda _: capability >= 90
    for module in (select, low_bit):
        module.processors = lambda _: 132
    batched_gemm.shared_memory = lambda _: SHARED[capability] * 1024
    formats = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    batched_gemm._multiplied = lambda weight: formats[weight.dtype]  # as on a GPU

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launched.append((kernel.fn.__name__, compile_only(kernel, *arguments, grid=grid, warmup=True, **options)))

    JITFunction.run = run
    return launched


def decoders(model: str, batch: int, dtype: torch.dtype, designs: tuple[Design, ...]) -> Iterator[Any]:
    """A model's decoders with our kernels."""
    family, sizes = PUBLISHED[model]
    sizes = dataclasses.replace(sizes, layers=LAYERS, vocabulary=VOCABULARY)
    layout = random_layout(family, sizes, dtype, torch.device("cpu"), 0, 0.1)
    modes = Modes("both", (50,), designs, ("relu",), min(ROOM, sizes.positions), 0, batch)
    for _, _, make in variants(modes, layout, triton=True):
        yield make()


def resources(kernel: Any) -> tuple[int, int]:
    """Registers and stack bytes of a thread, as the assembler counted them."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return int(registers), int(stack)


def compiled(
    capability: int, models: tuple[str, ...] = MODELS, batches: tuple[int, ...] = (1, 2, 16, 64),
    dtype: torch.dtype = torch.bfloat16, designs: tuple[Design, ...] = DESIGNS,
) -> list[Compiled]:  # fmt: skip
    """Every kernel that steps of these decoders launch on a GPU of this capability, each once.

    Several sequences have the first design only.
    """
    launched = pretend(capability)
    for model in models:
        for batch in batches:
            for decoder in decoders(model, batch, dtype, designs if batch == 1 else designs[:1]):
                decoder.launch()
    kernels = {kernel.hash: (name, kernel) for name, kernel in launched}
    return sorted(Compiled(name, *resources(kernel), kernel.metadata.shared) for name, kernel in kernels.values())


def main(words: list[str]) -> int:
    known = {str(capability): capability for capability in SHARED}
    failed = False
    for capability in [known[one_of(word, known, "capability")] for word in words or ("80", "89", "90", "100")]:
        found = compiled(capability)
        print(f"\nTriton {triton.__version__}, capability {capability / 10:g}: {len(found)} kernels\n")
        lines = []
        for name in dict.fromkeys(one.kernel for one in found):
            several = [one for one in found if one.kernel == name]
            lines.append([name, len(several), *(max(numbers) for numbers in list(zip(*several, strict=True))[1:])])
        print(
            *markdown(["kernel", "versions", "most registers", "most stack bytes", "most shared bytes"], lines),
            sep="\n",
        )
        failed |= any(one.shared > SHARED[capability] * 1024 for one in found)
    return int(failed)


if __name__ == "__main__":
    run_command(main)
