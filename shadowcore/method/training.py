"""From traces to a predictor: seeded minibatch regression of scaled scores, best held-out epoch kept.

All scorers of a predictor learn from one reading of the traces. Training starts at the constant predictor, which
returns the mean scores, or at random weights. If the held-out loss is that of the constant predictor, nothing about the
context was learned. ShadowLLM's recipe is `scaling: min_max` with `target: score`, and more epochs for heads. Its
results under the protocol `lookahead` have whole windows as examples, `scaling: per_example`, `start: random`, and keep
the last epoch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shadowcore.errors import ConfigError
from shadowcore.method.policies import per_layer
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, Predictor, UnitScorer, unit_range
from shadowcore.method.stacks import Loss, Stack, stacks_of
from shadowcore.method.trace_dataset import Chunk, TraceDataset
from shadowcore.method.tracing import sequence_moments
from shadowcore.method.training_state import Checkpoint, Descent, FitResult, TrainingState
from shadowcore.method.weight_quantization import power_of_two, restored, stored
from shadowcore.models.families import Kind


@dataclass(frozen=True)
class Recipe:
    """How a predictor is trained, ranks and epochs by kind of unit.

    segments: its number of groups, where the design has a choice; scaling: one of SCALINGS; bits: of a weight; block:
    neighbouring neurons with one score, their mean; tokens: how many are trained on, None for all; examples,
    epoch_kept, start: one of EXAMPLES, EPOCHS_KEPT, STARTS; active_pct: of a layer's units, the share that is active to
    the target `active`, percent.
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
    examples: str = "tokens"
    epoch_kept: str = "best"
    start: str = "constant"
    active_pct: int = 50


# functions of the scores that a predictor learns; none is decreasing, so that it keeps the order of units
TARGETS: dict[str, Callable[[torch.Tensor, Recipe], torch.Tensor]] = {
    "score": lambda scores, recipe: scores,
    "sqrt": lambda scores, recipe: scores.sqrt(),
    # within a layer, 0 to 1
    "rank": lambda scores, recipe: scores.argsort(dim=-1, stable=True).argsort(-1) / scores.shape[-1],
    # 1 for the highest scores of a layer, 0 for others, which are told apart by a classifier (Deja Vu)
    "active": lambda scores, recipe: per_layer(scores, 100 - recipe.active_pct).float(),
}
# features, each number by itself, and targets, each layer by itself, are learned with mean 0 and deviation 1, or
# between their extremes as 0 and 1: those of all examples, or of each example (published)
SCALINGS = ("standard", "min_max", "per_example")
EPOCHS_KEPT = ("best", "last")
# the last weights before training: those of the constant predictor, or PyTorch's random ones (published). With features
# that have a large part in common, AdamW's first steps from the constant predictor turn nearly all hidden units off
STARTS = ("constant", "random")

Stacks = Mapping[Kind, list[Stack]]


