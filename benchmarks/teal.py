"""TEAL's sparse kernel, ours and cuBLAS on the matrices of Llama-2-7B: one token, float16 weights.

    python benchmarks/teal.py FOLDER_OF_TEAL OUT.parquet

FOLDER_OF_TEAL is a checkout of FasterDecoding/TEAL (GitHub) at commit 5baaec8645ce76368bd49eb05efb23f1da7edec6; only
its kernels/sparse_gemv.py is read, unchanged. OUT has a row for each shape, sparsity and kernel:
    cublas           the dense product, timed in turns with the kernels of each sparsity
    teal             skips the inputs whose absolute value is not above a threshold; it first sets its output to zero
    ours_threshold   skips the same inputs by the same rule; includes the kernel that adds up the partial sums
    ours             reads the listed rows: of kept outputs, or for `down` of kept inputs (and adds up the sums)
    ours_no_overlap  the same, but no kernel starts before the one ahead has ended
TEAL and `ours` skip different parts of a matrix, so compare the bytes that each needs (kept weights, the input and the
output, 2 bytes each) over the time: the median over replays of a CUDA graph with one product for each copy of the
weights. TEAL tunes itself for each shape and sparsity beforehand. Outputs are first checked against float64.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd
import torch
import triton.testing
from teal_tables import TABLE

from shadowcore import artifacts, provenance
from shadowcore.decode.cuda_graph import Replay
from shadowcore.decode.kernels.fused_norm import Normed, settle
from shadowcore.decode.kernels.gemv import NOTHING, accumulate, partial_sums, project
from shadowcore.decode.kernels.launch import Units, begin_row
from shadowcore.measure.gpu_timing import milliseconds, read_ceiling

DEVICE = torch.device("cuda", 0)
SHAPES = {"q, k, v, o": (4096, 4096), "gate, up": (4096, 11008), "down": (11008, 4096)}  # inputs, outputs
SPARSITIES, REPEATS, COPIES = (0.5, 0.7, 0.9), 25, 80  # with 80 copies of W a replay reads 270 MB; the L2 has 60 MB
TOLERANCE = 0.02  # of the largest output: TEAL adds up in float16


class Product(NamedTuple):
    """W x by kernels, which are launched for one copy of W after another; the last kernel returns the output."""

    exact: torch.Tensor  # (outputs,) float64, for copy 0
    weights_read: int
    kernels: tuple[Callable[[int], Any], ...]
    overlap: bool = True

    def run(self, copies: int) -> torch.Tensor:
        for copy in range(copies):
            for kernel in self.kernels:
                if copy == 0 or not self.overlap:
                    begin_row()
                out = kernel(copy)
        return out


def products(flat: torch.Tensor, inputs: int, outputs: int, sparsity: float, teal: Any) -> dict[str, Product]:
    """Every kernel. Each takes the same numbers `flat` (copies, inputs * outputs) in the order that it needs."""
    by_output, by_input = flat.view(-1, outputs, inputs), flat.view(-1, inputs, outputs)
    x = torch.randn(inputs, device=DEVICE).half()
    dropped, kept = x.abs().argsort().tensor_split([round(inputs * sparsity)])
    threshold, kept = float(x[dropped[-1]].abs()), kept.sort().values
    x[kept] *= 17 / 16  # float16 has ties: a gap above the threshold keeps the number of inputs exact
    rows = torch.randperm(outputs, device=DEVICE)[round(outputs * sparsity) :].sort().values  # kept outputs
    dense = by_output[0].double() @ x.double()
    by_threshold = x[kept].double() @ by_input[0, kept].double(), len(kept) * outputs

    def summed(a: torch.Tensor, *which: Any) -> Product:
        sums, total = partial_sums(outputs, len(a), 1, DEVICE), torch.zeros(1, outputs, device=DEVICE)
        add = partial(settle, sums, None, total, None, Normed.empty(1, outputs, torch.float16, DEVICE))
        kernels = (lambda i: accumulate(sums, a, by_input[i], *which), lambda i: add() or total)
        return Product(*by_threshold, kernels)

    def listed(overlap: bool) -> Product:
        index, out = kept if inputs > outputs else rows, torch.empty(len(rows), device=DEVICE)
        units = Units(index.int(), torch.tensor([len(index)], dtype=torch.int32, device=DEVICE))
        if inputs > outputs:
            return summed(x[kept].float(), units)._replace(overlap=overlap)
        kernels = (lambda i: project(x, by_output[i], NOTHING, out, units) or out,)
        return Product(dense[rows], len(rows) * inputs, kernels, overlap)

    x3, step = x.view(1, 1, -1), round(sparsity * 20)  # the authors of TEAL tune for each step of 5 %
    return {
        "cublas": Product(dense, inputs * outputs, (lambda i: torch.nn.functional.linear(x[None], by_output[i]),)),
        "teal": Product(*by_threshold, (lambda i: teal.splitk_sparse_gemv(x3, by_input[i].T, threshold, step),)),
        "ours_threshold": summed(x.float(), None, threshold),
        "ours": listed(overlap=True),
        "ours_no_overlap": listed(overlap=False),
    }


def microseconds(replay: Replay) -> float:
    """Time of one product: of four replays minus that of one, so that the cost of starting cancels."""
    first, all_four = (milliseconds(lambda n=n: [replay() for _ in range(n)], DEVICE) for n in (1, 4))
    return (all_four - first) / 3 / COPIES * 1e3


def measured(flat: torch.Tensor, shape: str, sparsity: float, teal: Any) -> Iterator[dict[str, Any]]:
    """A row for each kernel, checked and then timed."""
    kernels, errors = products(flat, *SHAPES[shape], sparsity, teal), {}
    for name, product in kernels.items():
        errors[name] = float((product.run(1).flatten() - product.exact).abs().max() / product.exact.abs().max())
        if not errors[name] <= TOLERANCE:
            raise SystemExit(f"{name}, {shape}, {sparsity:.0%}: error {errors[name]:.3g}, allowed is {TOLERANCE}")
    replays = {name: Replay(partial(product.run, COPIES), DEVICE) for name, product in kernels.items()}
    turns = [{name: microseconds(replay) for name, replay in replays.items()} for _ in range(REPEATS + 2)]
    row = {"shape": shape, "sparsity": sparsity, "teal_tuned": str(teal.splitk_sparse_gemv_kernel.best_config)}
    for name, us in pd.DataFrame(turns[2:]).median().items():
        size = 2 * (kernels[name].weights_read + sum(SHAPES[shape]))
        row |= {"kernel": name, "microseconds": us, "bytes": size, "gb_per_s": size / us / 1e3}
        yield row | {"max_relative_error": errors[name]}


def main(folder: str, out: str) -> None:
    sys.modules["compile_wrapper"] = SimpleNamespace(BaseKernel=object)  # TEAL's own, for torch.compile, needs msgspec
    sys.path.insert(0, f"{folder}/kernels")
    teal, rows = import_module("sparse_gemv"), []
    teal.splitk_sparse_gemv_kernel.do_bench = partial(triton.testing.do_bench, warmup=10, rep=40)  # milliseconds
    for shape, (inputs, outputs) in SHAPES.items():
        numbers = torch.empty(COPIES + 1, inputs * outputs, dtype=torch.float16, device=DEVICE).normal_(std=0.02)
        for sparsity in SPARSITIES:  # one copy is not used, because TEAL's larger blocks read past the last weight
            rows += measured(numbers[:COPIES], shape, sparsity, teal)
    table = pd.DataFrame(rows).assign(ceiling_gb_per_s=read_ceiling(DEVICE), gpu=torch.cuda.get_device_name(DEVICE))
    table["share_of_ceiling"] = table["gb_per_s"] / table["ceiling_gb_per_s"]
    header = {"made by": "python benchmarks/teal.py", "run": provenance.run_information()}
    artifacts.write_table(Path(out), TABLE.schema, TABLE.build(table.to_dict("records")), header)
    print(table.drop(columns="teal_tuned").to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
