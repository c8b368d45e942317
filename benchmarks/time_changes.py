"""Milliseconds of a step of a few layers with each change: python ahead.py time MODELS."""
import dataclasses, os, statistics, sys, time, json, subprocess
here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here); sys.path.insert(0, os.path.dirname(here))
import torch, time_kernels as t
from time_kernels import *
NAMES = sys.argv[2].split(",")
def G(**k): return {(gemv, n): v for n, v in k.items()}
S = dict(DOUBLE=True, SUM_TILE=8192)
V = [G(), G(LOOP=True, TILE=8192, PER=4), G(LOOP=True, TILE=8192, PER=5), G(LOOP=True, TILE=8192, PER=6), G(LOOP=True, TILE=16384, PER=3), G(LOOP=True, TILE=8192, PER=8),
     G(**S), G(**S, SUM_PROGRAMS=528), G(**S, SUM_PROGRAMS=660), G(LOOP=True, TILE=8192, PER=5, **S), G(LOOP=True, TILE=8192, PER=5, **S, SUM_PROGRAMS=528), G(LOOP=True, TILE=4096, PER=8), G(LOOP=True, TILE=8192, PER=5, WARPS=8), G()]
def made(name, L):
    family, sizes = PUBLISHED[name]
    return random_layout(family, dataclasses.replace(sizes, layers=L), torch.bfloat16, DEVICE, 0, 0.1)
def decoder(layout, pct):
    torch.manual_seed(pct)
    return GraphDecoder(layout, ROOM, lists(layout.sizes, pct) if pct else None)
if sys.argv[1] == "warm":
    for name in NAMES:
        layout = made(name, 3)
        for i in map(int, sys.argv[3].split(",")):
            with Changed(V[i]):
                for pct in (0, 50, 90):
                    d = decoder(layout, pct); d.go_to(POSITION); d.advance(2)
    torch.cuda.synchronize(); sys.exit()
start = time.monotonic()
logits = {}
for name in NAMES:
    L = {"opt-1.3b": 24}.get(name, 12)
    layout = made(name, L)
    ds = {}
    for i, c in enumerate(V):
        with Changed(c):
            for pct in (0, 50, 90):
                d = ds[i, pct] = decoder(layout, pct)
                gpu_timing.fill_cache(d, 0); d.go_to(POSITION)
                out = d.step(torch.tensor([5], device=DEVICE)).float()
                if i == 0: logits[pct] = out
                same = (out - logits[pct]).abs().max().item() / logits[pct].abs().max().item()
                if same > 0.02: print("DIFFERS", name, said(c), pct, same)
    times = {k: [] for k in ds}
    for _ in range(7):
        for k, d in ds.items(): times[k].append(gpu_timing.slope(d, POSITION, 4, 20))
    for i, c in enumerate(V):
        print(f"{name:11} {said(c):70}", " ".join(f"{statistics.median(times[i, p]):.4f}" for p in (0, 50, 90)), f"{time.monotonic()-start:.0f}s", flush=True)
    del ds, layout; torch.cuda.empty_cache()
