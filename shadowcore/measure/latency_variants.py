"""Every way to decode a model known by its dimensions: the modes and the dense baselines, by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout
from shadowcore.decode.low_bit_proxy import LowBitCopies, Proxy
from shadowcore.decode.random_weights import last_units, random_packed_predictor, random_predictor
from shadowcore.decode.selection import FixedSelection, PredictedSelection
from shadowcore.errors import ConfigError
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.policies import kept_units, top_units
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, groups_of
from shadowcore.models.families import KINDS_OF, Kind

RIVALS = ("cublas", "compiled", "gather_ordered", "gather_shuffled", "relu", "huggingface", "huggingface_static")
FRESH_LISTS = 8  # of given units, for steps that take turns


@dataclass(frozen=True)
class Design:
    """A predictor to time, or a proxy, which has a method only; sparsities_pct: where it is timed, all if empty."""

    method: str
    rank_heads: int | None = None
    rank_neurons: int | None = None
    segments: int = 1
    bits: int = 16
    sparsities_pct: tuple[int, ...] = ()


@dataclass(frozen=True)
class Modes:
    """What is timed together: `batch` sequences of up to `room` positions; the other fields are those of a study."""

    units: str
    sparsities_pct: tuple[int, ...]
    designs: tuple[Design, ...]
    baselines: tuple[str, ...]
    room: int
    seed: int
    batch: int = 1


Variant = tuple[str, dict[str, Any], Callable[[], Any]]


def variants(modes: Modes, layout: Layout, triton: bool) -> Iterator[Variant]:
    """Name, key columns and maker of everything to be timed, the dense decoder first.

    The Triton decoder is timed with dense baselines, the torch decoder without. Raises ConfigError for 8-bit
    predictors in the torch decoder.
    """
    from shadowcore.measure.dense_baselines import HuggingFaceGenerate  # not above: configurations read RIVALS

    sizes = layout.sizes
    generator = torch.Generator(layout.device).manual_seed(modes.seed)

    def make(layout: Layout = layout, decoder: Callable = graph_decoder if triton else Decoder, **more: Any) -> Decoder:
        made = decoder(layout, modes.room, **more)
        made.reset(modes.batch)
        return made

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=layout.device)

    def given(kept: dict[Kind, int]) -> Decoder:
        """Random units of each sequence, chosen in advance for some steps that take turns; layer 0 is dense."""
        keep = {}
        for kind, count in kept.items():
            shape = modes.batch, sizes.layers, sizes.units(kind)
            keep[kind] = torch.stack([top_units(random(*shape), count) for _ in range(FRESH_LISTS if triton else 1)])
            keep[kind][:, :, :FIRST_SPARSE_LAYER] = True
        return make(selection=FixedSelection(keep))

    def gather(shuffled: bool) -> Decoder:
        """All units, as a list in order or shuffled; layer 0 is dense."""
        lists = {}
        for kind, count in all_units.items():
            orders = random(sizes.layers, count).argsort(-1)
            orders = orders if shuffled else orders.sort(-1).values
            lists[kind] = [None if layer < FIRST_SPARSE_LAYER else order for layer, order in enumerate(orders)]
        return make(selection=FixedSelection.listed(lists))

    def static(kept: dict[Kind, int]) -> Decoder:
        return make(last_units(layout, kept, FIRST_SPARSE_LAYER))

    yield "dense", {"mode": "dense", "sparsity_pct": 0}, make
    all_units = {kind: sizes.units(kind) for kind in KINDS_OF[modes.units]}
    if triton:
        yield from baselines(modes, layout, make, gather)
    for pct in modes.sparsities_pct:
        keys = {"units": modes.units, "sparsity_pct": pct}
        kept = {kind: kept_units(count, pct) for kind, count in all_units.items()}
        yield f"static {pct}", keys | {"mode": "static"}, partial(static, kept)
        yield f"given {pct}", keys | {"mode": "given"}, partial(given, kept)
    yield from predicting(modes, layout, make, triton)
    for name in ("huggingface", "huggingface_static"):
        if triton and name in modes.baselines:
            make_theirs = partial(HuggingFaceGenerate, layout, modes.room, modes.batch, name == "huggingface_static")
            yield name, {"mode": name, "sparsity_pct": 0}, make_theirs


def predicting(modes: Modes, layout: Layout, make: Callable, triton: bool) -> Iterator[Variant]:
    """The designs of predictors, each at its sparsities."""
    copies: dict[int, LowBitCopies] = {}
    for index, design in enumerate(modes.designs):
        if design.bits != 16 and not triton:
            raise ConfigError(f"designs: the torch backend has no {design.bits}-bit predictors; bits must be 16")
        predictor, reason = None, None
        try:
            predictor = predictor_of(modes, design, layout, modes.seed + index, triton, copies)
        except torch.OutOfMemoryError as error:  # this design is refused; the next one may fit
            reason = error
        for pct in design.sparsities_pct or modes.sparsities_pct:
            yield (*named(modes, design, pct, layout.sizes.layers), partial(predicted, make, predictor, reason, pct))


def baselines(modes: Modes, layout: Layout, make: Callable, gather: Callable[[bool], Decoder]) -> Iterator[Variant]:
    """Other dense decoders, those that the study names; `gather` lists all units, in order or shuffled."""
    from shadowcore.measure.dense_baselines import TorchGraph  # as in `variants`

    makers = {
        "cublas": lambda: make(decoder=TorchGraph),
        "compiled": lambda: make(decoder=TorchGraph, compiled=True),
        "gather_ordered": lambda: gather(False),
        "gather_shuffled": lambda: gather(True),
        "relu": lambda: make(thresholds=[0.0] * layout.sizes.layers),
    }
    for name, maker in makers.items():
        served = name != "relu" or (layout.exact_zeros and modes.batch == 1)  # zeros of a batch differ by sequence
        if name in modes.baselines and served:
            yield name, {"mode": name, "sparsity_pct": 0}, maker


def graph_decoder(*arguments: Any, **more: Any) -> Decoder:
    """The Triton decoder, imported only where it is used."""
    from shadowcore.decode.triton_decoder import GraphDecoder

    return GraphDecoder(*arguments, **more)


def predictor_of(
    modes: Modes, design: Design, layout: Layout, seed: int, triton: bool, copies: dict[int, LowBitCopies]
) -> Any:
    """A random predictor as the backend reads it, or a proxy, which takes its copies from `copies` or adds them."""
    if design.method in PROXIES:
        proxy = Proxy(layout, design.method, copies)
        if triton:
            proxy.copies.packed()  # now: what they need while they are made is not the decoder's
        return proxy
    shape = design.method, layout.sizes, ranks_of(modes, design), design.segments
    if triton:
        return random_packed_predictor(*shape, design.bits, layout.dtype, layout.device, seed)
    return random_predictor(*shape, layout.dtype, seed)


def predicted(make: Callable, predictor: Any, reason: Exception | None, pct: int) -> Decoder:
    """The decoder with a predictor or proxy; raises the reason where there is none."""
    if reason is not None:
        raise reason
    return make(selection=PredictedSelection(predictor, "per_layer", dict.fromkeys(predictor.kinds, pct)))


def ranks_of(modes: Modes, design: Design) -> dict[Kind, int]:
    """The predictor's hidden width for each kind of unit that is skipped."""
    ranks = {"heads": design.rank_heads, "neurons": design.rank_neurons}
    return {kind: ranks[kind] for kind in KINDS_OF[modes.units]}


def named(modes: Modes, design: Design, pct: int, layers: int) -> tuple[str, dict[str, Any]]:
    """The name and the key columns of a predicted mode."""
    if design.method in PROXIES:
        return f"{design.method} {pct}", proxy_keys(design.method, pct, layers)
    ranks, groups = list(ranks_of(modes, design).values()), len(groups_of(design.method, layers, design.segments))
    keys = {
        "mode": design.method, "units": modes.units, "sparsity_pct": pct, "predictor_rank": ranks[-1],
        "predictor_rank_heads": ranks[0] if len(ranks) > 1 else None, "predictor_bits": design.bits,
        "predictor_groups": groups,
    }  # fmt: skip
    return f"{design.method} {'/'.join(map(str, ranks))} {design.bits} bits, {groups} groups {pct}", keys


def proxy_keys(method: str, pct: int, layers: int) -> dict[str, Any]:
    """The key columns of a proxy: each layer but the first has copies, and chooses its own neurons."""
    return {
        "mode": method, "units": "neurons", "sparsity_pct": pct, "predictor_bits": PROXIES[method][0],
        "predictor_groups": layers - FIRST_SPARSE_LAYER,
    }  # fmt: skip
