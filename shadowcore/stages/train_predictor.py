"""Train one predictor on token traces and report how well it ranks held-out tokens' units."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.method.predictors import PREDICTOR_SCHEMA, Group, Predictor, stored
from shadowcore.method.ranking import recall, spearman
from shadowcore.method.training import TARGETS, Recipe, TokenScores, fit
from shadowcore.models.families import Dimensions, Kind
from shadowcore.schemas import PREDICTORS, QUALITY
from shadowcore.stages.base import Progress, Stage, header, read_card
from shadowcore.stages.inputs import device


@dataclass(frozen=True)
class Spec:
    """Names for the tables' rows, the recipe, and sparsities to report recall at."""

    model: str
    calibration: str
    method: str
    criterion: str
    predictor: str
    recipe: Recipe
    sparsities_pct: tuple[int, ...]
    token_bits: int
    heldout_bits: int
    seed: int


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


class Tokens:
    """Token traces of one split, shards joined: features and scores by group."""

    def __init__(self, stack: ExitStack, paths: tuple[Path, ...], criterion: str, bits: int, sizes: Dimensions, device):
        self.shards = [stack.enter_context(artifacts.open_tensors(path, tracing.SCHEMA)) for path in paths]
        self.criterion, self.bits, self.sizes, self.device = criterion, bits, sizes, device

    def features(self, group: Group) -> torch.Tensor:
        """(M, D) at the group's site."""
        return torch.cat([tracing.feature(shard, group.site).to(self.device) for shard in self.shards])

    def scores(self, group: Group, kind: Kind, target: str) -> TokenScores:
        """Transformed scores (M, layers, U) of the group's layers."""
        layers = slice(group.layers[0], group.layers[-1] + 1)
        units = self.sizes.units(kind)
        parts = [
            tracing.token_scores(shard, self.criterion, kind, layers, units, self.bits, self.device)
            for shard in self.shards
        ]
        return TokenScores(parts, TARGETS[target])


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"train {spec.method} {spec.criterion}")
    sizes = Dimensions(**read_card(inputs.card)["dimensions"])
    torch.manual_seed(spec.seed)
    predictor = Predictor(spec.method, sizes, spec.recipe.rank, spec.recipe.segments).to(device())
    training = []
    with ExitStack() as stack:
        train = Tokens(stack, inputs.traces, spec.criterion, spec.token_bits, sizes, device())
        held = Tokens(stack, inputs.heldout, spec.criterion, spec.heldout_bits, sizes, device())
        total = len(predictor.groups) * len(predictor.kinds)
        for kind in predictor.kinds:
            fits = []
            for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True):
                features, held_features = train.features(group), held.features(group)
                target = spec.recipe.target
                fits.append(
                    fit(
                        scorer, features, train.scores(group, kind, target),
                        held_features, held.scores(group, kind, target), spec.recipe, spec.seed,
                    )
                )  # fmt: skip
                progress(len(training) * len(predictor.groups) + len(fits), total)
            training.append(training_row(spec, predictor, kind, fits, len(features), spec.recipe.epochs))
        quality = rank_quality(spec, predictor, train, held)
    write(spec, predictor, quality, training, outputs, header("train-predictor", spec, inputs))


def write(spec: Spec, predictor: Predictor, quality: list, training: list, outputs: Outputs, made: dict) -> None:
    """Write a predictor and the rows about it."""
    artifacts.write_tensors(outputs.predictor, PREDICTOR_SCHEMA, stored(predictor.state_dict()), made)
    artifacts.write_table(outputs.quality, QUALITY.schema, QUALITY.build(quality), made)
    artifacts.write_table(outputs.training, PREDICTORS.schema, PREDICTORS.build(training), made)


def mean_scores(scores: TokenScores, batch: int) -> torch.Tensor:
    """The constant predictor: mean scores (layers, U) over the training tokens."""
    total = sum(scores[index].double().sum(0) for index in torch.arange(len(scores)).split(batch))
    return (total / len(scores)).float()


def rank_quality(spec: Spec, predictor: Predictor, train: Tokens, held: Tokens) -> list[dict]:
    """Rows of QUALITY: the predictor's on held-out tokens, and under `static` the constant predictor's."""
    return [
        row
        for kind in predictor.kinds
        for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True)
        for row in _rank_quality(spec, group, kind, scorer, train, held)
    ]


@torch.no_grad()
def _rank_quality(spec: Spec, group: Group, kind: Kind, scorer, train: Tokens, held: Tokens) -> list[dict]:
    features, constant = held.features(group), mean_scores(train.scores(group, kind, "score"), spec.recipe.batch)
    true = held.scores(group, kind, "score")[torch.arange(len(features))]  # (M, layers, U)
    rows = []
    for method, scores in ((spec.method, scorer(features)), ("static", constant.expand_as(true))):
        for i, layer in enumerate(group.layers):
            measures = {("spearman", None): spearman(scores[:, i], true[:, i])}
            measures |= {("recall", pct): recall(scores[:, i], true[:, i], pct) for pct in spec.sparsities_pct}
            for (metric, pct), values in measures.items():
                values = values.double()
                rows.append(
                    {
                        "model": spec.model, "calibration": spec.calibration, "criterion": spec.criterion,
                        "method": method, "predictor": spec.predictor if method == spec.method else None,
                        "seed": spec.seed, "kind": kind, "layer": layer, "metric": metric, "sparsity_pct": pct,
                        "value": values.mean().item(), "stderr": values.std().item() / len(values) ** 0.5,
                        "n": len(values),
                    }
                )  # fmt: skip
    return rows


def training_row(spec: Spec, predictor: Predictor, kind: Kind, fits: list, tokens: int, epochs: int) -> dict:
    """One row of PREDICTORS; losses and best epochs are means over groups."""
    return {
        "model": spec.model, "calibration": spec.calibration, "method": spec.method, "criterion": spec.criterion,
        "predictor": spec.predictor, "seed": spec.seed, "kind": kind, "rank": spec.recipe.rank[kind],
        "groups": len(predictor.groups), "parameters": sum(p.numel() for p in predictor.scorers[kind].parameters()),
        "tokens": tokens, "epochs": epochs,
        "best_epoch": sum(one.best_epoch for one in fits) / len(fits),
        "loss_constant": sum(one.loss_constant for one in fits) / len(fits),
        "loss": sum(one.loss for one in fits) / len(fits),
    }  # fmt: skip


STAGE = Stage(Spec, Inputs, Outputs, run)
