"""The selections of the Triton decoder: decided and kept on the device, so that no step waits for the host.

`on_device` makes the counterpart of any selection (`selection`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import torch

from shadowcore.decode.kernels import batched_gemm as batched
from shadowcore.decode.kernels.fused_norm import Normed, Read
from shadowcore.decode.kernels.gemv import project
from shadowcore.decode.kernels.launch import Units
from shadowcore.decode.kernels.low_bit import score_neurons
from shadowcore.decode.kernels.select import Choice, score, select, unite
from shadowcore.decode.layout import Layout
from shadowcore.decode.low_bit_proxy import Proxy
from shadowcore.decode.packed_predictor import PackedGroup, PackedPredictor, pack
from shadowcore.decode.selection import DenseSelection, FixedSelection, Kept, PredictedSelection, Scores, Selection
from shadowcore.errors import ConfigError
from shadowcore.method.policies import kept_units
from shadowcore.method.predictors import Group
from shadowcore.models.families import Kind
from shadowcore.models.recording import Site

Launcher = Callable[[Callable[[], None]], None]  # launches kernels: at once, or on a stream of their own
ALIGNED = 16  # numbers between two layers' lists: kernels are compiled once for all of them


def on_device(selection: Selection | None, layout: Layout) -> TritonSelection:
    """The Triton counterpart of a selection. Raises ConfigError for a policy other than `per_layer`."""
    if selection is None or isinstance(selection, DenseSelection):
        return TritonDense()
    if isinstance(selection, FixedSelection):
        return TritonFixed(selection, layout)
    if not isinstance(selection, PredictedSelection):
        raise ConfigError(f"selection: the Triton backend has no counterpart of {type(selection).__name__}")
    if selection.policy_name != "per_layer":
        raise ConfigError(
            f"policy '{selection.policy_name}': the Triton backend chooses per_layer; the torch backend has it"
        )
    predictor = selection.predictor
    if isinstance(predictor, Proxy):
        return TritonProxy(predictor, selection.sparsity_pct, layout)
    if not isinstance(predictor, PackedPredictor):
        predictor = pack(predictor, tuple(selection.sparsity_pct), layout.dtype, layout.device)
    return TritonPredicted(predictor, selection.sparsity_pct, layout)


class TritonSelection(Selection):
    """What every selection does on the device; `units` says what is computed.

    kinds: of unit that are chosen while decoding. sites: where features are read, and the first layer whose units are
    chosen there. ahead: whether a residual is read as the input of its layer's FFN, normed.
    """

    batch = 1
    kinds: tuple[Kind, ...] = ()
    sites: Mapping[Site, int] = {}
    ahead = False

    def allocate(self, batch: int) -> None:
        """Make room for this many sequences, before the first step."""
        self.batch = batch

    def see(self, site: Site, feature: torch.Tensor | Normed, launch: Launcher = operator.call) -> None:
        """Read a feature at one of `sites`, at once but for what no one overwrites; choose through `launch`."""

    def units(self, layer: int, kind: Kind) -> Units | None:
        """Units to compute in the current step; None for all."""
        return None

    def kept(self, layer: int, kind: Kind) -> Kept | None:
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


class TritonDense(TritonSelection):
    """Nothing is skipped."""


class TritonFixed(TritonSelection):
    """Units that are given in advance, for S steps that take turns: lists (S, L, n) on the device."""

    def __init__(self, selection: FixedSelection, layout: Layout):
        self.sequences = selection.sequences
        self._turns: list[tuple[torch.Tensor, torch.Tensor]] = []  # what S steps need, and the current one's
        self._units: dict[tuple[int, Kind], Units] = {}
        for kind, steps in selection.steps.items():
            width = max(1, *(len(kept.units) for layers in steps for kept in layers if kept))
            shape = len(steps), len(steps[0])
            index, count = (_lists(*shape, size, device=layout.device) for size in (width, 1))
            lists = index, count, _lists(*shape, width, device=layout.device, dtype=torch.int64)
            for layers, *places in zip(steps, *lists, strict=True):
                for kept, index, count, rows in zip(layers, *places, strict=True):
                    if kept:
                        index[: len(kept.units)], count[0] = kept.units, len(kept.units)
                        rows[: len(kept.units)] = -1 if kept.rows is None else _bits_of(kept.rows)
            now = [every[0].clone() for every in lists]
            self._turns += zip(lists, now, strict=True)
            for layer, (kept, index, count, rows) in enumerate(zip(steps[0], *now, strict=True)):
                if kept:
                    self._units[layer, kind] = Units(index[:width], count[:1], rows[:width])

    def start(self, position: int | torch.Tensor) -> None:
        for every, now in self._turns:
            if len(every) > 1:
                torch.index_select(every, 0, position % len(every), out=now[None])

    def units(self, layer: int, kind: Kind) -> Units | None:
        return self._units.get((layer, kind))


class TritonChosen(TritonSelection):
    """Units chosen in every step, per layer, from the scores of a predictor's groups; the buffers hold one group's.

    In a batch, every sequence keeps as many of its own as one alone, and the union over the sequences is computed. What
    is scored may be blocks of neighbouring neurons.
    """

    def __init__(self, predictor: PackedPredictor | Proxy, sparsity_pct: Mapping[Kind, int], layout: Layout):
        self.predictor, self._layers, self._device = predictor, layout.sizes.layers, layout.device
        self.kinds = tuple(predictor.kinds)
        self.sites = {group.site: group.layers[0] for group in predictor.groups}
        self._predicted = frozenset(layer for group in predictor.groups for layer in group.layers)
        self._scored = {kind: layout.sizes.units(kind) // predictor.blocks[kind] for kind in self.kinds}
        self._kept = {kind: kept_units(count, sparsity_pct[kind]) for kind, count in self._scored.items()}
        self.weight_bytes = predictor.weight_bytes
        self.allocate(1)

    def allocate(self, batch: int) -> None:
        super().allocate(batch)
        device, layers = self._device, max(len(group.layers) for group in self.predictor.groups)
        self._capacity = {kind: min(self._scored[kind], batch * count) for kind, count in self._kept.items()}
        self._starts, width = {}, 0  # of each kind's scores in a row, where wide loads may begin
        for kind, scored in self._scored.items():
            self._starts[kind], width = width, width + scored + -scored % ALIGNED
        self._scores = torch.empty(batch * layers, width, device=device)
        self._flags = None
        if batch > 1:
            most = max(self._scored.values())
            self._flags = torch.empty(batch * layers * most, dtype=torch.int8, device=device)
        self._index, self._rows = (
            {kind: _lists(self._layers, room, device=device, dtype=dtype) for kind, room in self._capacity.items()}
            for dtype in (torch.int32, torch.int64)
        )
        self._counts = {kind: _lists(self._layers, 1, device=device) + count for kind, count in self._kept.items()}

    def choose(self, site: Site) -> None:
        """Choose one sequence's units from the scores in the buffer: the selection kernel alone."""
        group = self._group(site)
        choices = [
            Choice(self._starts[kind], self._scored[kind], count, self._index[kind][_span(group)])
            for kind, count in self._kept.items()
        ]
        select(self._scores[: len(group.layers)], choices)

    def _unite(self, group: PackedGroup | Group, kind: Kind, scores: torch.Tensor) -> None:
        """Choose several sequences' units of a kind from scores (B, layers, U)."""
        span, units = _span(group), self._scored[kind]
        flags = self._flags[: scores.numel()].view(scores.shape)
        select(scores.view(-1, units), [Choice(0, units, self._kept[kind], flags.view(-1, units))])
        unite(flags, self._index[kind][span], self._rows[kind][span], self._counts[kind][span])

    def units(self, layer: int, kind: Kind) -> Units | None:
        if layer not in self._predicted or kind not in self._kept:
            return None
        room, count = slice(self._capacity[kind]), self._counts[kind][layer, :1]
        rows = self._rows[kind][layer, room] if self.batch > 1 else None
        return Units(self._index[kind][layer, room], count, rows, self.predictor.blocks[kind])

    def scores(self, site: Site, feature: torch.Tensor) -> Scores:
        if site not in self.sites:
            return {}
        return {kind: self.predictor.read(site, feature, kind) for kind in self.predictor.kinds}

    def _group(self, site: Site) -> PackedGroup:
        return self.predictor.groups[self.predictor.group_at[site]]


