"""What scoring and masking cost beside the bare model, each ratio measured in one run, variants taking turns.

    python benchmarks/overheads.py results/quick/models/smollm2-135m/weights [--threads 1] [--repeats 5] [--rank 128]

Prints medians: criteria in one pass against a plain forward and backward pass to the activations and
against one pass per criterion; masked evaluation against dense evaluation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from shadowcore.measure.sparsity import FixedMasks, PredictedMasks, SparseModel, random_scores
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.gradient_capture import ImportancePass
from shadowcore.method.predictors import PREDICTORS, Predictor
from shadowcore.models.families import dimensions_of
from shadowcore.models.folders import load_model
from shadowcore.models.losses import all_scored, example_losses
from shadowcore.models.recording import frozen
from shadowcore.provenance import device_name

BATCH, TOKENS = 4, 128
KINDS = ("neurons",)
CORRELATIONS = ("jacov", "epenas")  # a matrix for every unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a model folder, such as results/quick/models/smollm2-135m/weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank", type=int, default=128, help="of the predictors of neurons")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.weights)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, dimensions_of(model.config).vocabulary, (BATCH, TOKENS), generator=generator)
    scored = all_scored(ids)
    print(f"{BATCH} x {TOKENS} tokens, {device_name()}, {arguments.threads} thread(s), median of {arguments.repeats}")
    for title, variants in (
        ("importance", scoring(model, ids, scored)),
        ("evaluation", evaluating(model, ids, scored, arguments.rank)),
    ):
        times = race(variants, arguments.repeats)
        base = next(iter(times.values()))
        for name, seconds in times.items():
            print(f"{title:12} {name:32} {seconds:7.3f} s   {seconds / base:5.2f} x")


def scoring(model, ids, scored) -> dict[str, Callable[[], None]]:
    """Plain pass first; then criteria in one pass, the cheap ones and more; then a pass for each of the cheap ones."""
    importance = ImportancePass(model)

    def plain() -> None:
        with frozen(model), torch.enable_grad():
            embedded = model.get_input_embeddings()(ids[:, :-1]).detach().requires_grad_()
            example_losses(model(inputs_embeds=embedded, use_cache=False).logits, ids, scored).sum().backward()

    def score(names) -> None:
        def see(site, signals) -> None:
            for name in names:
                CRITERIA[name].sequence(signals)

        importance(ids, scored, see, second_order=any(CRITERIA[name].order == 2 for name in names))

    first = [name for name, one in CRITERIA.items() if one.order < 2]
    sums = [name for name in first if name not in CORRELATIONS]
    return {
        "forward and backward": plain,
        f"{len(sums)} criteria, one pass": lambda: score(sums),
        f"{len(first)} with {', '.join(CORRELATIONS)}": lambda: score(first),
        f"all {len(CRITERIA)}, second order": lambda: score(CRITERIA),
        f"a pass for each of the {len(sums)}": lambda: [score([name]) for name in sums],
    }


def evaluating(model, ids, scored, rank: int) -> dict[str, Callable[[], None]]:
    """Dense first; then masked at 50 %."""
    sizes = dimensions_of(model.config)
    masks = {"dense": None, "static": FixedMasks(random_scores(sizes, KINDS, 0), "per_layer", 50)}
    for design in PREDICTORS:
        predictor = Predictor(design, sizes, {"neurons": rank})
        for scorer in predictor.scorers["neurons"]:
            torch.nn.init.normal_(scorer.outer.weight)
        masks[f"{design}, rank {rank}"] = PredictedMasks(predictor, KINDS, "per_layer", 50)
    return {name: lambda one=one: SparseModel(model, one).logits(ids, scored) for name, one in masks.items()}


def race(variants: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, after one warm-up turn."""
    times = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
