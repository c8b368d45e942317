"""From traces to a predictor: seeded minibatch regression of scaled scores, best held-out epoch kept.

All scorers of a predictor learn from one reading of the traces. Training starts at the constant predictor, which
returns the mean scores. If the held-out loss is that of the constant predictor, nothing about the context was learned.
ShadowLLM's recipe is `scaling: min_max` with `target: score`, and more epochs for heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from shadowcore.errors import ConfigError
from shadowcore.method.predictors import Predictor, UnitScorer
from shadowcore.method.stacks import Stack, stacks_of
from shadowcore.method.trace_dataset import Chunk, TraceDataset
from shadowcore.method.training_state import Checkpoint, Descent, FitResult, TrainingState
from shadowcore.method.weight_quantization import power_of_two, restored, stored
from shadowcore.models.families import Kind

# functions of the scores that a predictor learns; each is increasing, so that it keeps the order of units
TARGETS = {
    "score": lambda scores: scores,
    "sqrt": torch.sqrt,
    "rank": lambda scores: scores.argsort(dim=-1, stable=True).argsort(-1) / scores.shape[-1],  # within a layer, 0 to 1
}


@dataclass(frozen=True)
class Recipe:
    """How a predictor is trained, ranks and epochs by kind of unit.

    segments: its number of groups, where the design has a choice; scaling: one of SCALINGS; bits: of a weight; block:
    neighbouring neurons with one score, their mean; tokens: how many are trained on, None for all.
    """

    rank: dict[str, int]
    segments: int
    target: str
    epochs: dict[str, int]
    batch: int
    learning_rate: float
    weight_decay: float
    scaling: str = "standard"
    bits: int = 16
    block: int = 1
    tokens: int | None = None


# features, each number by itself, and targets, each layer by itself, are learned with mean 0 and deviation 1, or
# between 0 and 1 (published)
SCALINGS = ("standard", "min_max")

Stacks = Mapping[Kind, list[Stack]]


def fit(
    predictor: Predictor,
    train: TraceDataset,
    held: TraceDataset,
    recipe: Recipe,
    seed: int,
    progress=lambda done, total: None,
    checkpoint: Checkpoint | None = None,
) -> dict[Kind, list[FitResult]]:
    """Train every scorer of a predictor in place, and keep its best epoch on held-out tokens."""
    if len(train) < recipe.batch:
        raise ConfigError(f"predictors.batch: {recipe.batch} tokens, but the traces hold only {len(train)}")
    stacks = {kind: stacks_of(predictor, kind, recipe.batch) for kind in predictor.kinds}
    _scale(predictor, stacks, train, recipe)
    generator = torch.Generator().manual_seed(seed)
    batches, epochs = train.batches(recipe.batch), max(recipe.epochs[kind] for kind in predictor.kinds)
    descents = {
        kind: Descent(
            [weight for stack in stacks[kind] for weight in stack.parameters.values()],
            recipe.learning_rate, recipe.weight_decay, recipe.epochs[kind] * batches,
        )
        for kind in predictor.kinds
    }  # fmt: skip
    begin = held_out_losses(predictor, stacks, held, recipe)
    state = TrainingState(predictor, _scorers(predictor), descents, generator, begin)
    if checkpoint:
        checkpoint.resume(state)
    for epoch in range(state.epoch + 1, epochs + 1):
        learning = tuple(kind for kind in predictor.kinds if epoch <= recipe.epochs[kind])
        for chunk, index in train.of(learning).shuffled(recipe.batch, generator):
            for stack, scores in _targets(predictor, stacks, chunk, index, recipe):
                stack.loss(chunk, index, scores).backward()
            for kind in learning:
                descents[kind].step()
        state.finish(epoch, held_out_losses(predictor, stacks, held.of(learning), recipe))
        if checkpoint:
            checkpoint.save(state)
        progress(epoch, epochs)
    for name, scorer in state.parts.items():
        # rounded as in the file, so that quality is measured of the same weights; no longer views of a stack
        scorer.load_state_dict(restored(stored(state.kept[name], recipe.bits)), assign=True)
    return {kind: [state.best[name] for name in _scorers(predictor, [kind])] for kind in predictor.kinds}


def _scorers(predictor: Predictor, kinds: Iterable[Kind] | None = None) -> dict[str, UnitScorer]:
    """The scorers of all or some kinds, by names such as neurons.0."""
    kinds = predictor.kinds if kinds is None else kinds
    return {f"{kind}.{i}": scorer for kind in kinds for i, scorer in enumerate(predictor.scorers[kind])}


@torch.no_grad()
def held_out_losses(predictor: Predictor, stacks: Stacks, held: TraceDataset, recipe: Recipe) -> dict[str, float]:
    """Mean squared error of the scaled scores over held-out tokens, for every scorer of the traces' kinds."""
    totals = 0
    for chunk in held.chunks():
        for index in torch.arange(len(chunk), device=held.device).split(recipe.batch):
            found = [
                stack.squared_errors(chunk, index, scores)
                for stack, scores in _targets(predictor, stacks, chunk, index, recipe)
            ]
            totals = totals + torch.cat(found)
    scorers = _scorers(predictor, held.kinds)
    counts = [len(held) * scorer.layers * scorer.units for scorer in scorers.values()]
    return dict(zip(scorers, (totals.cpu() / torch.tensor(counts)).tolist(), strict=True))


