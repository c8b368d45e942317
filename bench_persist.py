"""The persistent layer on a GPU: checked against GraphDecoder, then timed in turns with it. Stays out of main.

    python bench_persist.py [seconds]     (results in $OUT, or the working directory: persist.jsonl, persist.log)

1. check: every variant and model in a process of its own, all at once (this also compiles): logits against
   GraphDecoder's, 50 tokens twice. 2. time: a process a model, only with variants that passed. 3. barriers: the time of
   a barrier and of an empty kernel. Every process has a time limit, because a wrong barrier hangs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

OUT = Path(os.environ.get("OUT", "."))
MODELS = ("opt-6.7b", "opt-1.3b", "llama-2-7b", "opt-30b")
ROOM, POSITION, LAYERS, CHECKED_LAYERS = 160, 128 - 24, 12, 3
ROUNDS, SHORT, LONG = 5, 4, 34
# module constants of persistent_layer; {} is what its file says
VARIANTS = {
    "as_is": {},
    "no_l2": {"AHEAD": 0, "BURST": 0},
    "far": {"AHEAD": 131072},
    "16_warps": {"WARPS": 16, "TILE": 32768, "REGISTERS": None},
    "2_of_4_warps": {"PER_PROCESSOR": 2, "WARPS": 4, "TILE": 8192, "AHEAD": 32768, "BURST": 65536},
    "2_of_8_warps": {"PER_PROCESSOR": 2, "AHEAD": 32768, "BURST": 65536},
    "early": {"LATE": 0},
    "alone": {"REGISTERS": None},
}
TRIED = {  # of the models; all of them for the first
    "opt-1.3b": ("as_is", "no_l2", "2_of_4_warps", "2_of_8_warps", "16_warps"),
    "llama-2-7b": ("as_is", "no_l2", "2_of_4_warps", "2_of_8_warps"),
    "opt-30b": ("as_is", "no_l2", "alone", "2_of_8_warps"),
}
MOST_AT_ONCE = 20  # processes that check


def tried(model):
    return TRIED.get(model, tuple(VARIANTS))


def note(row):
    with (OUT / "persist.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


class Changed:
    def __init__(self, name):
        from shadowcore.decode.kernels import persistent_layer

        self.module, self.changes = persistent_layer, VARIANTS.get(name, {})

    def __enter__(self):
        self.before = {key: getattr(self.module, key) for key in self.changes}
        for key, value in self.changes.items():
            setattr(self.module, key, value)

    def __exit__(self, *_):
        for key, value in self.before.items():
            setattr(self.module, key, value)


def layout_of(model, layers):
    import torch

    from shadowcore.decode.random_weights import random_layout
    from shadowcore.models.published import PUBLISHED

    family, sizes = PUBLISHED[model]
    device = torch.device("cuda", 0)
    return random_layout(family, dataclasses.replace(sizes, layers=layers), torch.bfloat16, device, 0, 0.1)


def lists(sizes, pct):
    import torch

    from shadowcore.decode.selection import FixedSelection
    from shadowcore.method.policies import per_layer
    from shadowcore.models.families import KINDS

    if not pct:
        return None
    torch.manual_seed(pct)
    keep = {
        kind: per_layer(torch.rand(sizes.layers, sizes.units(kind), device=torch.device("cuda", 0)), pct)
        for kind in KINDS
    }
    for mask in keep.values():
        mask[0] = True
    return FixedSelection(keep)


def made(cls, layout, pct, variant=None):
    """A decoder with a full cache and its graph."""
    from shadowcore.measure.gpu_timing import fill_cache

    with Changed(variant):
        decoder = cls(layout, ROOM, lists(layout.sizes, pct))
        fill_cache(decoder, 1)
        decoder.go_to(POSITION)
        decoder.advance(1)
    return decoder


def compared(ours, theirs):
    """The largest relative difference of the logits of 3 steps, and whether 50 tokens are the same twice."""
    import torch

    logits = []
    for decoder in (ours, theirs):
        decoder.go_to(POSITION)
        tokens = (torch.tensor([token], device=decoder.layout.device) for token in (5, 77, 1000))
        logits.append(torch.stack([decoder.step(token).float() for token in tokens]))
    worst = ((logits[0] - logits[1]).abs().amax() / logits[1].abs().amax()).item()
    runs = []
    for _ in range(3):
        ours.go_to(POSITION)
        first = torch.tensor([5], device=ours.layout.device)
        runs.append((ours.continued(first, 50), ours._scores.clone()))
    same = all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    return worst, same, bool(logits[0].isfinite().all())


def check(model, variant):
    from shadowcore.decode.persistent_decoder import PersistentDecoder
    from shadowcore.decode.triton_decoder import GraphDecoder

    start = time.monotonic()
    layout = layout_of(model, CHECKED_LAYERS)
    for pct in (50, 90, 0):
        ours, theirs = made(PersistentDecoder, layout, pct, variant), made(GraphDecoder, layout, pct)
        assert ours._layer is not None
        worst, same, finite = compared(ours, theirs)
        row = {"what": "check", "model": model, "variant": variant, "removed": pct, "difference": worst, "same": same}
        kernel = ours._layer.kernel
        row |= {"registers": getattr(kernel, "n_regs", None), "spills": getattr(kernel, "n_spills", None)}
        row["seconds"] = round(time.monotonic() - start)
        note(row | {"passed": finite and same and worst < 2e-2})


def timed(model, variants):
    from shadowcore.decode.persistent_decoder import PersistentDecoder
    from shadowcore.decode.triton_decoder import GraphDecoder
    from shadowcore.measure import gpu_timing

    layout = layout_of(model, LAYERS)
    for pct in (50, 90, 0):
        decoders = {"main": made(GraphDecoder, layout, pct)}
        for variant in variants:
            decoders[variant] = made(PersistentDecoder, layout, pct, variant)
        if variants and pct == 50:
            worst, same, finite = compared(decoders[variants[0]], decoders["main"])
            row = {"what": "check", "model": model, "variant": variants[0], "removed": pct, "layers": LAYERS}
            note(row | {"difference": worst, "same": same, "passed": finite and same and worst < 2e-2})
        times = {name: [] for name in decoders}
        for turn in range(ROUNDS + 1):
            for name, decoder in decoders.items():
                one = gpu_timing.slope(decoder, POSITION, SHORT, LONG)
                if turn:
                    times[name].append(one)
        main = statistics.median(times["main"])
        for name, several in times.items():
            ms = statistics.median(several)
            row = {"what": "time", "model": model, "variant": name, "removed": pct, "ms_per_token": round(ms, 4)}
            row |= {"lowest": round(min(several), 4), "highest": round(max(several), 4)}
            note(row | {"saved_us_per_layer": round((main - ms) / LAYERS * 1e3, 2)})


def barriers():
    import torch

    from shadowcore.decode.cuda_graph import Replay
    from shadowcore.decode.kernels.launch import options
    from shadowcore.measure.gpu_timing import milliseconds

    device = torch.device("cuda", 0)
    counter = torch.zeros(32, dtype=torch.int32, device=device)

    def us(launch):
        """Microseconds each of 200 more."""
        both = []
        for times in (200, 400):
            replay = Replay(lambda: launch(times), device)  # noqa: B023
            replay()
            both.append(statistics.median(milliseconds(replay, device) for _ in range(15)) * 1e3)
        return round((both[1] - both[0]) / 200, 3)

    out = torch.zeros(264, dtype=torch.int32, device=device)
    for programs in (132, 264):
        _where[(programs,)](out, num_warps=8)
        most = out[:programs].bincount().max().item()
        note({"what": "places", "programs": programs, "multiprocessors": len(out[:programs].unique()), "most": most})
    for programs in (132, 264):
        for warps in (4, 8):
            took = us(lambda times: _many[(programs,)](counter, times, PROGRAMS=programs, num_warps=warps))  # noqa: B023
            note({"what": "barrier", "programs": programs, "warps": warps, "us": took})
    for programs, warps in ((132, 8), (264, 8), (1056, 4)):

        def chain(times):
            for _ in range(times):
                _empty[(programs,)](counter, **options(device, warps))  # noqa: B023

        note({"what": "empty", "programs": programs, "warps": warps, "us": us(chain)})


def limited(jobs, seconds, at_once):
    """Run processes of this script, each for at most so many seconds; their exit codes."""
    running, codes, waiting = {}, {}, list(jobs)
    with (OUT / "persist.log").open("a") as log:
        while running or waiting:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                process = subprocess.Popen([sys.executable, __file__, *job], stdout=log, stderr=log)
                running[job] = process, time.monotonic()
            for job, (process, start) in list(running.items()):
                code = process.poll()
                if code is None and time.monotonic() - start > seconds:
                    process.kill()
                    process.wait()
                    code = "too long"
                if code is not None:
                    codes[job] = code
                    del running[job]
                    if code != 0:
                        note({"what": "failed", "job": job, "code": code})
            time.sleep(0.1)
    return codes


def passed():
    """Variants of each model whose checks passed, as far as they came; each starts with 50 %."""
    rows = [json.loads(line) for line in (OUT / "persist.jsonl").read_text().splitlines()]
    good = {}
    for row in rows:
        if row["what"] == "check" and "layers" not in row:
            good.setdefault((row["model"], row["variant"]), []).append(row["passed"])
    return {key for key, found in good.items() if all(found)}


def main(seconds):
    start = time.monotonic()
    (OUT / "persist.jsonl").touch()

    def left():
        return seconds - (time.monotonic() - start)

    limited([("check", model, variant) for model in MODELS for variant in tried(model)], 85, MOST_AT_ONCE)
    note({"what": "checked", "seconds": round(time.monotonic() - start)})
    good = passed()
    for model in MODELS:
        if left() > 10:
            variants = [variant for variant in tried(model) if (model, variant) in good]
            limited([("time", model, *variants)], min(45, left()), 1)
            note({"what": "timed", "model": model, "seconds": round(time.monotonic() - start)})
    if left() > 5:
        limited([("barriers",)], min(40, max(10, left())), 1)
    note({"what": "end", "seconds": round(time.monotonic() - start)})


if len(sys.argv) > 1 and sys.argv[1] == "barriers":  # kernels must be globals of a module's file
    import triton
    import triton.language as tl

    from shadowcore.decode.kernels.launch import pdl_launch_dependents, pdl_wait
    from shadowcore.decode.kernels.persistent_layer import _arrive, _wait

    @triton.jit(do_not_specialize=["times"])
    def _many(counter, times, PROGRAMS: tl.constexpr):
        for _ in range(times):
            arrived = _arrive(counter, PROGRAMS)
            _wait(counter, arrived, PROGRAMS)

    @triton.jit
    def _where(out):
        at = tl.inline_asm_elementwise(
            "{ mov.u32 $0, %smid; add.u32 $0, $0, $1; }", "=&r,r", [0], dtype=tl.int32, is_pure=False, pack=1
        )
        tl.store(out + tl.program_id(0), at)
        for _ in range(2000):  # until all have a place
            tl.debug_barrier()

    @triton.jit
    def _empty(counter, PDL: tl.constexpr):
        pdl_launch_dependents(PDL)
        pdl_wait(PDL)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["check"]:
        check(*arguments[1:])
    elif arguments[:1] == ["time"]:
        timed(arguments[1], arguments[2:])
    elif arguments[:1] == ["barriers"]:
        barriers()
    else:
        main(float(arguments[0]) if arguments else 150)
