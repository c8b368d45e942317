"""Which units a step of the Triton decoder keeps, decided and kept on the device: nothing of it waits for the host.

The counterparts of `skipping`: `on_device` turns any selection of the torch decoder into one of these.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import torch

from shadowcore.decode.kernels import batched_gemm as batched
from shadowcore.decode.kernels.fused_norm import Read
from shadowcore.decode.kernels.gemv import project
from shadowcore.decode.kernels.launch import Units
from shadowcore.decode.kernels.select import Choice, score, select, unite
from shadowcore.decode.packed_predictor import Group, groups_of
from shadowcore.decode.selection import KeepAll, KeepFixed, KeepPredicted, Kept, Scores, Selection
from shadowcore.errors import ConfigError
from shadowcore.method.policies import kept_units
from shadowcore.models.families import KINDS, Dimensions, Kind
from shadowcore.models.recording import Site

Beside = Callable[[Callable[[], None]], None]  # launches kernels now, or beside those that follow
ALIGNED = 16  # int32 numbers between two layers' lists: kernels are compiled once for all of them


class AllUnits:
    """Dense: nothing is skipped."""

    weight_bytes = 0
    score_dtype: torch.dtype | None = None  # what scores are computed in, where it is not the layout's number format

    def sites(self) -> dict[Site, int]:
        """Where it wants to see what flows, and the first layer it chooses for from there."""
        return {}

    def allocate(self, batch: int) -> None:
        """Told before the first step how many sequences are decoded together."""

    def start(self, position: torch.Tensor) -> None:
        """Told at the beginning of a step at which position (one integer, on the device) it is."""

    def see(self, site: Site, feature: torch.Tensor, beside: Beside = operator.call) -> None:
        """Told what flows at each of its sites, (B, D) or (B, H K) float32: read at once, the choice made `beside`."""

    def units(self, layer: int, kind: Kind) -> Units | None:
        """Units to compute there in the step under way; None for all."""
        return None

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        """Units computed there in the last step, as the torch decoder says it."""
        units = self.units(layer, kind)
        if units is None:
            return None
        index, order = units.index[: units.count.item()].long().sort()
        index = (index[:, None] * units.block + torch.arange(units.block, device=index.device)).flatten()
        if units.rows is None:
            return Kept(index, None)
        sequences = torch.arange(self.batch, device=index.device)[:, None]
        rows = (units.rows[order] >> sequences & 1).bool()
        return Kept(index, rows.repeat_interleave(units.block, 1))

    def scores(self, site: Site, feature: torch.Tensor) -> Scores:
        """What a predictor that reads `site` scores there, computed by torch in float32; empty without one."""
        return {}


class GivenUnits(AllUnits):
    """Units given in advance: lists[kind] (S, L, n), a turn of S steps that begins anew after the last.

    counts[kind] (L,): how many of the n are meant; without it all. The layers in `dense` keep all of their units.
    """

    def __init__(
        self,
        lists: Mapping[Kind, torch.Tensor],
        counts: Mapping[Kind, torch.Tensor] | None = None,
        dense: Mapping[Kind, Sequence[int]] | None = None,
    ):
        self._turns = {kind: _aligned(turn) for kind, turn in lists.items()}
        self._now = {kind: turn[0].clone() for kind, turn in self._turns.items()}
        self._width = {kind: turn.shape[2] for kind, turn in lists.items()}
        self._counts = {
            kind: _counts(counts[kind] if counts else torch.full((turn.shape[1],), turn.shape[2]), turn.device)
            for kind, turn in lists.items()
        }
        self._dense = {kind: frozenset(dense[kind]) if dense else frozenset() for kind in lists}

    def start(self, position: torch.Tensor) -> None:
        """Take the next lists of the turn."""
        for kind, turn in self._turns.items():
            if len(turn) > 1:
                torch.index_select(turn, 0, position % len(turn), out=self._now[kind][None])

    def units(self, layer: int, kind: Kind) -> Units | None:
        """Units to compute there in the step under way; None for all."""
        if kind not in self._now or layer in self._dense[kind]:
            return None
        return Units(self._now[kind][layer, : self._width[kind]], self._counts[kind][layer, :1])


class PredictedUnits(AllUnits):
    """Units chosen in every step, per layer: three kernels a group, its product, its scores, its selection.

    kept: how many of the units that are scored every predicted layer keeps; these may be blocks of neighbouring
    neurons. Of a batch every sequence keeps so many of its own, and what any of them keeps is computed.
    """

    def __init__(self, groups: Sequence[Group], sizes: Dimensions, kept: Mapping[Kind, int]):
        self._groups = {group.site: group for group in groups}
        self._site_of = {layer: group.site for group in groups for layer in group.layers}
        self._layers, self._kept = sizes.layers, dict(kept)
        self._scored = {kind: groups[0].outer[kind].weight.shape[1] for kind in kept}
        self._block = {kind: sizes.units(kind) // scored for kind, scored in self._scored.items()}
        self.weight_bytes = sum(tensor.nbytes for group in groups for tensor in group.tensors())
        self.allocate(1)

    def allocate(self, batch: int) -> None:
        """Room for the scores and choices of so many sequences."""
        groups = list(self._groups.values())
        device, layers = groups[0].inner.device, max(len(group.layers) for group in groups)
        self.batch = batch
        # several sequences multiply 8-bit weights with features in 16 bits
        self.score_dtype = torch.bfloat16 if batch > 1 and groups[0].inner.dtype == torch.int8 else None
        self._capacity = {kind: min(self._scored[kind], batch * count) for kind, count in self._kept.items()}
        self._hidden = torch.empty(batch, max(len(group.inner) for group in groups), device=device)
        self._starts, width = {}, 0  # of each kind's scores in a row, where wide loads may begin
        for kind, scored in self._scored.items():
            self._starts[kind], width = width, width + scored + -scored % ALIGNED
        self._scores = torch.empty(batch * layers, width, device=device)
        self._flags = None
        if batch > 1:
            most = max(self._scored.values())
            self._flags = torch.empty(batch * layers * most, dtype=torch.int8, device=device)
        self._index, self._rows = (
            {
                kind: _aligned(torch.zeros(self._layers, capacity, dtype=torch.int32, device=device))
                for kind, capacity in self._capacity.items()
            }
            for _ in range(2)
        )
        self._counts = {kind: _counts(torch.full((self._layers,), count), device) for kind, count in self._kept.items()}

    def sites(self) -> dict[Site, int]:
        """Where it wants to see what flows, and the first layer it chooses for from there."""
        return {site: group.layers[0] for site, group in self._groups.items()}

    def see(self, site: Site, feature: torch.Tensor, beside: Beside = operator.call) -> None:
        """Choose the units of the layers that are predicted from here: the feature is read at once, the rest `beside`.

        The results of one group have room at a time.
        """
        group, one = self._groups[site], self.batch == 1
        hidden, read = self._hidden[:, : len(group.inner)], Read(None, group.inner_bias)
        (project if one else batched.project)(
            feature, group.inner, read, hidden, activation="relu", scale=group.inner_scale
        )
        beside(lambda: (self._choose_one if one else self._choose_several)(group, hidden))

    def _choose_one(self, group: Group, hidden: torch.Tensor) -> None:
        scores = self._scores[: len(group.layers)]
        score(hidden, group.outer.get("heads"), group.outer.get("neurons"), scores, self._starts.get("neurons", 0))
        self.choose(group.site)

    def choose(self, site: Site) -> None:
        """Choose one sequence's units from the scores there are: the selection alone."""
        group = self._groups[site]
        choices = [
            Choice(self._starts[kind], self._scored[kind], count, self._index[kind][_span(group)])
            for kind, count in self._kept.items()
        ]
        select(self._scores[: len(group.layers)], choices)

    def _choose_several(self, group: Group, hidden: torch.Tensor) -> None:
        layers, start = len(group.layers), 0
        for kind, (weight, bias, scale) in group.outer.items():
            units, rank = weight.shape[1:]
            scores = self._scores.view(-1)[: self.batch * layers * units].view(self.batch, layers * units)
            flags = self._flags[: scores.numel()].view(self.batch, layers, units)
            batched.project(hidden[:, start : start + rank], weight, Read(None, bias), scores, scale=scale)
            flat = flags.view(-1, units)
            select(scores.view(-1, units), [Choice(0, units, self._kept[kind], flat)])
            span = _span(group)
            unite(flags, self._index[kind][span], self._rows[kind][span], self._counts[kind][span])
            start += rank

    def units(self, layer: int, kind: Kind) -> Units | None:
        """Units to compute there in the step under way; None for all."""
        if layer not in self._site_of or kind not in self._kept:
            return None
        room, count = slice(self._capacity[kind]), self._counts[kind][layer, :1]
        rows = self._rows[kind][layer, room] if self.batch > 1 else None
        return Units(self._index[kind][layer, room], count, rows, self._block[kind])

    def scores(self, site: Site, feature: torch.Tensor) -> Scores:
        """What the group at `site` scores for a feature (B, D), computed by torch in float32; empty elsewhere."""
        group = self._groups.get(site)
        if group is None:
            return {}
        hidden = torch.relu(feature.float() @ _full(group.inner, group.inner_scale).T + group.inner_bias)
        found, start = {}, 0
        for kind, (weight, bias, scale) in group.outer.items():
            rank = weight.shape[-1]
            part = hidden[:, start : start + rank]
            # a layer at a time: all of them in float32 may not fit
            layers = [
                part @ _full(weight[i], None if scale is None else scale[i]).T + bias[i] for i in range(len(weight))
            ]
            found[kind] = group.layers, torch.stack(layers, 1)
            start += rank
        return found


