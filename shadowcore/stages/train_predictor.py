"""Train one predictor on token traces and report how well it ranks held-out tokens' units."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.method.predictors import PREDICTOR_SCHEMA, Predictor, stored
from shadowcore.method.ranking import recall, spearman
from shadowcore.method.tokens import TokenTraces
from shadowcore.method.training import Recipe, fit, mean_scores
from shadowcore.models.families import Dimensions, Kind
from shadowcore.schemas import PREDICTORS, QUALITY
from shadowcore.stages.base import Progress, Stage, header, read_card
from shadowcore.stages.inputs import device


@dataclass(frozen=True)
class Spec:
    """Names for the tables' rows, the recipe, and sparsities to report recall at.

    seed: of the training; text_seed: of the windows whose traces it reads.
    """

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
    text_seed: int


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


def open_traces(stack: ExitStack, paths: tuple[Path, ...], spec: Spec, bits: int, predictor: Predictor) -> TokenTraces:
    """What a predictor learns from or is judged by, open as long as the stack is."""
    opened = [stack.enter_context(artifacts.open_tensors(path, tracing.SCHEMA)) for path in paths]
    sites = [group.site for group in predictor.groups]
    return TokenTraces(opened, spec.criterion, bits, predictor.sizes, predictor.kinds, sites, device())


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"train {spec.method} {spec.criterion} {spec.predictor}")
    sizes = Dimensions(**read_card(inputs.card)["dimensions"])
    torch.manual_seed(spec.seed)
    predictor = Predictor(spec.method, sizes, spec.recipe.rank, spec.recipe.segments).to(device())
    with ExitStack() as stack:
        train = open_traces(stack, inputs.traces, spec, spec.token_bits, predictor)
        held = open_traces(stack, inputs.heldout, spec, spec.heldout_bits, predictor)
        fits = fit(predictor, train, held, spec.recipe, spec.seed, progress)
        training = [training_row(spec, predictor, kind, fits[kind], len(train), spec.recipe.epochs) for kind in fits]
        quality = rank_quality(spec, predictor, train, held)
    write(spec, predictor, quality, training, outputs, header("train-predictor", spec, inputs))


def write(spec: Spec, predictor: Predictor, quality: list, training: list, outputs: Outputs, made: dict) -> None:
    """Write a predictor and the rows about it."""
    artifacts.write_tensors(outputs.predictor, PREDICTOR_SCHEMA, stored(predictor.state_dict()), made)
    artifacts.write_table(outputs.quality, QUALITY.schema, QUALITY.build(quality), made)
    artifacts.write_table(outputs.training, PREDICTORS.schema, PREDICTORS.build(training), made)


@torch.no_grad()
def rank_quality(spec: Spec, predictor: Predictor, train: TokenTraces, held: TokenTraces) -> list[dict]:
    """Rows of QUALITY: the predictor's on held-out tokens, and under `static` the constant predictor's."""
    constant = {kind: mean_scores(train, kind, spec.recipe.batch) for kind in predictor.kinds}
    found: dict[tuple, list[torch.Tensor]] = {}  # kind, layer, method, metric, sparsity -> values of tokens
    for chunk in held.chunks():
        index = torch.arange(len(chunk), device=held.device)
        for kind in predictor.kinds:
            true = chunk.scores(kind, index)
            for group, scorer in zip(predictor.groups, predictor.scorers[kind], strict=True):
                predicted = scorer(chunk.feature(group.site, index))
                for i, layer in enumerate(group.layers):
                    for method, scores in (
                        (spec.method, predicted[:, i]),
                        ("static", constant[kind][layer].expand_as(predicted[:, i])),
                    ):
                        measures = {("spearman", None): spearman(scores, true[:, layer])}
                        measures |= {
                            ("recall", pct): recall(scores, true[:, layer], pct) for pct in spec.sparsities_pct
                        }
                        for (metric, pct), values in measures.items():
                            found.setdefault((kind, layer, method, metric, pct), []).append(values.double())
    rows = []
    for (kind, layer, method, metric, pct), parts in found.items():
        values = torch.cat(parts)
        rows.append(
            {
                "model": spec.model, "calibration": spec.calibration, "criterion": spec.criterion,
                "method": method, "predictor": spec.predictor if method == spec.method else None,
                "seed": spec.seed if method == spec.method else spec.text_seed, "kind": kind, "layer": layer,
                "metric": metric, "sparsity_pct": pct, "n": len(values),
                "value": values.mean().item(), "stderr": values.std().item() / len(values) ** 0.5,
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
