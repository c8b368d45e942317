"""Train one predictor on traces of tokens and report how well it ranks units on held-out tokens."""

from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from shadowcore import artifacts
from shadowcore.method.policies import POLICIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, PREDICTOR_SCHEMA, TUNED_ONLY, TUNED_PROXIES, Predictor
from shadowcore.method.ranking import correlation, ranks, recall
from shadowcore.method.trace_dataset import TraceDataset, open_traces
from shadowcore.method.training import Recipe, fit, mean_scores, set_constants, target_of
from shadowcore.method.training_state import Checkpoint
from shadowcore.method.weight_quantization import stored
from shadowcore.models.families import Dimensions, Kind
from shadowcore.schemas import PREDICTORS, QUALITY
from shadowcore.stages.base import Frozen, Outputs, Progress, header, read_card
from shadowcore.stages.inputs import device

RESULTS = ("best_epoch", "loss_constant", "loss")  # of FitResult
JUDGED_AT_ONCE = 64  # tokens


class Spec(Frozen):
    """Names for the rows of the tables, the recipe, and sparsities and policies for recall and precision.

    seed: of training; text_seed: of the traced windows; traced_under: the predictor that masked the traced model, None
    for the dense model; base: the first predictor of its chain; rounds: number of retrainings since; tuned: whether it
    was tuned in the end.
    """

    model: str
    calibration: str
    method: str
    criterion: str | None
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


class Inputs(Frozen):
    card: Path
    traces: tuple[Path, ...]
    heldout: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"train {spec.method} {spec.criterion} {spec.predictor}")
    sizes = Dimensions(**read_card(inputs.card)["dimensions"])
    torch.manual_seed(spec.seed)
    recipe = spec.recipe
    if spec.method in TUNED_ONLY:
        recipe = replace(recipe, epochs=dict.fromkeys(recipe.epochs, 0))
    shape = (recipe.rank, recipe.segments, recipe.bits, recipe.block, recipe.scaling == "per_example")
    predictor = Predictor(spec.method, sizes, *shape).to(device())
    head = header("train-predictor", spec, inputs)
    checkpoint = Checkpoint(outputs.predictor, head)
    if spec.method in TUNED_PROXIES:  # gains of 1, and no trace has what they read
        write(predictor, [], [training_row(spec, predictor, "neurons", [], 0, 0)], outputs, head)
        return
    with ExitStack() as stack:
        train = open_traces(
            stack, inputs.traces, predictor, spec.criterion, spec.token_bits, recipe.examples, recipe.tokens
        )
        held = open_traces(stack, inputs.heldout, predictor, spec.criterion, spec.heldout_bits, recipe.examples)
        fits = fit(predictor, train, held, recipe, spec.seed, progress, checkpoint)
        if spec.method in TUNED_ONLY:
            set_constants(predictor, train.traces, spec.criterion)
        training = [training_row(spec, predictor, kind, fits[kind], len(train), recipe.epochs[kind]) for kind in fits]
        quality = rank_quality(spec, predictor, train, held)
    write(predictor, quality, training, outputs, head)
    checkpoint.remove()


def write(predictor: Predictor, quality: list, training: list, outputs: Outputs, head: dict) -> None:
    """Write a predictor and the rows about it."""
    tensors = stored(predictor.state_dict(), predictor.bits)
    artifacts.write_with_checksum(outputs.predictor, PREDICTOR_SCHEMA, tensors, head)
    artifacts.write_table(outputs.quality, QUALITY.schema, QUALITY.build(quality), head)
    artifacts.write_table(outputs.training, PREDICTORS.schema, PREDICTORS.build(training), head)


