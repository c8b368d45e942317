"""Trace a model under the masks of a trained predictor, to train the next predictor.

A predictor that is trained on the dense model is used on a sparse one, in which inputs of later layers and the
importance of units differ. Each batch has a random sparsity from a range, so that one predictor works for all of them.
"""

from pathlib import Path
from random import Random

import torch

from shadowcore.measure.sparsity import PredictedMasks
from shadowcore.models.families import KINDS_OF, dimensions_of
from shadowcore.stages import trace
from shadowcore.stages.base import Frozen, Outputs
from shadowcore.stages.inputs import ModelAndText, read_predictor

POLICY = "per_layer"


class Spec(Frozen):
    """trace: as without masks, but results depend on its batch; units: masked kinds; lowest_pct, highest_pct: range of
    sparsities of a batch, percent; seed: of sparsities and sampled tokens.
    """

    trace: trace.Spec
    units: str
    lowest_pct: int
    highest_pct: int
    seed: int


class Inputs(ModelAndText):
    predictor: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    def masking(model: torch.nn.Module):
        predictor = read_predictor(inputs.predictor, dimensions_of(model.config)).put_on(model)
        draw = Random(f"{spec.seed} {spec.trace.split} {spec.trace.shard}")

        def of_batch(ids: torch.Tensor, scored: torch.Tensor):
            pct = draw.randint(spec.lowest_pct, spec.highest_pct)
            return PredictedMasks(predictor, KINDS_OF[spec.units], POLICY, pct).begin(ids, scored)

        return of_batch

    trace.write("trace-on-policy", spec, spec.trace, spec.seed, inputs, outputs, masking)