def mean_scores(traces: TraceDataset, kind: Kind, batch: int) -> torch.Tensor:
    """Mean scores (L, U) over all tokens."""
    total = 0
    for chunk in traces.chunks():
        for index in torch.arange(len(chunk), device=traces.device).split(batch):
            total = total + chunk.scores(kind, index).sum(0, dtype=torch.float64)
    return (total / len(traces)).float()


def _targets(
    predictor: Predictor, stacks: Stacks, chunk: Chunk, index: torch.Tensor, recipe: Recipe
) -> Iterator[tuple[Stack, torch.Tensor]]:
    """Every stack with the transformed scores (n, layers, U) of its layers; a block's is the mean of its units'."""
    for kind in chunk.packed:
        scores, block = chunk.scores(kind, index), predictor.blocks[kind]
        scores = TARGETS[recipe.target](scores if block == 1 else predictor.gathered(scores, kind) / block)
        for stack in stacks[kind]:
            yield stack, scores[:, stack.layers]


@torch.no_grad()
def _scale(predictor: Predictor, stacks: Stacks, train: TraceDataset, recipe: Recipe) -> None:
    """Set the scorers' scaling from training tokens: per number for features, per layer for scores."""
    found: dict[tuple[Stack, str], Spread] = {}
    for chunk in train.chunks():
        for index in torch.arange(len(chunk), device=train.device).split(recipe.batch):
            for stack, scores in _targets(predictor, stacks, chunk, index, recipe):
                found.setdefault((stack, "feature"), Spread()).add(stack.features(chunk, index).transpose(0, 1))
                found.setdefault((stack, "score"), Spread()).add(scores)
    for (stack, what), spread in found.items():
        # squared gradients of a token are small numbers, and their differences between units are smaller
        least, of_layer = (1e-18, True) if what == "score" else (1e-6, False)
        if recipe.scaling == "standard":
            begin, size = spread.mean, (spread.variance.mean(-1, keepdim=True) if of_layer else spread.variance)
            size = size.clamp(min=least**2).sqrt()
        else:
            begin, end = spread.low, spread.high
            if of_layer:
                begin, end = begin.amin(-1, keepdim=True), end.amax(-1, keepdim=True)
            size = (end - begin).clamp(min=least)
        values = {part: stack.values[f"{what}_{part}"] for part in ("mean", "scale")}
        mean, scale = (value.flatten(0, 1) if of_layer else value for value in values.values())
        scale.copy_(power_of_two(size) if recipe.bits == 8 else size)
        mean.copy_(begin.expand_as(mean))
        if of_layer and recipe.scaling != "standard":  # training starts at the mean, not where the scale begins
            bias = stack.values["outer.bias"]
            bias.copy_(((spread.mean - mean) / scale).view_as(bias))


class Spread:
    """Mean, variance and extremes of examples (n, ...) that come in batches."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.low = self.high = None

    def add(self, values: torch.Tensor) -> None:
        """Count some examples in."""
        self.count += len(values)
        self.total = self.total + values.sum(0, dtype=torch.float64)
        self.squares = self.squares + values.square().sum(0, dtype=torch.float64)
        low, high = values.amin(0), values.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.count

    @property
    def variance(self) -> torch.Tensor:
        return self.squares / self.count - self.mean.square()