class TritonPredicted(TritonChosen):
    """Units chosen by a predictor, by three kernels a group: its product, its scores, its selection."""

    predictor: PackedPredictor

    def allocate(self, batch: int) -> None:
        super().allocate(batch)
        groups = self.predictor.groups
        # several sequences multiply 8-bit weights with features in 16 bits
        self.score_dtype = torch.bfloat16 if batch > 1 and groups[0].inner.dtype == torch.int8 else None
        self._hidden = torch.empty(batch, max(len(group.inner) for group in groups), device=self._device)

    def see(self, site: Site, feature: torch.Tensor, launch: Launcher = operator.call) -> None:
        """Choose the units of the layers that are predicted from here."""
        group, single = self._group(site), self.batch == 1
        hidden, read = self._hidden[:, : len(group.inner)], Read(None, group.inner_bias)
        multiply = project if single else batched.project
        multiply(feature, group.inner, read, hidden, activation="relu", scale=group.inner_scale)
        launch(lambda: (self._choose_one if single else self._choose_several)(group, hidden))

    def _choose_one(self, group: PackedGroup, hidden: torch.Tensor) -> None:
        scores = self._scores[: len(group.layers)]
        score(hidden, group.outer.get("heads"), group.outer.get("neurons"), scores, self._starts.get("neurons", 0))
        self.choose(group.site)

    def _choose_several(self, group: PackedGroup, hidden: torch.Tensor) -> None:
        for kind, (weight, bias, scale) in group.outer.items():
            layers, units = weight.shape[:2]
            scores = self._scores.view(-1)[: self.batch * layers * units].view(self.batch, layers * units)
            batched.project(hidden[:, group.hidden(kind)], weight, Read(None, bias), scores, scale=scale)
            self._unite(group, kind, scores.view(-1, layers, units))


