"""Scorers of one shape as one: their matrices are stacked, so that many groups learn in as many calls as one does."""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import nn
from torch.nn import functional

from shadowcore.method.predictors import Group, Predictor, UnitScorer, unit_range
from shadowcore.method.trace_dataset import Chunk
from shadowcore.models.families import Kind
from shadowcore.models.products import product

Loss = Callable[..., torch.Tensor]  # of torch.nn.functional: (found, wanted, reduction) -> loss
# of what a stack reads or makes for a batch, several times over: as much as a CPU's cache holds, or as keeps a GPU busy
STACK_BYTES = {"cpu": 2**21, "cuda": 2**28}
SMALL = 2**14  # numbers in a matrix, below which a call of its own for each group takes longer than the product


class Stack:
    """G neighbouring groups of one shape, as tensors (G, ...) of which the scorers' own parameters are views."""

    def __init__(self, pairs: Sequence[tuple[Group, UnitScorer]]):
        groups, scorers = zip(*pairs, strict=True)
        self.sites = [group.site for group in groups]
        self.layers = slice(groups[0].layers[0], groups[-1].layers[-1] + 1)
        self.per_example = scorers[0].per_example
        states = [scorer.state_dict(keep_vars=True) for scorer in scorers]
        self.values = {name: torch.stack([state[name].data for state in states]) for name in states[0]}
        for index, state in enumerate(states):
            for name, value in state.items():
                value.data = self.values[name][index]
        self.parameters = {name: nn.Parameter(self.values[name]) for name, _ in scorers[0].named_parameters()}

    def features(self, chunk: Chunk, index: torch.Tensor) -> torch.Tensor:
        """What the groups read (G, n, D) of tokens `index`."""
        return chunk.features_of(self.sites, index)

    def deviations(self, features: torch.Tensor) -> torch.Tensor:
        """`UnitScorer.deviation` of every group, (G, n, layers U), for features (G, n, D)."""
        features = unit_range(features) if self.per_example else features
        scaled = (features - self.values["feature_mean"][:, None]).div_(self.values["feature_scale"][:, None])
        hidden = self._linear("inner", scaled).relu()
        return self._linear("outer", hidden)

    def wanted(self, scores: torch.Tensor) -> torch.Tensor:
        """What `deviations` should be, (G, n, layers U), for the scores (n, G layers, U) of the stack's layers."""
        mean, scale = (self.values[name].flatten(0, 1) for name in ("score_mean", "score_scale"))
        return ((scores - mean).div_(scale)).unflatten(1, (len(self.sites), -1)).flatten(2).transpose(0, 1)

    def loss(
        self, chunk: Chunk, index: torch.Tensor, scores: torch.Tensor, measure: Loss = functional.mse_loss
    ) -> torch.Tensor:
        """Mean losses of the groups, summed: a group's gradient does not depend on its neighbours."""
        found = self.deviations(self.features(chunk, index))
        return measure(found, self.wanted(scores)) * len(self.sites)

    def losses(
        self, chunk: Chunk, index: torch.Tensor, scores: torch.Tensor, measure: Loss = functional.mse_loss
    ) -> torch.Tensor:
        """Sums of the losses of all scores, float64 (G,)."""
        found = self.deviations(self.features(chunk, index))
        return measure(found, self.wanted(scores), reduction="none").sum((1, 2), dtype=torch.float64)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return Linear.apply(x, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])


class Linear(torch.autograd.Function):
    """(G, n, out) = x (G, n, in) weight (G, out, in) + bias (G, out).

    As torch differentiates `baddbmm`, but the weight's gradient comes in the weight's own order: torch's is transposed,
    and copying it would take as long as making it.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _products(x, weight, bias)

    @staticmethod
    def backward(ctx, slope):
        x, weight = ctx.saved_tensors
        to_x = _products(slope, weight.mT) if ctx.needs_input_grad[0] else None
        return to_x, _products(slope.mT, x.mT), slope.sum(1)


def _products(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`product` of every group, (G, n, out), for x (G, n, in), weight (G, out, in) and bias (G, out)."""
    if x.is_cuda or weight[0].numel() < SMALL:  # one call for all groups
        return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
    made = [product(*group) for group in zip(x, weight, *([] if bias is None else [bias]), strict=True)]
    return made[0][None] if len(made) == 1 else torch.stack(made)  # a stack of one would be a copy


def stacks_of(predictor: Predictor, kind: Kind, batch: int) -> list[Stack]:
    """All scorers of a kind in stacks, each of as many neighbours of one shape as STACK_BYTES allow."""
    pairs, stacks = zip(predictor.groups, predictor.scorers[kind], strict=True), []
    for _, alike in groupby(pairs, key=lambda pair: len(pair[0].layers)):
        run = list(alike)
        scorer = run[0][1]
        widest = max(scorer.inner.in_features, scorer.outer.out_features)
        most = max(1, STACK_BYTES[scorer.inner.weight.device.type] // (4 * batch * widest))
        stacks += [Stack(run[start : start + most]) for start in range(0, len(run), most)]
    return stacks