def _full(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Stored weights (rows, columns) as float32: `scale`, one number a row, multiplies 8-bit ones."""
    return weight.float() if scale is None else weight.float() * scale[:, None]


def _span(group: Group) -> slice:
    return slice(group.layers[0], group.layers[-1] + 1)


def on_device(selection: Selection | None, sizes: Dimensions, dtype: torch.dtype, device: torch.device) -> AllUnits:
    """The selection that does on the device what this one does; of policies only `per_layer`, else ConfigError."""
    if isinstance(selection, AllUnits):
        return selection
    if isinstance(selection, KeepPredicted):
        if selection.policy_name != "per_layer":
            raise ConfigError(
                f"policy '{selection.policy_name}': the Triton backend chooses per_layer; the torch backend has it"
            )
        predictor, kinds = selection.predictor, selection.sparsity_pct
        kept = {kind: kept_units(sizes.units(kind) // predictor.blocks[kind], pct) for kind, pct in kinds.items()}
        return PredictedUnits(groups_of(predictor, tuple(kinds), dtype, device, predictor.bits), sizes, kept)
    if isinstance(selection, KeepFixed):
        return _given(selection, sizes, device)
    if selection is None or isinstance(selection, KeepAll):
        return AllUnits()
    raise ConfigError(f"selection: the Triton backend has no counterpart of {type(selection).__name__}")


def _given(selection: KeepFixed, sizes: Dimensions, device: torch.device) -> GivenUnits:
    lists, counts, dense = {}, {}, {}
    for kind in KINDS:
        kept = [selection.kept(layer, kind) for layer in range(sizes.layers)]
        dense[kind] = [layer for layer, some in enumerate(kept) if some is None]
        counts[kind] = torch.tensor([0 if some is None else len(some.units) for some in kept])
        lists[kind] = torch.zeros(1, sizes.layers, max(1, int(counts[kind].max())), dtype=torch.int32, device=device)
        for layer, some in enumerate(kept):
            if some is not None:
                lists[kind][0, layer, : len(some.units)] = some.units
    return GivenUnits(lists, counts, dense)


def _aligned(lists: torch.Tensor) -> torch.Tensor:
    """int32 lists (..., n) in rows whose length is a multiple of ALIGNED."""
    missing = -lists.shape[-1] % ALIGNED
    return torch.nn.functional.pad(lists, (0, missing)).contiguous()


def _counts(counts: torch.Tensor, device: torch.device) -> torch.Tensor:
    """One count a layer, each at the beginning of its own aligned row."""
    rows = torch.zeros(len(counts), ALIGNED, dtype=torch.int32, device=device)
    rows[:, 0] = counts
    return rows