class TritonProxy(TritonChosen):
    """Neurons chosen by low-bit copies of the FFN's input rows, by two kernels a layer: the scores, the selection."""

    predictor: Proxy

    def __init__(self, predictor: Proxy, sparsity_pct: Mapping[Kind, int], layout: Layout):
        super().__init__(predictor, sparsity_pct, layout)
        self.ahead, self._activation, self._copies = predictor.ahead, layout.activation, predictor.copies.packed()
        self.weight_bytes = sum(t.nbytes for copies in self._copies.values() for t in copies if t is not None)

    def see(self, site: Site, feature: Normed, launch: Launcher = operator.call) -> None:
        """Choose the neurons of the site's layer."""
        launch(lambda: self._choose(self._group(site), feature))

    def _choose(self, group: Group, feature: Normed) -> None:
        units = self._scored["neurons"]
        scores = self._scores.view(-1)[: self.batch * units].view(self.batch, units)
        score_neurons(feature, self._copies[group.site.layer], scores, self._activation, self.predictor.bits)
        if self.batch == 1:
            self.choose(group.site)
        else:
            self._unite(group, "neurons", scores[:, None])


def _bits_of(rows: torch.Tensor) -> torch.Tensor:
    """Of which sequences keep each unit, rows (B, n) bool, the bits (n,) int64."""
    return (rows.long() << torch.arange(len(rows), device=rows.device)[:, None]).sum(0)


def _span(group: PackedGroup | Group) -> slice:
    return slice(group.layers[0], group.layers[-1] + 1)


def _lists(*shape: int, device: torch.device, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Zeros (..., n), in rows whose length is rounded up to a multiple of ALIGNED."""
    return torch.zeros(*shape[:-1], shape[-1] + -shape[-1] % ALIGNED, dtype=dtype, device=device)
