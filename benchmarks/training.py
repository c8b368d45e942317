"""How fast a predictor trains and how much memory it takes, on random traces of a published model's dimensions.

    python benchmarks/training.py smollm2-135m --tokens 250000 --rank 1024 --epochs 1
    python benchmarks/training.py opt-30b --tokens 2000 --rank 1024 --epochs 1

Prints seconds per epoch and per 1,000 tokens, and the peak memory of the GPU (of the process where there is none).
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method.predictors import Predictor
from shadowcore.method.score_quantization import encode
from shadowcore.method.trace_dataset import TraceDataset, open_traces
from shadowcore.method.tracing import SCHEMA, codes_name, feature_name, top_name
from shadowcore.method.training import Recipe, fit
from shadowcore.models.published import PUBLISHED

CRITERION, BITS, KINDS, HELD, SHARD = "plainact", 4, ("heads", "neurons"), 256, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=PUBLISHED)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True, help="hidden width for neurons; a quarter of it for heads")
    parser.add_argument("--design", default="segments")
    parser.add_argument("--segments", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    sizes = PUBLISHED[arguments.model].dimensions
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rank = {"heads": max(1, arguments.rank // 4), "neurons": arguments.rank}
    recipe = Recipe(rank, arguments.segments, "sqrt", dict.fromkeys(KINDS, arguments.epochs), 512, 1e-3, 0.01)
    predictor = Predictor(arguments.design, sizes, rank, arguments.segments).to(device)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def traces(tokens: int) -> TraceDataset:
            """Random traces, the same shard as often as it takes."""
            lengths = [min(SHARD, tokens - start) for start in range(0, tokens, SHARD)]
            return open_traces(stack, map(shard, lengths), predictor, CRITERION, BITS)

        def shard(length: int) -> Path:
            path = Path(folder) / f"{length}.safetensors"
            if not path.exists():
                tensors = {
                    feature_name(group.site): torch.randn(length, sizes.width).bfloat16() for group in predictor.groups
                }
                for kind in KINDS:
                    layers = [encode(torch.rand(length, sizes.units(kind)), BITS) for _ in range(sizes.layers)]
                    codes, top = zip(*layers, strict=True)
                    tensors |= {codes_name(CRITERION, kind): torch.stack(codes, 1)}
                    tensors |= {top_name(CRITERION, kind): torch.stack(top, 1)}
                artifacts.write_tensors(path, SCHEMA, tensors, {})
            return path

        train, held = traces(arguments.tokens), traces(HELD)
        started = time.perf_counter()
        fit(predictor, train, held, recipe, seed=0)
        seconds = time.perf_counter() - started
    if device.type == "cuda":
        where, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    else:
        where, peak = (
            f"CPU, {torch.get_num_threads()} threads",
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
    weights, rate = sum(weight.numel() for weight in predictor.parameters()), seconds / arguments.epochs
    print(f"{arguments.model}, {len(predictor.groups)} groups, rank {arguments.rank}, {weights:,} weights; {where}")
    print(f"{rate:.1f} s for an epoch of {arguments.tokens:,} tokens, scaling and held-out included")
    print(f"{1000 * rate / arguments.tokens:.3f} s per 1,000 tokens; peak memory {peak / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
