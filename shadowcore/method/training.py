"""From traces to a predictor: seeded minibatch regression of scaled scores, best held-out epoch kept.

All of a predictor's scorers learn from one reading of the traces. Training starts at the constant predictor
(the mean scores), so held-out loss is measured in units of what that one leaves: 1 means nothing contextual
was learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from shadowcore.errors import ConfigError
from shadowcore.method.predictors import Group, Predictor, UnitScorer, stored
from shadowcore.method.tokens import Chunk, TokenTraces
from shadowcore.models.families import Kind

# what is regressed on, each increasing in the score, so that the order of units is untouched
TARGETS = {"score": lambda scores: scores, "sqrt": torch.sqrt}


@dataclass(frozen=True)
class Recipe:
    """How a predictor is trained; segments: its number of groups, where the design has a choice."""

    rank: dict[str, int]
    segments: int
    target: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Fit:
    """What came of training one scorer: held-out losses relative to the constant predictor's."""

    best_epoch: int
    loss: float
    loss_constant: float


Transform = Callable[[torch.Tensor], torch.Tensor]


def fit(
    predictor: Predictor,
    train: TokenTraces,
    held: TokenTraces,
    recipe: Recipe,
    seed: int,
    progress=lambda done, total: None,
) -> dict[Kind, list[Fit]]:
    """Train every scorer of a predictor in place; of each the epoch that is best on held-out tokens is kept."""
    if len(train) < recipe.batch:
        raise ConfigError(f"predictors.batch: {recipe.batch} tokens, but the traces hold only {len(train)}")
    transform = TARGETS[recipe.target]
    _standardise(predictor, train, recipe.batch, transform)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * train.batches(recipe.batch))
    generator = torch.Generator().manual_seed(seed)

    scorers = [scorer for kind in predictor.kinds for scorer in predictor.scorers[kind]]
    constant = held_out_losses(predictor, held, recipe.batch, transform)
    best = [Fit(best_epoch=0, loss=loss, loss_constant=loss) for loss in constant]
    kept = [copy.deepcopy(scorer.state_dict()) for scorer in scorers]
    for epoch in range(1, recipe.epochs + 1):
        for chunk, index in train.shuffled(recipe.batch, generator):
            loss = sum(error.square().mean() for error in _errors(predictor, chunk, index, transform))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        for i, loss in enumerate(held_out_losses(predictor, held, recipe.batch, transform)):
            if loss < best[i].loss:
                best[i], kept[i] = Fit(epoch, loss, constant[i]), copy.deepcopy(scorers[i].state_dict())
        progress(epoch, recipe.epochs)
    for scorer, state in zip(scorers, kept, strict=True):
        scorer.load_state_dict(
            stored(state)
        )  # what a reader of the file will have, so that quality is measured of that
    fits = iter(best)
    return {kind: [next(fits) for _ in predictor.groups] for kind in predictor.kinds}


@torch.no_grad()
def held_out_losses(predictor: Predictor, held: TokenTraces, batch: int, transform: Transform) -> list[float]:
    """Mean squared error of the scaled scores over held-out tokens, of every scorer, kind by kind."""
    totals, counts = [], []
    for chunk in held.chunks():
        for index in torch.arange(len(chunk), device=held.device).split(batch):
            errors = list(_errors(predictor, chunk, index, transform))
            totals.append(torch.stack([error.square().sum(dtype=torch.float64) for error in errors]))
            counts.append([error.numel() for error in errors])
    return (torch.stack(totals).sum(0).cpu() / torch.tensor(counts).sum(0)).tolist()


def mean_scores(traces: TokenTraces, kind: Kind, batch: int) -> torch.Tensor:
    """Mean scores (L, U) over all tokens."""
    total = 0
    for chunk in traces.chunks():
        for index in torch.arange(len(chunk), device=traces.device).split(batch):
            total = total + chunk.scores(kind, index).sum(0, dtype=torch.float64)
    return (total / len(traces)).float()


def _errors(predictor: Predictor, chunk: Chunk, index: torch.Tensor, transform: Transform) -> Iterator[torch.Tensor]:
    """What every scorer's scaled deviations (n, layers, U) miss, kind by kind."""
    for group, scorer, scores in _targets(predictor, chunk, index, transform):
        wanted = (scores - scorer.score_mean) / scorer.score_scale
        yield scorer.deviation(chunk.feature(group.site, index)) - wanted


def _targets(
    predictor: Predictor, chunk: Chunk, index: torch.Tensor, transform: Transform
) -> Iterator[tuple[Group, UnitScorer, torch.Tensor]]:
    """Every scorer with the transformed scores (n, layers, U) of its layers."""
    for kind in predictor.kinds:
        scores = transform(chunk.scores(kind, index))
        for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True):
            yield group, scorer, scores[:, group.layers[0] : group.layers[-1] + 1]


@torch.no_grad()
def _standardise(predictor: Predictor, train: TokenTraces, batch: int, transform: Transform) -> None:
    """Set the scorers' scaling from training tokens: per number for features, per layer for scores."""
    sums: dict[tuple[UnitScorer, str], list] = {}

    def count(scorer: UnitScorer, what: str, values: torch.Tensor) -> None:
        found = sums.setdefault((scorer, what), [0, 0])
        found[0] = found[0] + values.sum(0, dtype=torch.float64)
        found[1] = found[1] + values.square().sum(0, dtype=torch.float64)

    for chunk in train.chunks():
        for index in torch.arange(len(chunk), device=train.device).split(batch):
            for group, scorer, scores in _targets(predictor, chunk, index, transform):
                count(scorer, "feature", chunk.feature(group.site, index))
                count(scorer, "score", scores)
    for (scorer, what), (total, squares) in sums.items():
        mean = total / len(train)
        variance = squares / len(train) - mean.square()
        if what == "feature":
            scorer.feature_scale.copy_(variance.clamp(min=1e-12).sqrt())
        else:  # within units, per layer
            scorer.score_scale.copy_(variance.mean(-1, keepdim=True).clamp(min=1e-24).sqrt())
        getattr(scorer, f"{what}_mean").copy_(mean)
