"""Tuning a predictor on the sparse model, so that its outputs come closer to the dense model's.

A criterion scores a unit in the dense model, where no other unit is removed. Here the predictor's own masks act, at a
sparsity drawn for every batch, and the loss is the divergence of the sparse model's next-token distributions from the
dense model's. Its derivative by the gate on a unit is <g, a>, the signed `plainact` of one token; the gate opens where
a score passes the lowest one kept in its layer, and is differentiated as if it were a sigmoid there (straight-through:
Bengio et al. 2013, arXiv 1308.3432). Labels are not needed. Not in the papers: DejaVu and ShadowLLM train on the dense
model's activations and gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import torch

from shadowcore.method.criteria import Signals
from shadowcore.method.gradient_capture import ImportancePass, Losses
from shadowcore.method.policies import kept_units, lowest_kept
from shadowcore.method.predictors import Predictor
from shadowcore.method.training_state import Checkpoint, Descent, FitResult, TrainingState
from shadowcore.method.weight_quantization import restored, stored
from shadowcore.models.families import Kind
from shadowcore.models.losses import all_scored, divergences
from shadowcore.models.masking import choosing
from shadowcore.models.recording import Choose, Site

WHOLE = "predictor"  # all scorers are tuned as one
# sparsity in percent, tokens (B, T), which are scored -> masks of a pass
Masking = Callable[[int, torch.Tensor, torch.Tensor], Choose]


@dataclass(frozen=True)
class Tuning:
    """epochs over the windows; windows a step; sparsity's range, percent; width of a gate in deviations of scores."""

    epochs: int
    batch: int
    learning_rate: float
    lowest_pct: int
    highest_pct: int
    temperature: float


def tune(
    model: torch.nn.Module, predictor: Predictor, kinds: tuple[Kind, ...], windows: torch.Tensor,
    heldout: torch.Tensor, tuning: Tuning, seed: int, masking: Masking, progress=lambda done, total: None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:  # fmt: skip
    """Tune the scorers of `kinds` in place on token windows (N, T); the epoch best on `heldout` (M, T) is kept.

    masking: makes masks of this predictor. Losses: mean divergences per token, in nats, at the middle of the range.
    """
    importance = ImportancePass(model)
    parameters = [weight for kind in kinds for weight in predictor.scorers[kind].parameters()]
    batches, generator = -(-len(windows) // tuning.batch), torch.Generator().manual_seed(seed)
    descent = Descent(parameters, tuning.learning_rate, 0.0, tuning.epochs * batches)
    draw = partial(Random(seed).randint, tuning.lowest_pct, tuning.highest_pct)

    def begin(ids: torch.Tensor, pct: int) -> tuple[torch.Tensor, torch.Tensor, Choose, Losses]:
        """The arguments of a pass: tokens, which of them count, masks, and the divergence from the dense model."""
        ids = ids.to(model.device)
        scored = all_scored(ids)
        with torch.no_grad():
            dense = model(ids[:, :-1], use_cache=False).logits
        return ids, scored, masking(pct, ids, scored), lambda logits, ids, scored: divergences(logits, dense, scored)

    @torch.no_grad()
    def held_out() -> float:
        found = []
        for ids in heldout.split(tuning.batch):
            ids, scored, choose, losses = begin(ids, (tuning.lowest_pct + tuning.highest_pct) // 2)
            with choosing(model, choose):
                found.append(losses(model(ids[:, :-1], use_cache=False).logits, ids, scored))
        return torch.cat(found).mean().item()

    state = TrainingState(predictor, {WHOLE: predictor}, {WHOLE: descent}, generator, {WHOLE: held_out()})
    if checkpoint:
        checkpoint.resume(state)
    for _ in range(state.epoch * batches):
        draw()  # what was drawn before
    for epoch in range(state.epoch + 1, tuning.epochs + 1):
        for index in torch.randperm(len(windows), generator=generator).split(tuning.batch):
            pct, features, slopes = draw(), {}, {}

            def see_feature(site: Site, x: torch.Tensor) -> None:
                if site in predictor.group_at:
                    features[site] = predictor.feature(site, x).to(model.device)  # noqa: B023 (called before the next step)

            def see_units(site: Site, signals: Signals) -> None:
                if site.what in kinds:
                    slopes[site] = signals.ga.to(model.device)  # noqa: B023

            ids, scored, choose, losses = begin(windows[index], pct)
            importance(ids, scored, see_units, see_feature, choose=choose, losses=losses)
            loss = sum(gate_losses(predictor, kind, features, slopes, pct, tuning.temperature) for kind in kinds)
            (loss / len(index)).backward()
            descent.step()
        state.finish(epoch, {WHOLE: held_out()})
        if checkpoint:
            checkpoint.save(state)
        progress(epoch, tuning.epochs)
    predictor.load_state_dict(restored(stored(state.kept[WHOLE], predictor.bits)))
    return state.best[WHOLE]


def gate_losses(
    predictor: Predictor, kind: Kind, features: dict[Site, torch.Tensor], slopes: dict[Site, torch.Tensor],
    sparsity_pct: int, temperature: float,
) -> torch.Tensor:  # fmt: skip
    """A number whose gradient by the predictor's weights is the model's loss's, through soft gates.

    features: what every group reads (B, T, D); slopes: the loss's derivative by each unit's gate (B, T, U) per site.
    """
    total = torch.zeros((), device=next(predictor.parameters()).device)
    for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True):
        scores = scorer(features[group.site]) / scorer.score_scale  # (B, T, layers, U), in deviations
        count = max(1, kept_units(scores.shape[-1], sparsity_pct))  # where none is kept, the best is nearest to it
        lowest = lowest_kept(scores.detach(), count)
        gates = torch.sigmoid((scores - lowest) / temperature)
        for i, layer in enumerate(group.layers):
            total = total + (gates[..., i, :] * predictor.gathered(slopes[Site(layer, kind)], kind)).sum()
    return total
