"""Measure one condition that a deployed model could run: dense, random, static, with a predictor, or a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore.measure.activation_masks import PromptMasks, ThresholdMasks, nonzero_masks
from shadowcore.measure.sparsity import ConstantMasks, Masks, PredictedMasks, random_scores
from shadowcore.models.families import dimensions_of
from shadowcore.stages.base import Stage
from shadowcore.stages.conditions import Condition, Outputs, Spec, measure
from shadowcore.stages.inputs import read_mean_scores, read_predictor, read_thresholds


@dataclass(frozen=True)
class Inputs:
    """scores: the table of mean scores, for static; thresholds: of calibrated magnitudes, for threshold;
    predictor: the trained one; each empty otherwise.
    """

    card: Path
    weights: Path
    documents: Path
    tasks: Path
    benchmarks: tuple[Path, ...]
    scores: tuple[Path, ...]
    thresholds: tuple[Path, ...]
    predictor: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    measure("evaluate", spec, inputs, outputs, lambda model: masks(spec.condition, inputs, model))


def masks(condition: Condition, inputs: Inputs, model: torch.nn.Module) -> Masks | None:
    """Where the condition's keep masks come from; None for dense."""
    sizes = dimensions_of(model.config)
    if condition.method == "dense":
        return None
    if condition.method == "random":
        scores = random_scores(sizes, condition.kinds, condition.seed)
        return ConstantMasks(scores, condition.policy, condition.sparsity_pct)
    if condition.method == "static":
        scores = read_mean_scores(inputs.scores[0], condition.criterion, condition.kinds, sizes)
        return ConstantMasks(scores, condition.policy, condition.sparsity_pct)
    if condition.method == "threshold":
        return ThresholdMasks(read_thresholds(inputs.thresholds[0], condition.sparsity_pct))
    if condition.method == "griffin":
        return PromptMasks(model, condition.policy, condition.sparsity_pct)
    if condition.method == "relu":
        return nonzero_masks(model)
    predictor = read_predictor(inputs.predictor[0], sizes).to(model.device)
    return PredictedMasks(predictor, condition.kinds, condition.policy, condition.sparsity_pct)


STAGE = Stage(Spec, Inputs, Outputs, run)
