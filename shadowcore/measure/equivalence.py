"""Correctness checks before timing: a decoder must compute what its reference computes, up to rounding.

Logits, selections and tokens are compared step by step, where the reference gets the decoder's tokens and keeps its
units; docs/architecture.md ("Rounding") has the rules. Rounding is relative: of logits to the largest logit, of scores
to the range of a layer's scores.
"""

from typing import NamedTuple

import torch

from shadowcore.errors import ShadowcoreError
from shadowcore.models.families import Kind

# largest difference of two logits over the largest logit
LARGEST = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# size (norm) of the difference of logits over the size of the logits, against a float32 reference
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
# distance of a score from the threshold, over the range of the scores that are compared, that rounding explains
NEAR_TIE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# the same for an activation compared with a magnitude threshold, relative to the threshold
NEAR_THRESHOLD = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


class Disagreement(ShadowcoreError):
    """A decoder does not compute what the model it stands for computes."""


class Agreement(NamedTuple):
    """What a passed check saw: the largest relative error of a logit, and how many near ties it let pass.

    unit_ties: units that one side only kept; token_ties: steps whose token is not the reference's best.
    """

    error: float
    unit_ties: int = 0
    token_ties: int = 0

    def __str__(self) -> str:
        return f"logits within {self.error:.1e}, {self.unit_ties} near ties of units, {self.token_ties} of tokens"


def near_ties(
    name: str, kind: Kind, scores: torch.Tensor, kept: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype,
    whole_model: bool = False,
) -> int:  # fmt: skip
    """How many units only one side keeps; Disagreement if a score of theirs is not within NEAR_TIE of the threshold.

    scores (..., layers, U); kept and wanted: masks of the same shape. The threshold lies between the lowest score
    that `wanted` keeps and the highest that it removes, of a layer or, with `whole_model`, of all layers.
    """
    scores = scores.float() if scores.dtype != torch.float64 else scores
    if whole_model:
        scores, kept, wanted = (values.flatten(-2)[..., None, :] for values in (scores, kept, wanted))
    if not torch.equal(kept.sum(-1), wanted.sum(-1)):
        raise Disagreement(f"variant '{name}': it kept another number of {kind} in a layer than the reference")
    lowest = scores.where(wanted, torch.inf).amin(-1, keepdim=True)
    highest = scores.where(~wanted, -torch.inf).amax(-1, keepdim=True)
    reach = NEAR_TIE[dtype] * (scores.amax(-1, keepdim=True) - scores.amin(-1, keepdim=True))
    differ = kept ^ wanted
    # a kept unit may be outranked by one that is removed, and the other way round
    far = differ & ~torch.where(wanted, scores <= highest + reach, scores >= lowest - reach)  # NaN, too
    if far.any():
        raise Disagreement(
            f"variant '{name}': {int(far.sum())} {kind} are kept by one side only, and their scores are further from "
            f"the threshold than rounding explains ({NEAR_TIE[dtype]:.0e} of the range of a layer's scores)"
        )
    return int(differ.sum())


def of_blocks(name: str, kept: torch.Tensor, block: int) -> torch.Tensor:
    """A mask (..., U) of units as one of blocks (..., U / block), each of which is kept or removed whole."""
    if block == 1:
        return kept
    blocks = kept.unflatten(-1, (-1, block))
    if not torch.equal(blocks.any(-1), blocks.all(-1)):
        raise Disagreement(f"variant '{name}': it kept a part of a block of {block} neurons")
    return blocks.all(-1)
