"""Every method that chooses units: how its masks are made, and what a condition of it is made of.

A new method is a row of METHODS and, if no class here makes its masks yet, a class of `Masks`. The configuration, the
jobs, their costs and the evaluation read the row.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from shadowcore.errors import ConfigError
from shadowcore.measure.conditions import Condition
from shadowcore.measure.ffn_selectors import GateMasks, ProxyMasks, SignMasks
from shadowcore.measure.predictor_free import PromptMasks, ThresholdMasks, nonzero_masks
from shadowcore.measure.sparsity import FixedMasks, Masks, PredictedMasks, random_scores
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.predictors import PREDICTORS, TUNED_PROXIES
from shadowcore.models.families import Kind, dimensions_of


@dataclass(frozen=True)
class Method:
    """How a method makes masks, and what its conditions have and allow.

    masks: from the model, the condition, and the content of the file that `reads` names; None leaves the model dense.
    reads: the file, made from a calibration text: mean scores, thresholds or a predictor.
    scores: how its criterion scores: the mean of many tokens, or single tokens; None where it has no criterion.
    criterion: what its rows call their criterion if it has none. has_policy: whether a policy decides what is kept.
    reads_prompt: whether it runs the prompt of every row, so that rows cannot share one.
    flops: multiplications and additions for each weight and token of a row; a forward pass has 2, a backward one 4.
    protocols, policies, units, sparsities_pct: those that a configuration may combine it with; None: all.
    """

    masks: Callable[[torch.nn.Module, Condition, Any], Masks | None]
    reads: Literal["scores", "thresholds", "predictors"] | None = None
    scores: Literal["mean", "token"] | None = None
    criterion: str | None = None
    has_policy: bool = True
    reads_prompt: bool = False
    flops: int = 2
    protocols: Collection[str] | None = None
    policies: Collection[str] | None = None
    units: Collection[str] | None = None
    sparsities_pct: Collection[int] | None = None

    @property
    def trained(self) -> bool:
        """Whether it has a predictor, which is trained with a seed."""
        return self.reads == "predictors"


OF_NEURONS = {"protocols": ["token"], "policies": ["per_layer"], "units": ["neurons"]}


def _fixed(one: Condition, scores: Mapping[Kind, torch.Tensor]) -> FixedMasks:
    return FixedMasks(scores, one.policy, one.sparsity_pct)


def _proxy(bits: int, ahead: bool) -> Method:
    return Method(lambda model, one, read: ProxyMasks(model, bits, one.sparsity_pct, ahead), flops=3, **OF_NEURONS)


def _tuned_proxy(bits: int, ahead: bool) -> Method:
    def masks(model: torch.nn.Module, one: Condition, read: Any) -> Masks:
        proxy, gains = ProxyMasks(model, bits, one.sparsity_pct, ahead), read.constants(["neurons"])["neurons"].exp()
        proxy.norms = {layer: norms * gains[layer] for layer, norms in proxy.norms.items()}  # read in any case
        return proxy

    return replace(_proxy(bits, ahead), masks=masks, reads="predictors")


def _own_stage(model: torch.nn.Module, one: Condition, read: None) -> Masks:
    raise ConfigError(f"conditions: method {one.method} is measured by evaluate-oracle, and by no other stage")


PREDICTED = Method(
    lambda model, one, predictor: PredictedMasks(predictor, one.kinds, one.policy, one.sparsity_pct),
    reads="predictors", scores="token",
)  # fmt: skip
METHODS: dict[str, Method] = {
    "dense": Method(lambda model, one, read: None),
    "random": Method(
        lambda model, one, read: _fixed(one, random_scores(dimensions_of(model.config), one.kinds, one.seed)),
        criterion="random",
    ),
    "static": Method(lambda model, one, scores: _fixed(one, scores), reads="scores", scores="mean"),
    "threshold": Method(lambda model, one, thresholds: ThresholdMasks(thresholds), reads="thresholds", **OF_NEURONS),
    "cats": Method(lambda model, one, thresholds: GateMasks(model, thresholds), reads="thresholds", **OF_NEURONS),
    "griffin": Method(
        lambda model, one, read: PromptMasks(model, one.policy, one.sparsity_pct),
        reads_prompt=True, flops=4, protocols=["prompt"], units=["neurons"],
    ),
    # whatever is zero, or is predicted to be, is removed, so that these two have no policy and no sparsity of their own
    "relu": Method(lambda model, one, read: nonzero_masks(model), has_policy=False, sparsities_pct=[0], **OF_NEURONS),
    "sparseinfer": Method(
        lambda model, one, read: SignMasks(model), has_policy=False, sparsities_pct=[0], **OF_NEURONS
    ),
    **{name: _proxy(*proxy) for name, proxy in PROXIES.items()},
    **dict.fromkeys(PREDICTORS, PREDICTED),
    "dejavu": replace(PREDICTED, units=["neurons"]),  # its predictors of heads read another site
    "static_tuned": replace(PREDICTED, masks=lambda model, one, read: _fixed(one, read.constants(one.kinds))),
    **{name: _tuned_proxy(bits, ahead) for name, (bits, ahead) in TUNED_PROXIES.items()},
    "oracle": Method(_own_stage, scores="token"),  # its scoring pass, shared by its conditions, is counted apart
}  # fmt: skip
SPARSE = {name: method for name, method in METHODS.items() if name != "dense"}
