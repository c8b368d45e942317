"""Which units a decode step keeps: all (dense), fixed ones, or those that a predictor chooses in every step.

A caller makes one of these selections, whatever the backend. The torch decoder uses it as it is; the Triton decoder
makes its counterpart, which decides on the device (`triton_selection`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from shadowcore.decode.low_bit_proxy import Proxy
from shadowcore.decode.packed_predictor import PackedPredictor
from shadowcore.errors import ConfigError, one_of
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.policies import predictor_policy
from shadowcore.method.predictors import DECODED, Predictor, reads_own_heads
from shadowcore.models.families import Kind
from shadowcore.models.recording import Site


class Kept(NamedTuple):
    """Units of one layer that at least one sequence of the batch keeps, and which sequences keep them."""

    units: torch.Tensor  # (n,)
    rows: torch.Tensor | None  # (B, n) bool; None: every sequence keeps all of them


# layers that a predictor scores from one site, and their scores (B, layers, U); U counts blocks where units share one
Scores = dict[Kind, tuple[Sequence[int], torch.Tensor]]


class Selection:
    """What every selection does in a step; by itself it keeps all units.

    weight_bytes: weights of its own that a step reads. score_dtype: number format of its scores, where it is not the
    layout's. sequences: how many it has units for; None: any number.
    """

    weight_bytes = 0
    sequences: int | None = None
    score_dtype: torch.dtype | None = None

    def start(self, position: int | torch.Tensor) -> None:
        """Begin a step at a position; a Triton selection gets it as one integer on the device."""

    def see(self, site: Site, feature: torch.Tensor) -> None:
        """Read a feature: what enters a layer or its FFN (B, D), or the outputs of all its heads (B, H K)."""

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        """Units to compute in the current step, or those of the last step once it has ended; None for all."""
        return None

    def scores(self, site: Site, feature: torch.Tensor) -> Scores:
        """The scores of a predictor that reads `site`; empty where there is none."""
        return {}


class DenseSelection(Selection):
    """Nothing is skipped."""


class FixedSelection(Selection):
    """Units that are given in advance, gathered from the full weights.

    `keep[kind]` is a mask (L, U) for any number of sequences; (B, L, U), one for each sequence; or (S, B, L, U), those
    of S steps, which take turns. `steps[kind]` has for each of these steps what each layer keeps, None for all.
    """

    def __init__(self, keep: Mapping[Kind, torch.Tensor]):
        self.keep, self._position = keep, 0
        self.steps: dict[Kind, list[list[Kept | None]]] = {}
        for kind, mask in keep.items():
            if mask.dim() > 2:
                self.sequences = mask.shape[-3]
            every = mask.reshape(-1, mask.shape[-3] if mask.dim() > 2 else 1, *mask.shape[-2:])
            whole = every.all(-1).all(1).all(0).tolist()  # layers that always keep all
            self.steps[kind] = [
                [None if all_kept else kept for all_kept, kept in zip(whole, kept_of(step), strict=True)]
                for step in every
            ]

    @classmethod
    def listed(cls, units: Mapping[Kind, Sequence[torch.Tensor | None]]) -> FixedSelection:
        """The same lists of each layer's units in every step, in this order; None keeps all."""
        selection = cls({})
        for kind, layers in units.items():
            selection.steps[kind] = [[None if one is None else Kept(one, None) for one in layers]]
        return selection

    def start(self, position: int | torch.Tensor) -> None:
        self._position = int(position)

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        steps = self.steps.get(kind)
        return steps[self._position % len(steps)][layer] if steps else None


class PredictedSelection(Selection):
    """Units chosen in every step: the scores of a predictor or proxy at its sites, then a policy for each kind of unit.

    For the torch decoder, the predictor's weights must be on its device in its number format. Raises ConfigError for
    an unknown policy, one that needs more layers at once than the predictor scores, or a kind of unit the predictor
    does not score.
    """

    def __init__(self, predictor: Predictor | PackedPredictor | Proxy, policy: str, sparsity_pct: Mapping[Kind, int]):
        one_of(predictor.design, (*DECODED, *PROXIES), "a decoder's predictor")
        for kind in sparsity_pct:
            one_of(kind, predictor.kinds, "units to skip")
        if "heads" in sparsity_pct and reads_own_heads(predictor.groups):
            raise ConfigError(
                f"a {predictor.design} predictor reads the heads it should skip; it can skip neurons only"
            )
        self.predictor, self.policy_name, self.policy = predictor, policy, predictor_policy(policy, predictor)
        self.sparsity_pct = dict(sparsity_pct)
        self.weight_bytes = _weight_bytes(predictor, self.sparsity_pct)
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
        if isinstance(self.predictor, Predictor):
            feature = feature.to(next(self.predictor.parameters()).dtype)
        return {kind: self.predictor.read(site, feature, kind) for kind in self.sparsity_pct}


def _weight_bytes(predictor: Predictor | PackedPredictor | Proxy, kinds: Mapping[Kind, int]) -> int:
    if not isinstance(predictor, Predictor):
        return predictor.weight_bytes
    scorers = [predictor.scorers[kind] for kind in kinds]
    return sum(tensor.nbytes for scorer in scorers for tensor in (*scorer.parameters(), *scorer.buffers()))


def kept_of(keep: torch.Tensor) -> list[Kept]:
    """The units of each layer of a keep mask (B, layers, U), ascending: the union over the sequences."""
    union = keep.any(0)  # (layers, U)
    units = union.nonzero()[:, 1].split(union.sum(1).tolist())  # one search for all layers
    if len(keep) == 1:
        return [Kept(some, None) for some in units]
    return [Kept(some, keep[:, layer, some]) for layer, some in enumerate(units)]
