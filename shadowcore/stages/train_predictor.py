"""Train one predictor on token traces and report how well it ranks held-out tokens' units."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.method.policies import POLICIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, PREDICTOR_SCHEMA, Predictor
from shadowcore.method.ranking import correlation, ranks, recall
from shadowcore.method.trace_dataset import TraceDataset
from shadowcore.method.training import Recipe, fit, mean_scores
from shadowcore.method.training_state import Checkpoint
from shadowcore.method.weight_quantization import stored
from shadowcore.models.families import Dimensions, Kind
from shadowcore.schemas import PREDICTORS, QUALITY
from shadowcore.stages.base import Progress, Stage, header, read_card
from shadowcore.stages.inputs import device

JUDGED_AT_ONCE = 64  # tokens


@dataclass(frozen=True)
class Spec:
    """Names for the tables' rows, the recipe, and what recall and precision are reported of.

    seed: of the training; text_seed: of the windows whose traces it reads; traced_under: the predictor whose masks
    acted while they were made, None for the dense model's. base: the first predictor of its chain; rounds: how often
    it was retrained since; tuned: whether it was tuned in the end.
    """

    model: str
    calibration: str
    method: str
    criterion: str
    predictor: str
    recipe: Recipe
    sparsities_pct: tuple[int, ...]
    policies: tuple[str, ...]
    token_bits: int
    heldout_bits: int
    seed: int
    text_seed: int
    traced_under: str | None
    base: str
    rounds: int
    tuned: bool


@dataclass(frozen=True)
class Inputs:
    card: Path
    traces: tuple[Path, ...]
    heldout: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    predictor: Path
    quality: Path
    training: Path


def open_traces(stack: ExitStack, paths: tuple[Path, ...], spec: Spec, bits: int, predictor: Predictor) -> TraceDataset:
    """What a predictor learns from or is judged by, open as long as the stack is."""
    opened = [stack.enter_context(artifacts.open_tensors(path, tracing.SCHEMA)) for path in paths]
    sites = [group.site for group in predictor.groups]
    return TraceDataset(opened, spec.criterion, bits, predictor.sizes, predictor.kinds, sites, device())


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"train {spec.method} {spec.criterion} {spec.predictor}")
    sizes = Dimensions(**read_card(inputs.card)["dimensions"])
    torch.manual_seed(spec.seed)
    recipe = spec.recipe
    predictor = Predictor(spec.method, sizes, recipe.rank, recipe.segments, recipe.bits, recipe.block).to(device())
    made = header("train-predictor", spec, inputs)
    checkpoint = Checkpoint(outputs.predictor, made)
    with ExitStack() as stack:
        train = open_traces(stack, inputs.traces, spec, spec.token_bits, predictor)
        held = open_traces(stack, inputs.heldout, spec, spec.heldout_bits, predictor)
        fits = fit(predictor, train, held, recipe, spec.seed, progress, checkpoint)
        training = [training_row(spec, predictor, kind, fits[kind], len(train), recipe.epochs[kind]) for kind in fits]
        quality = rank_quality(spec, predictor, train, held)
    write(spec, predictor, quality, training, outputs, made)
    checkpoint.remove()


def write(spec: Spec, predictor: Predictor, quality: list, training: list, outputs: Outputs, made: dict) -> None:
    """Write a predictor and the rows about it."""
    artifacts.write_with_checksum(
        outputs.predictor, PREDICTOR_SCHEMA, stored(predictor.state_dict(), predictor.bits), made
    )
    artifacts.write_table(outputs.quality, QUALITY.schema, QUALITY.build(quality), made)
    artifacts.write_table(outputs.training, PREDICTORS.schema, PREDICTORS.build(training), made)


@torch.no_grad()
def rank_quality(spec: Spec, predictor: Predictor, train: TraceDataset, held: TraceDataset) -> list[dict]:
    """Rows of QUALITY: the predictor's on held-out tokens, and under `static` the constant predictor's."""
    found: dict[tuple, list[torch.Tensor]] = {}  # kind, method, metric, policy, sparsity -> values (n, L - 1)
    for kind in predictor.kinds:
        constant = mean_scores(train, kind, spec.recipe.batch)[None, FIRST_SPARSE_LAYER:]
        static = order_of(constant, spec)
        for chunk in held.of([kind]).chunks():
            for index in torch.arange(len(chunk), device=held.device).split(JUDGED_AT_ONCE):
                true = order_of(chunk.scores(kind, index)[:, FIRST_SPARSE_LAYER:], spec)
                scores = torch.cat([
                    scorer(chunk.feature(group.site, index))
                    for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True)
                ], 1)  # fmt: skip
                predicted = order_of(scores, spec, lambda values, kind=kind: predictor.spread(values, kind))
                for method, order in ((spec.method, predicted), ("static", static)):
                    for keys, values in judged(order, true).items():
                        found.setdefault((kind, method, *keys), []).append(values.double())
    rows = []
    for (kind, method, metric, policy, pct), parts in found.items():
        values, static = torch.cat(parts), method == "static"
        # the constant predictor is that of the traces, and learns nothing: one of the dense model's for all seeds
        seed = spec.text_seed if static and spec.traced_under is None else spec.seed
        keys = {
            "model": spec.model, "calibration": spec.calibration, "criterion": spec.criterion, "method": method,
            "predictor": spec.traced_under if static else spec.predictor, "seed": seed, "kind": kind,
            "metric": metric, "policy": policy, "sparsity_pct": pct, "n": len(values),
        }  # fmt: skip
        means, errors = values.mean(0).tolist(), (values.std(0) / len(values) ** 0.5).tolist()
        rows += [
            keys | {"layer": layer, "value": mean, "stderr": error}
            for layer, (mean, error) in enumerate(zip(means, errors, strict=True), FIRST_SPARSE_LAYER)
        ]
    return rows


class Order(NamedTuple):
    """How scores order the units (n, layers, U): ranks, and by policy and sparsity the masks of what is kept."""

    ranks: torch.Tensor
    kept: dict[tuple[str, int], torch.Tensor]


def order_of(scores: torch.Tensor, spec: Spec, spread=lambda values: values) -> Order:
    """The order of some scores; `spread`: makes those of blocks, and their masks, those of units."""
    pairs = product(spec.policies, spec.sparsities_pct)
    return Order(ranks(spread(scores)), {(policy, pct): spread(POLICIES[policy](scores, pct)) for policy, pct in pairs})


def judged(order: Order, true: Order) -> dict[tuple, torch.Tensor]:
    """Every measure (n, layers) of an order, which may be one (1, layers, U) for all tokens."""
    found = {("spearman", None, None): correlation(order.ranks, true.ranks)}
    for pair, kept in order.kept.items():
        found["recall", *pair] = recall(kept, true.kept[pair])
        found["precision", *pair] = recall(true.kept[pair], kept)
    return found


def training_row(spec: Spec, predictor: Predictor, kind: Kind, fits: list, tokens: int, epochs: int) -> dict:
    """One row of PREDICTORS; losses and best epochs are means over groups."""
    return {
        "model": spec.model, "calibration": spec.calibration, "method": spec.method, "criterion": spec.criterion,
        "predictor": spec.predictor, "seed": spec.seed, "base": spec.base, "rounds": spec.rounds, "tuned": spec.tuned,
        "kind": kind, "rank": spec.recipe.rank[kind],
        "groups": len(predictor.groups), "bits": predictor.bits, "block": predictor.blocks[kind],
        "parameters": sum(p.numel() for p in predictor.scorers[kind].parameters()),
        "step_bytes": predictor.step_bytes([kind]),
        "tokens": tokens, "epochs": epochs,
        "best_epoch": sum(one.best_epoch for one in fits) / len(fits),
        "loss_constant": sum(one.loss_constant for one in fits) / len(fits),
        "loss": sum(one.loss for one in fits) / len(fits),
    }  # fmt: skip


STAGE = Stage(Spec, Inputs, Outputs, run)
