"""From traces to a predictor: seeded minibatch regression of scaled scores, best held-out epoch kept.

Training starts at the constant predictor (the mean scores), so held-out loss is measured in units of
what that one leaves: 1 means nothing contextual was learned.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from shadowcore.errors import ConfigError
from shadowcore.method.predictors import UnitScorer, stored

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


class TokenScores:
    """Scores (M, layers, U) of one group's layers, decoded batch by batch from traces on disk."""

    def __init__(self, parts, transform):
        """parts: callables index -> scores (m, layers, U), and their lengths."""
        self.parts, self.transform = parts, transform

    def __len__(self) -> int:
        return sum(length for _, length in self.parts)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        found, offset = None, 0
        for read, length in self.parts:
            inside = (index >= offset) & (index < offset + length)
            if inside.any():
                values = self.transform(read(index[inside] - offset))
                if found is None:
                    found = values.new_empty(len(index), *values.shape[1:])
                found[inside] = values
            offset += length
        return found


def fit(
    scorer: UnitScorer,
    features: torch.Tensor,
    scores: TokenScores,
    held_features: torch.Tensor,
    held_scores: TokenScores,
    recipe: Recipe,
    seed: int,
    progress=lambda done, total: None,
) -> Fit:
    """Train one scorer in place on M tokens: features (M, D), scores (M, layers, U)."""
    if len(features) < recipe.batch:
        raise ConfigError(f"predictors.batch: {recipe.batch} tokens, but the traces hold only {len(features)}")
    _standardise(scorer, features, scores, recipe.batch)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * (len(features) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)

    constant = held_out_loss(scorer, held_features, held_scores, recipe.batch)
    best = Fit(best_epoch=0, loss=constant, loss_constant=constant)
    kept = copy.deepcopy(scorer.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(features), generator=generator)
        for index in order.split(recipe.batch):
            if len(index) < recipe.batch:
                continue  # the last, smaller batch: another epoch will see its tokens
            loss = (scorer.deviation(features[index]) - _target(scorer, scores[index])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        held = held_out_loss(scorer, held_features, held_scores, recipe.batch)
        if held < best.loss:
            best, kept = Fit(epoch, held, constant), copy.deepcopy(scorer.state_dict())
        progress(epoch, recipe.epochs)
    scorer.load_state_dict(stored(kept))  # what a reader of the file will have, so that quality is measured of that
    return best


@torch.no_grad()
def held_out_loss(scorer: UnitScorer, features: torch.Tensor, scores: TokenScores, batch: int) -> float:
    """Mean squared error of the scaled scores over held-out tokens."""
    total, count = 0.0, 0
    for index in torch.arange(len(features)).split(batch):
        error = scorer.deviation(features[index]) - _target(scorer, scores[index])
        total, count = total + error.double().square().sum().item(), count + error.numel()
    return total / count


def _target(scorer: UnitScorer, scores: torch.Tensor) -> torch.Tensor:
    return (scores - scorer.score_mean) / scorer.score_scale


@torch.no_grad()
def _standardise(scorer: UnitScorer, features: torch.Tensor, scores: TokenScores, batch: int) -> None:
    """Set the scorer's scaling from training tokens: per number for features, per layer for scores."""
    scorer.feature_mean.copy_(features.mean(0))
    scorer.feature_scale.copy_(features.std(0).clamp(min=1e-6))
    total, squares = 0, 0
    for index in torch.arange(len(features)).split(batch):
        values = scores[index].double()
        total, squares = total + values.sum(0), squares + values.square().sum(0)
    mean = total / len(features)
    variance = (squares / len(features) - mean.square()).mean(-1, keepdim=True)  # within units, per layer
    scorer.score_mean.copy_(mean)
    scorer.score_scale.copy_(variance.clamp(min=1e-24).sqrt())
