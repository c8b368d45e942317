"""Times of every program of every kernel in a replayed step."""
import dataclasses, json, os, sys
import numpy as np, torch
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from shadowcore.decode.kernels import launch
from shadowcore.decode.random_weights import random_layout, random_packed_predictor
from shadowcore.decode.selection import PredictedSelection
from shadowcore.decode.triton_decoder import GraphDecoder
from shadowcore.measure import gpu_timing
from shadowcore.models.families import KINDS
from shadowcore.models.published import PUBLISHED
import time_kernels
OUT = os.environ["OUT"]; DEVICE = torch.device("cuda", 0)
plain = GraphDecoder.launch
def counted(self):
    launch.STAMPS["number"] = 0; launch.STAMPS["names"].clear()
    plain(self)
GraphDecoder.launch = counted
everything = {}
for name, L in (("opt-6.7b", 12), ("opt-1.3b", 24), ("llama-2-7b", 12), ("opt-30b", 12)):
    family, sizes = PUBLISHED[name]
    layout = random_layout(family, dataclasses.replace(sizes, layers=L), torch.bfloat16, DEVICE, 0, 0.1)
    for what in ("dense", "given50", "given90", "shadow50"):
        torch.manual_seed(0)
        def selection():
            if what == "dense": return None
            if what.startswith("given"): return time_kernels.lists(layout.sizes, int(what[5:]))
            p = random_packed_predictor("shadow", layout.sizes, dict.fromkeys(KINDS, 256), 1, 16, layout.dtype, DEVICE, 0)
            return PredictedSelection(p, "per_layer", dict.fromkeys(KINDS, 50))
        launch.STAMPS["buffer"] = None
        bare = time_kernels.step_ms(GraphDecoder(layout, 160, selection()))
        launch.STAMPS["buffer"] = torch.zeros(8 * L + 40, 16384, 4, dtype=torch.int64, device=DEVICE)
        decoder = GraphDecoder(layout, 160, selection())
        stamped = time_kernels.step_ms(decoder)
        launch.STAMPS["buffer"].zero_()
        decoder.go_to(130); decoder.advance(1); torch.cuda.synchronize()
        s = launch.STAMPS["buffer"].cpu().numpy(); names = list(launch.STAMPS["names"])
        rows = []
        for i, n in enumerate(names):
            v = s[i][s[i, :, 3] > 0]
            q = lambda c, p: float(np.percentile(v[:, c][v[:, c] > 0], p)) if (v[:, c] > 0).any() else float("nan")
            rows.append([n, len(v), *(q(c, p) for c in (0, 1, 2) for p in (0, 50, 100))])
        t0 = rows[0][2]
        for r in rows:
            r[2:] = [round((x - t0) / 1e3, 3) for x in r[2:]]
        print(f"## {name} {what}: {bare:.4f} ms bare, {stamped:.4f} stamped, step {max(r[-1] for r in rows):.1f} us; kernels {len(names)}")
        mid = L // 2
        per = [i for i, n in enumerate(names)]
        a = 1 + 7 * mid + (4 if what.startswith("shadow") else 0)
        for r in rows[a:a + 9]:
            print("  ", r[0].ljust(12), str(r[1]).rjust(6), " start %8.2f %8.2f %8.2f | waited %8.2f %8.2f %8.2f | end %8.2f %8.2f %8.2f" % tuple(r[2:]))
        everything[f"{name} {what}"] = {"bare": bare, "stamped": stamped, "rows": rows}
        del decoder
        if name in ("opt-6.7b", "opt-1.3b") and what in ("dense", "given50"):
            np.savez_compressed(f"{OUT}/{name}.{what}.npz", stamps=s[a:a + 8, :4200], names=names[a:a + 8])
    del layout; torch.cuda.empty_cache()
json.dump(everything, open(f"{OUT}/timeline.json", "w"))
