"""Every way to decode a model known by its dimensions: modes and baselines, by name, with what tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout
from shadowcore.decode.random_weights import last_units, random_groups, random_predictor
from shadowcore.decode.selection import KeepFixed, KeepPredicted
from shadowcore.errors import ConfigError
from shadowcore.method.policies import kept_units
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, groups_of
from shadowcore.models.families import KINDS_OF, Kind

RIVALS = ("cublas", "compiled", "gather_ordered", "gather_shuffled", "relu", "huggingface", "huggingface_static")
FRESH_LISTS = 8  # of given units, one after the other


@dataclass(frozen=True)
class Design:
    """A predictor to time: its design and sizes, `bits` a weight; sparsities_pct: at which, all where empty."""

    method: str
    rank_heads: int
    rank_neurons: int
    segments: int = 1
    bits: int = 16
    sparsities_pct: tuple[int, ...] = ()


@dataclass(frozen=True)
class Modes:
    """What is timed together: `batch` sequences, each with room for `room` positions; the rest as in a study."""

    units: str
    sparsities_pct: tuple[int, ...]
    designs: tuple[Design, ...]
    baselines: tuple[str, ...]
    room: int
    seed: int
    batch: int = 1


Variant = tuple[str, dict[str, Any], Callable[[], Any]]


def variants(modes: Modes, layout: Layout) -> Iterator[Variant]:
    """Name, key columns and maker of everything to be timed; the dense Triton decoder first."""
    return (on_gpu if layout.device.type == "cuda" else on_cpu)(modes, layout)


def kept_of(modes: Modes, layout: Layout, pct: int) -> dict[Kind, int]:
    """Units kept in each sparse layer."""
    return {kind: kept_units(layout.sizes.units(kind), pct) for kind in KINDS_OF[modes.units]}


def on_gpu(modes: Modes, layout: Layout) -> Iterator[Variant]:
    """The Triton decoder in all modes, and other dense decoders."""
    from shadowcore.decode.triton_decoder import GraphDecoder
    from shadowcore.decode.triton_selection import GivenUnits, PredictedUnits
    from shadowcore.measure.dense_baselines import HuggingFaceGenerate, TorchGraph

    sizes, device = layout.sizes, layout.device
    first = range(FIRST_SPARSE_LAYER)
    generator = torch.Generator(device).manual_seed(modes.seed)

    def lists(kept: dict[Kind, int], turns: int, shuffled: bool) -> GivenUnits:
        chosen = {}
        for kind, count in kept.items():
            order = torch.rand(turns, sizes.layers, sizes.units(kind), generator=generator, device=device).argsort(-1)
            order = order[..., :count]
            chosen[kind] = (order if shuffled else order.sort(-1).values).to(torch.int32)
        return GivenUnits(chosen, dense=dict.fromkeys(kept, tuple(first)))

    def graph(layout: Layout = layout, selection: Any = None, **more: Any) -> GraphDecoder:
        return sequences(GraphDecoder(layout, modes.room, selection, **more), modes.batch)

    all_units = kept_of(modes, layout, 0)
    dense = {
        "dense": graph,
        "cublas": lambda: sequences(TorchGraph(layout, modes.room), modes.batch),
        "compiled": lambda: sequences(TorchGraph(layout, modes.room, compiled=True), modes.batch),
        "gather_ordered": lambda: graph(selection=lists(all_units, 1, shuffled=False)),
        "gather_shuffled": lambda: graph(selection=lists(all_units, 1, shuffled=True)),
        "relu": lambda: graph(thresholds=[0.0] * sizes.layers),
    }
    for name, make in dense.items():
        if name == "dense" or (name in modes.baselines and (name != "relu" or layout.exact_zeros)):
            yield name, {"mode": name, "sparsity_pct": 0}, make
    for pct in modes.sparsities_pct:
        keys, kept = {"units": modes.units, "sparsity_pct": pct}, kept_of(modes, layout, pct)
        yield (
            f"static {pct}",
            keys | {"mode": "static"},
            lambda kept=kept: graph(last_units(layout, kept, FIRST_SPARSE_LAYER)),
        )
        yield (
            f"oracle {pct}",
            keys | {"mode": "oracle"},
            lambda kept=kept: graph(selection=lists(kept, FRESH_LISTS, shuffled=False)),
        )

    for index, design in enumerate(modes.designs):
        ranks = ranks_of(modes, design)
        try:
            groups = random_groups(
                design.method, sizes, ranks, design.segments, design.bits, layout.dtype, device, modes.seed + index
            )
        except torch.OutOfMemoryError as error:
            groups, short = [], error
        for pct in design.sparsities_pct or modes.sparsities_pct:
            name, keys = named(modes, design, pct, len(groups_of(design.method, sizes.layers, design.segments)))
            kept = kept_of(modes, layout, pct)
            if groups:
                make = partial(lambda groups, kept: graph(selection=PredictedUnits(groups, sizes, kept)), groups, kept)
            else:
                make = partial(_refuse, short)  # this design is refused, the next one may fit
            yield name, keys, make
    for name in ("huggingface", "huggingface_static"):
        if name in modes.baselines:
            static = name == "huggingface_static"
            yield (
                name,
                {"mode": name, "sparsity_pct": 0},
                lambda static=static: HuggingFaceGenerate(layout, modes.room, static),
            )


def _refuse(error: Exception) -> Any:
    raise error


def sequences(decoder: Decoder, batch: int) -> Decoder:
    """The decoder, ready for so many sequences."""
    decoder.reset(batch)
    return decoder


def on_cpu(modes: Modes, layout: Layout) -> Iterator[Variant]:
    """The torch decoder in the modes it has."""

    def torch_decoder(layout: Layout = layout, selection: Any = None) -> Decoder:
        return sequences(Decoder(layout, modes.room, selection), modes.batch)

    generator = torch.Generator().manual_seed(modes.seed)

    def masks(kept: dict[Kind, int]) -> KeepFixed:
        keep = {kind: layout.keep_masks()[kind] for kind in kept}
        for kind, count in kept.items():
            order = torch.rand(keep[kind].shape, generator=generator).argsort(-1)
            keep[kind][FIRST_SPARSE_LAYER:] = order[FIRST_SPARSE_LAYER:] < count
        return KeepFixed(keep)

    yield "dense", {"mode": "dense", "sparsity_pct": 0}, torch_decoder
    for pct in modes.sparsities_pct:
        keys, kept = {"units": modes.units, "sparsity_pct": pct}, kept_of(modes, layout, pct)
        compact = last_units(layout, kept, FIRST_SPARSE_LAYER)
        yield f"static {pct}", keys | {"mode": "static"}, lambda compact=compact: torch_decoder(compact)
        yield f"oracle {pct}", keys | {"mode": "oracle"}, lambda kept=kept: torch_decoder(selection=masks(kept))
    for index, design in enumerate(modes.designs):
        if design.bits != 16:
            raise ConfigError(f"designs: the torch backend has no {design.bits}-bit predictors; 16 would fit")
        ranks = ranks_of(modes, design)
        predictor = random_predictor(
            design.method, layout.sizes, ranks, design.segments, layout.dtype, modes.seed + index
        )
        for pct in design.sparsities_pct or modes.sparsities_pct:
            name, keys = named(modes, design, pct, len(predictor.groups))
            selection = KeepPredicted(predictor, "per_layer", dict.fromkeys(KINDS_OF[modes.units], pct))
            yield name, keys, lambda selection=selection: torch_decoder(selection=selection)


def ranks_of(modes: Modes, design: Design) -> dict[Kind, int]:
    """The predictor's hidden width for each kind of unit that is skipped."""
    ranks = {"heads": design.rank_heads, "neurons": design.rank_neurons}
    return {kind: ranks[kind] for kind in KINDS_OF[modes.units]}


def named(modes: Modes, design: Design, pct: int, groups: int) -> tuple[str, dict[str, Any]]:
    """What a predicted mode is called, and its key columns."""
    ranks = list(ranks_of(modes, design).values())
    keys = {
        "mode": design.method, "units": modes.units, "sparsity_pct": pct, "predictor_rank": ranks[-1],
        "predictor_rank_heads": ranks[0] if len(ranks) > 1 else None, "predictor_bits": design.bits,
        "predictor_groups": groups,
    }  # fmt: skip
    return f"{design.method} {'/'.join(map(str, ranks))} {design.bits} bits, {groups} groups {pct}", keys
