"""Which units a decode step keeps: all of them, fixed ones, or those a predictor chooses on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from shadowcore.errors import ConfigError, one_of
from shadowcore.method.policies import POLICIES, WHOLE_MODEL_POLICIES
from shadowcore.method.predictors import Predictor
from shadowcore.models.families import Kind
from shadowcore.models.recording import Site


class Kept(NamedTuple):
    """Units of one layer that some sequence of the batch keeps, ascending, and which sequences keep them."""

    units: torch.Tensor  # (n,)
    rows: torch.Tensor | None  # (B, n) bool; None: every sequence keeps all of them


# layers that a predictor scores from one site, and their scores (B, layers, U); U counts blocks where units share one
Scores = dict[Kind, tuple[Sequence[int], torch.Tensor]]


class Selection(Protocol):
    """Decides, while a step runs, what its later layers skip; for that it reads `weight_bytes` of its own."""

    weight_bytes: int
    score_dtype: torch.dtype | None  # what scores are computed in, where it is not the layout's number format

    def see(self, site: Site, feature: torch.Tensor) -> None:
        """Told by the decoder what flows at each residual and at each layer's heads, (B, D) or (B, H K)."""

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        """Units to compute there in the step under way (afterwards: in the last one); None for all."""

    def scores(self, site: Site, feature: torch.Tensor) -> Scores:
        """What a predictor that reads `site` scores there; empty without one."""


class KeepAll:
    """Dense: nothing is skipped."""

    weight_bytes, score_dtype = 0, None

    def see(self, site: Site, feature: torch.Tensor) -> None:
        pass

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        return None

    def scores(self, site: Site, feature: torch.Tensor) -> Scores:
        return {}


class KeepFixed(KeepAll):
    """The same units in every step, gathered from the full weights; `keep[kind]` is a mask (L, U)."""

    def __init__(self, keep: Mapping[Kind, torch.Tensor]):
        self._kept = {
            (layer, kind): None if row.all() else Kept(row.nonzero().squeeze(1), None)
            for kind, mask in keep.items()
            for layer, row in enumerate(mask)
        }

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        return self._kept.get((layer, kind))


class KeepPredicted:
    """Units chosen in every step: predictor's scores at its sites, then a policy per kind of unit.

    The predictor's weights must be on the decoder's device in its number format. Raises ConfigError for
    an unknown policy, one that needs more layers at once than the predictor scores, or a kind of unit the
    predictor does not score.
    """

    score_dtype = None

    def __init__(self, predictor: Predictor, policy: str, sparsity_pct: Mapping[Kind, int]):
        one_of(policy, POLICIES, "policy")
        if policy in WHOLE_MODEL_POLICIES and len(predictor.groups) > 1:
            raise ConfigError(f"policy '{policy}' needs all scores at once; a {predictor.design} predictor has not")
        for kind in sparsity_pct:
            one_of(kind, predictor.kinds, "units to skip")
        if "heads" in sparsity_pct and any(
            g.site.what == "heads" and g.site.layer in g.layers for g in predictor.groups
        ):
            raise ConfigError(
                f"a {predictor.design} predictor reads the heads it should skip; it can skip neurons only"
            )
        self.predictor, self.policy_name, self.policy = predictor, policy, POLICIES[policy]
        self.sparsity_pct = dict(sparsity_pct)
        scorers = [predictor.scorers[kind] for kind in sparsity_pct]
        self.weight_bytes = sum(t.nbytes for scorer in scorers for t in (*scorer.parameters(), *scorer.buffers()))
        self._kept: dict[tuple[int, Kind], Kept] = {}

    def see(self, site: Site, feature: torch.Tensor) -> None:
        for kind, (layers, scores) in self.scores(site, feature).items():
            keep = self.predictor.spread(self.policy(scores, self.sparsity_pct[kind]), kind)  # (B, layers, U)
            for layer, kept in zip(layers, kept_of(keep), strict=True):
                self._kept[layer, kind] = kept

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        return self._kept.get((layer, kind))

    def scores(self, site: Site, feature: torch.Tensor) -> Scores:
        if site not in self.predictor.group_at:
            return {}
        feature = feature.to(next(self.predictor.parameters()).dtype)
        return {kind: self.predictor.read(site, feature, kind) for kind in self.sparsity_pct}


def kept_of(keep: torch.Tensor) -> list[Kept]:
    """Per layer, the units of a keep mask (B, layers, U); several sequences share the union of theirs."""
    union = keep.any(0)  # (layers, U)
    units = union.nonzero()[:, 1].split(union.sum(1).tolist())  # one search for all layers
    if len(keep) == 1:
        return [Kept(some, None) for some in units]
    return [Kept(some, keep[:, layer, some]) for layer, some in enumerate(units)]