def target_of(scores: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """What is learned of scores (n, layers, U)."""
    scores = TARGETS[recipe.target](scores, recipe)
    return unit_range(scores) if recipe.scaling == "per_example" else scores


def loss_of(recipe: Recipe) -> Loss:
    """Squared errors, or the cross-entropy of a classifier, whose scores are logits."""
    return functional.binary_cross_entropy_with_logits if recipe.target == "active" else functional.mse_loss


def fit(
    predictor: Predictor, train: TraceDataset, held: TraceDataset, recipe: Recipe, seed: int,
    progress=lambda done, total: None, checkpoint: Checkpoint | None = None,
) -> dict[Kind, list[FitResult]]:  # fmt: skip
    """Train every scorer of a predictor in place, and keep its best epoch on held-out examples, or its last."""
    if len(train) < recipe.batch:
        raise ConfigError(f"predictors.batch: {recipe.batch} {recipe.examples}, but the traces hold only {len(train)}")
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
    parts, loss = _scorers(predictor), loss_of(recipe)
    state = TrainingState(predictor, parts, descents, generator, begin, recipe.epoch_kept == "last")
    if recipe.start == "random":
        _start_at_random(parts.values(), generator)
    if checkpoint:
        checkpoint.resume(state)
    for epoch in range(state.epoch + 1, epochs + 1):
        learning = tuple(kind for kind in predictor.kinds if epoch <= recipe.epochs[kind])
        for chunk, index in train.of(learning).shuffled(recipe.batch, generator):
            for stack, scores in _targets(predictor, stacks, chunk, index, recipe):
                stack.loss(chunk, index, scores, loss).backward()
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
def _start_at_random(scorers: Iterable[UnitScorer], generator: torch.Generator) -> None:
    """Draw the last weights of scorers as PyTorch does: uniformly between -1 and 1, divided by the root of the rank."""
    for scorer in scorers:
        for values in scorer.outer.parameters():
            values.copy_((2 * torch.rand(values.shape, generator=generator) - 1) / scorer.outer.in_features**0.5)


@torch.no_grad()
def held_out_losses(predictor: Predictor, stacks: Stacks, held: TraceDataset, recipe: Recipe) -> dict[str, float]:
    """Mean loss of the scaled scores over held-out examples, for every scorer of the traces' kinds."""
    totals = 0
    for chunk in held.chunks():
        for index in torch.arange(len(chunk), device=held.device).split(recipe.batch):
            found = [
                stack.losses(chunk, index, scores, loss_of(recipe))
                for stack, scores in _targets(predictor, stacks, chunk, index, recipe)
            ]
            totals = totals + torch.cat(found)
    scorers = _scorers(predictor, held.kinds)
    counts = [len(held) * scorer.layers * scorer.units for scorer in scorers.values()]
    return dict(zip(scorers, (totals.cpu() / torch.tensor(counts)).tolist(), strict=True))


def mean_scores(traces: TraceDataset, kind: Kind, batch: int, of=lambda scores: scores) -> torch.Tensor:
    """Mean scores (L, U) over all examples, or means of what `of` makes of scores (n, L, U)."""
    total = 0
    for chunk in traces.chunks():
        for index in torch.arange(len(chunk), device=traces.device).split(batch):
            total = total + of(chunk.scores(kind, index)).sum(0, dtype=torch.float64)
    return (total / len(traces)).float()


def _targets(
    predictor: Predictor, stacks: Stacks, chunk: Chunk, index: torch.Tensor, recipe: Recipe
) -> Iterator[tuple[Stack, torch.Tensor]]:
    """Every stack with the transformed scores (n, layers, U) of its layers; a block's is the mean of its units'."""
    for kind in chunk.packed:
        scores, block = chunk.scores(kind, index), predictor.blocks[kind]
        scores = target_of(scores if block == 1 else predictor.gathered(scores, kind) / block, recipe)
        for stack in stacks[kind]:
            yield stack, scores[:, stack.layers]


@torch.no_grad()
def _scale(predictor: Predictor, stacks: Stacks, train: TraceDataset, recipe: Recipe) -> None:
    """Set the scorers' scaling from training examples: per number for features, per layer for scores."""
    found: dict[tuple[Stack, str], Spread] = {}
    for chunk in train.chunks():
        for index in torch.arange(len(chunk), device=train.device).split(recipe.batch):
            for stack, scores in _targets(predictor, stacks, chunk, index, recipe):
                found.setdefault((stack, "feature"), Spread()).add(stack.features(chunk, index).transpose(0, 1))
                found.setdefault((stack, "score"), Spread()).add(scores)
    for (stack, what), spread in found.items():
        # squared gradients of a token are small numbers, and their differences between units are smaller
        least, of_layer = (1e-18, True) if what == "score" else (1e-6, False)
        if recipe.scaling == "per_example" or (of_layer and recipe.target == "active"):
            begin, size = torch.zeros_like(spread.mean), torch.ones_like(spread.mean[..., :1])  # they are scaled
        elif recipe.scaling == "standard":
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
        if of_layer:  # training starts at the mean, not where the scale begins; a classifier at its logit
            found_mean = spread.mean.float()
            start = found_mean.logit(eps=1e-3) if recipe.target == "active" else (found_mean - mean) / scale
            stack.values["outer.bias"].copy_(start.view_as(stack.values["outer.bias"]))


@torch.no_grad()
def set_constants(predictor: Predictor, traces: Sequence[Any], criterion: str) -> None:
    """Give a constant design the square roots of the scores of `static`, in deviations over the units of a layer."""
    for kind, (scorer,) in predictor.scorers.items():
        means = sequence_moments(traces, criterion, kind).mean[FIRST_SPARSE_LAYER:].sqrt()
        scorer.score_mean.copy_(means)
        scorer.score_scale.copy_(means.std(-1, keepdim=True).clamp(min=1e-18))
        nn.init.zeros_(scorer.outer.bias)


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
