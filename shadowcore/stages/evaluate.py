"""Measure conditions that a deployed model could run: dense, random, static, with a predictor, or a baseline."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from shadowcore.errors import ConfigError, near_miss
from shadowcore.measure.conditions import Condition
from shadowcore.measure.methods import METHODS
from shadowcore.measure.sparsity import Masks
from shadowcore.method.predictors import Predictor
from shadowcore.models.families import dimensions_of
from shadowcore.stages.base import Outputs
from shadowcore.stages.conditions import Spec
from shadowcore.stages.inputs import read_mean_scores, read_predictor, read_thresholds
from shadowcore.stages.measurement import Evaluated, Source, measure

READ = ("scores", "thresholds", "predictors")  # fields of Inputs with a file for each condition whose method reads it


class Inputs(Evaluated):
    """scores: the table of mean scores for each condition of the method static, in the order of the conditions;
    thresholds: of calibrated magnitudes, for each of threshold and cats; predictors: the one of each that has one.
    """

    scores: tuple[Path, ...]
    thresholds: tuple[Path, ...]
    predictors: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    measure("evaluate", spec, inputs, outputs, own(spec, inputs), sources)


def own(spec: Spec, inputs: Inputs) -> dict[str, Inputs]:
    """Of every condition, by name, the inputs that it alone needs; ConfigError if there are more or fewer."""
    if unknown := [one.method for one in spec.conditions.values() if one.method not in METHODS]:
        raise ConfigError(f"--spec.conditions: unknown method '{unknown[0]}'; {near_miss(unknown[0], METHODS)}")
    reads = {name: METHODS[one.method].reads for name, one in spec.conditions.items()}
    left = {field: list(getattr(inputs, field)) for field in READ}
    for field, files in left.items():
        if len(files) != (needed := list(reads.values()).count(field)):
            raise ConfigError(
                f"--{field}: {len(files)} files; there must be {needed}, one for each condition that reads one"
            )
    return {
        name: replace(inputs, **{field: (files.pop(0),) if read == field else () for field, files in left.items()})
        for name, read in reads.items()
    }


def sources(model: torch.nn.Module) -> Source:
    """Where conditions' keep masks come from; a predictor that several of them use is read once."""
    sizes = dimensions_of(model.config)

    @cache
    def predictor(path: Path) -> Predictor:
        return read_predictor(path, sizes).put_on(model)

    readers = {
        "scores": lambda path, one: read_mean_scores(path, one.criterion, one.kinds, sizes),
        "thresholds": lambda path, one: read_thresholds(path, one.method, one.sparsity_pct),
        "predictors": lambda path, one: predictor(path),
    }

    def masks(condition: Condition, inputs: Inputs) -> Masks | None:
        method = METHODS[condition.method]
        read = readers[method.reads](getattr(inputs, method.reads)[0], condition) if method.reads else None
        return method.masks(model, condition, read)

    return masks
