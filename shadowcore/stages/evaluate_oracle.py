"""Measure the oracle: masks from each example's own true scores. It is a stage of its own: only it needs criteria."""

import torch

from shadowcore.measure.oracle import OracleMasks, OraclePass
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.stages.base import Outputs
from shadowcore.stages.conditions import Condition, Spec
from shadowcore.stages.measurement import Evaluated as Inputs
from shadowcore.stages.measurement import Source, measure


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    measure("evaluate-oracle", spec, inputs, outputs, dict.fromkeys(spec.conditions, inputs), sources)


def sources(model: torch.nn.Module) -> Source:
    """Where conditions' keep masks come from: one pass over each batch scores it for all of them."""
    shared = OraclePass(model)

    def masks(condition: Condition, inputs: Inputs) -> OracleMasks:
        protocol = PROTOCOLS[condition.protocol or "token"]
        return OracleMasks(
            shared, condition.criterion, condition.kinds, condition.policy, condition.sparsity_pct, protocol
        )

    return masks
