"""Measure conditions that a deployed model could run: dense, random, static, with a predictor, or a baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from shadowcore.errors import ConfigError
from shadowcore.measure.activation_masks import PromptMasks, ThresholdMasks, nonzero_masks
from shadowcore.measure.sparsity import ConstantMasks, Masks, PredictedMasks, random_scores
from shadowcore.method.predictors import PREDICTORS, Predictor
from shadowcore.models.families import dimensions_of
from shadowcore.stages.base import Stage
from shadowcore.stages.conditions import Condition, Outputs, Spec
from shadowcore.stages.inputs import read_mean_scores, read_predictor, read_thresholds
from shadowcore.stages.measurement import Source, measure

# the field of Inputs that has a file for a condition of this method
NEEDED = {"static": "scores", "threshold": "thresholds"} | dict.fromkeys(PREDICTORS, "predictors")


@dataclass(frozen=True)
class Inputs:
    """scores: the table of mean scores for each condition of the method static, in the order of the conditions;
    thresholds: of calibrated magnitudes, for each of threshold; predictors: the one of each that has one.
    """

    card: Path
    weights: Path
    documents: Path
    tasks: Path
    benchmarks: tuple[Path, ...]
    scores: tuple[Path, ...]
    thresholds: tuple[Path, ...]
    predictors: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    measure("evaluate", spec, inputs, outputs, own(spec, inputs), sources)


def own(spec: Spec, inputs: Inputs) -> dict[str, Inputs]:
    """Of every condition, by name, the inputs that it alone needs; ConfigError if there are more or fewer."""
    left = {field: list(getattr(inputs, field)) for field in dict.fromkeys(NEEDED.values())}
    for field, files in left.items():
        if len(files) != (needed := sum(NEEDED.get(one.method) == field for one in spec.conditions.values())):
            raise ConfigError(f"--{field}: {len(files)} files; there must be {needed}, one for each condition with one")
    return {
        setup: replace(inputs, **{
            field: (files.pop(0),) if NEEDED.get(one.method) == field else () for field, files in left.items()
        })
        for setup, one in spec.conditions.items()
    }  # fmt: skip


def sources(model: torch.nn.Module) -> Source:
    """Where conditions' keep masks come from; a predictor that several of them use is read once."""
    sizes = dimensions_of(model.config)

    @cache
    def predictor(path: Path) -> Predictor:
        return read_predictor(path, sizes).to(model.device)

    def masks(condition: Condition, inputs: Inputs) -> Masks | None:
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
        return PredictedMasks(
            predictor(inputs.predictors[0]), condition.kinds, condition.policy, condition.sparsity_pct
        )

    return masks


STAGE = Stage(Spec, Inputs, Outputs, run)
