"""How large the kernels' pieces should be, on the GPU at hand: a few layers of published models, one size changed.

    python benchmarks/time_kernels.py [seconds] >> tuning.txt

Prints the selection timed alone, then milliseconds a token of 12 layers of each model, dense, and with random lists
of half and of a tenth of the units given (speed-up over dense beside them), then the same for several sequences.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time

import torch

from shadowcore.decode.cuda_graph import Replay
from shadowcore.decode.kernels import attention, batched_gemm, fused_norm, gemv, select
from shadowcore.decode.random_weights import random_layout, random_packed_predictor
from shadowcore.decode.selection import FixedSelection, PredictedSelection
from shadowcore.decode.triton_decoder import GraphDecoder
from shadowcore.measure import gpu_timing
from shadowcore.measure.gpu_timing import milliseconds
from shadowcore.method.policies import per_layer
from shadowcore.models.families import KINDS
from shadowcore.models.published import PUBLISHED

DEVICE = torch.device("cuda", 0)
LAYERS, POSITION, ROOM = 12, 128, 160
MODELS = ("opt-6.7b", "opt-30b", "llama-2-7b")
CHANGES = [
    {},
    {(gemv, "SUM_PROGRAMS"): 512},
    {(gemv, "SUM_PROGRAMS"): 264},
    {(gemv, "SUM_GROUP"): (16, 512)},
    {(gemv, "SUM_TILE"): 8192},
    {(gemv, "TILE"): 8192},
    {(gemv, "TILE"): 32768},
    {(fused_norm, "PIECE"): 32},
    {(fused_norm, "WARPS"): 2},
    {(fused_norm, "ADDENDS"): 64},
]
BATCH_CHANGES = [
    {},
    {(attention, "TOKENS"): 64, (attention, "WARPS"): 4},
    {(attention, "WARPS"): 2},
    {(attention, "PROGRAMS"): 4096},
    {(batched_gemm, "COLUMNS"): 256},
    {(batched_gemm, "ROWS"): 128, (batched_gemm, "STAGES"): 3},
    {(batched_gemm, "STAGES"): 3},
    {(batched_gemm, "SUM_COLUMNS"): 256},
    {(batched_gemm, "SUM_ROWS"): 128},
]


def said(changes: dict) -> str:
    names = (f"{module.__name__.rsplit('.', 1)[1]}.{name}={value}" for (module, name), value in changes.items())
    return ", ".join(names) or "as they are"


class Changed:
    """Sizes changed for a while."""

    def __init__(self, changes: dict):
        self.changes = changes

    def __enter__(self) -> None:
        self.before = {key: getattr(*key) for key in self.changes}
        for (module, name), value in self.changes.items():
            setattr(module, name, value)

    def __exit__(self, *_: object) -> None:
        for (module, name), value in self.before.items():
            setattr(module, name, value)


def selection_us(layers: int, units: int, ties: bool = False, times: int = 20) -> float:
    """Microseconds of one selection of half the units, of `times` in a graph; ties: every bit must be tried."""
    scores = torch.randn(layers, units, device=DEVICE)
    scores = scores.round() if ties else scores
    out = torch.empty(layers, units // 2, dtype=torch.int32, device=DEVICE)

    def work() -> None:
        for _ in range(times):
            select.select(scores, [select.Choice(0, units, units // 2, out)])

    replay = Replay(work, DEVICE)
    replay()
    return statistics.median(milliseconds(replay, DEVICE) for _ in range(20)) / times * 1e3


def lists(sizes, pct: int) -> FixedSelection:
    keep = {kind: per_layer(torch.rand(sizes.layers, sizes.units(kind), device=DEVICE), pct) for kind in KINDS}
    for mask in keep.values():
        mask[0] = True
    return FixedSelection(keep)


def step_ms(decoder: GraphDecoder) -> float:
    return statistics.median(gpu_timing.slope(decoder, POSITION, 4, 20) for _ in range(7))


def single(layout, name: str) -> str:
    dense = step_ms(GraphDecoder(layout, ROOM))
    half, tenth = (step_ms(GraphDecoder(layout, ROOM, lists(layout.sizes, pct))) for pct in (50, 90))
    rate = gpu_timing.weight_bytes(layout) / dense / 1e6
    return f"{name} {dense:.3f} ({rate:.0f} GB/s) {half:.3f} ({dense / half:.2f}x) {tenth:.3f} ({dense / tenth:.2f}x)"


def several(layout, name: str, sequences: int) -> str:
    ranks = dict.fromkeys(KINDS, 256)
    predictor = random_packed_predictor("shadow", layout.sizes, ranks, 1, 16, layout.dtype, DEVICE, 0)
    times = []
    for pct in (0, 50, 90):
        selection = PredictedSelection(predictor, "per_layer", dict.fromkeys(KINDS, pct)) if pct else None
        decoder = GraphDecoder(layout, ROOM, selection)
        decoder.reset(sequences)
        times.append(step_ms(decoder))
    return f"{name} x{sequences} {times[0]:.3f} {times[1]:.3f} {times[2]:.3f}"


def main(seconds: float) -> None:
    start = time.monotonic()
    print(f"# {LAYERS} layers, {torch.cuda.get_device_name()}, ms a token: dense, 50 %, 90 %")
    print(f"read or copied at up to {gpu_timing.read_ceiling(DEVICE):.0f} GB/s")
    for warps, piece in ((8, 4096), (8, 2048), (16, 4096), (16, 8192)):
        with Changed({(select, "WARPS"): warps, (select, "PIECE"): piece}):
            times = [f"{n}x{u} {selection_us(n, u):.1f}" for n in (1, 47) for u in (11008, 16384, 28672)]
            times += [f"47x28672 ties {selection_us(47, 28672, True):.1f}"]
            print(f"select, up to {warps} warps, {piece} places, us: {', '.join(times)}", flush=True)
    layouts = {}
    for name in MODELS:
        family, sizes = PUBLISHED[name]
        layouts[name] = random_layout(family, dataclasses.replace(sizes, layers=LAYERS), torch.bfloat16, DEVICE, 0, 0.1)
    for changes in CHANGES:
        if time.monotonic() - start < seconds * 0.75:
            with Changed(changes):
                print(f"{said(changes):45}", " | ".join(single(layouts[name], name) for name in MODELS), flush=True)
    for changes in BATCH_CHANGES:
        if time.monotonic() - start < seconds:
            with Changed(changes):
                found = (several(layouts[name], name, sequences) for name in MODELS[:2] for sequences in (2, 16))
                print(f"{said(changes):45}", " | ".join(found), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 300)