@torch.no_grad()
def rank_quality(spec: Spec, predictor: Predictor, train: TraceDataset, held: TraceDataset) -> list[dict]:
    """Rows of QUALITY on held-out tokens: of the predictor, and as `static` of the constant predictor.

    A predictor of windows has one row: Spearman's correlation of a window over the units of all layers, as published,
    with what was learned, because scores that are scaled within layers cannot be compared between them.
    """
    recipe, windows = spec.recipe, spec.recipe.examples == "windows"

    def truth(scores: torch.Tensor) -> torch.Tensor:
        return target_of(scores, recipe) if windows else scores

    measured: dict[tuple, list[torch.Tensor]] = {}  # kind, method, metric, policy, sparsity -> values (n, L - 1)
    for kind in predictor.kinds:
        constant = mean_scores(train, kind, recipe.batch, truth)[None, FIRST_SPARSE_LAYER:]
        static = order_of(constant, spec)
        for chunk in held.of([kind]).chunks():
            for index in torch.arange(len(chunk), device=held.device).split(JUDGED_AT_ONCE):
                true = order_of(truth(chunk.scores(kind, index))[:, FIRST_SPARSE_LAYER:], spec)
                scores = torch.cat([
                    scorer(chunk.feature(group.site, index))
                    for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True)
                ], 1)  # fmt: skip
                predicted = order_of(scores, spec, lambda values, kind=kind: predictor.spread(values, kind))
                for method, order in ((spec.method, predicted), ("static", static)):
                    for keys, values in judged(order, true).items():
                        measured.setdefault((kind, method, *keys), []).append(values.double())
    rows = []
    for (kind, method, metric, policy, pct), parts in measured.items():
        values, static = torch.cat(parts), method == "static"
        # the constant predictor depends on the traces only, so that of the dense model is the same for all seeds
        seed = spec.text_seed if static and spec.traced_under is None else spec.seed
        name = spec.traced_under if static and not windows else spec.predictor
        keys = {
            "model": spec.model, "calibration": spec.calibration, "criterion": spec.criterion, "method": method,
            "predictor": name, "seed": seed, "kind": kind,
            "metric": metric, "policy": policy, "sparsity_pct": pct, "n": len(values),
        }  # fmt: skip
        layers = [None] if windows else range(FIRST_SPARSE_LAYER, predictor.sizes.layers)
        means, errors = values.mean(0).tolist(), (values.std(0) / len(values) ** 0.5).tolist()
        rows += [
            keys | {"layer": layer, "value": mean, "stderr": error}
            for layer, mean, error in zip(layers, means, errors, strict=True)
        ]
    return rows


class Order(NamedTuple):
    """The order of units by scores (n, layers, U): ranks, and masks of the kept units by policy and sparsity.

    For predictors of windows: the ranks (n, 1, layers U) among the units of all layers.
    """

    metric: str
    ranks: torch.Tensor
    kept: dict[tuple[str, int], torch.Tensor]


def order_of(scores: torch.Tensor, spec: Spec, spread=lambda values: values) -> Order:
    """The order of units by scores. spread: repeats values of blocks for their units."""
    if spec.recipe.examples == "windows":
        return Order("spearman_of_examples", ranks(spread(scores).flatten(1))[:, None], {})
    pairs = product(spec.policies, spec.sparsities_pct)
    kept = {(policy, pct): spread(POLICIES[policy](scores, pct)) for policy, pct in pairs}
    return Order("spearman", ranks(spread(scores)), kept)


def judged(order: Order, true: Order) -> dict[tuple, torch.Tensor]:
    """All metrics (n, layers) of an order, which may be the same (1, layers, U) for all tokens."""
    values = {(order.metric, None, None): correlation(order.ranks, true.ranks)}
    for pair, kept in order.kept.items():
        values["recall", *pair] = recall(kept, true.kept[pair])
        values["precision", *pair] = recall(true.kept[pair], kept)
    return values


def training_row(spec: Spec, predictor: Predictor, kind: Kind, fits: list, tokens: int, epochs: int) -> dict:
    """One row of PREDICTORS; losses and best epochs are means over groups."""
    return {
        "model": spec.model, "calibration": spec.calibration, "method": spec.method, "criterion": spec.criterion,
        "predictor": spec.predictor, "seed": spec.seed, "base": spec.base, "rounds": spec.rounds, "tuned": spec.tuned,
        "kind": kind, "rank": predictor.ranks[kind],
        "groups": len(predictor.groups), "bits": predictor.bits, "block": predictor.blocks[kind],
        "parameters": sum(p.numel() for p in predictor.scorers[kind].parameters()),
        "step_bytes": predictor.step_bytes([kind]),
        "tokens": tokens, "epochs": epochs,
        **{n: sum(getattr(one, n) for one in fits) / len(fits) for n in RESULTS if fits},
    }  # fmt: skip
