"""Time per token of a model known by its dimensions, random weights: every mode in one run, gated, in turns.

On a GPU the Triton decoder and its baselines are measured; without one the torch decoder, and every row says so.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shadowcore import artifacts, provenance
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout
from shadowcore.decode.random import last_units, random_groups, random_layout, random_predictor
from shadowcore.decode.skipping import KeepFixed, KeepPredicted
from shadowcore.errors import ConfigError, one_of
from shadowcore.measure import latency, speed
from shadowcore.method.policies import kept_units
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import KINDS, KINDS_OF, Kind
from shadowcore.models.published import PUBLISHED
from shadowcore.models.sources import DTYPES
from shadowcore.schemas import LATENCY, LATENCY_REPEATS
from shadowcore.stages.base import Progress, Stage, header

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
class Spec:
    """active: fraction of ReLU neurons above zero; time is the slope from short_tokens to new_tokens steps."""

    model: str
    dtype: str
    units: str
    sparsities_pct: tuple[int, ...]
    designs: tuple[Design, ...]
    baselines: tuple[str, ...]
    active: float
    prompt_tokens: int
    short_tokens: int
    new_tokens: int
    repeats: int
    warmup: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """Nothing: the model is made here."""


@dataclass(frozen=True)
class Outputs:
    summary: Path
    repeats: Path


@dataclass
class Timed:
    """One mode on its way through gate and turns to a row."""

    keys: dict[str, Any]
    decoder: Any
    facts: dict[str, Any] = field(default_factory=dict)


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"latency-random {spec.model}")
    family, sizes = PUBLISHED[one_of(spec.model, PUBLISHED, "model")]
    for name in spec.baselines:
        one_of(name, RIVALS, "baselines")
    if not 0 < spec.short_tokens < spec.new_tokens:
        raise ConfigError(f"short_tokens: {spec.short_tokens} found; between 0 and new_tokens {spec.new_tokens} fits")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = getattr(torch, one_of(spec.dtype, DTYPES, "dtype"))
    ceiling = speed.read_ceiling(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    progress.say(f"memory reads at {ceiling:.0f} GB/s at best")
    layout = random_layout(family, sizes, dtype, device, spec.seed, spec.active)
    timed: dict[str, Timed] = {}
    reference = Decoder(speed.upcast(layout), spec.prompt_tokens + spec.new_tokens)
    for name, keys, make in variants(spec, layout):
        timed[name] = built(name, keys, make, spec, layout, timed, reference)
        progress.say(f"{name}: {timed[name].facts}")
    del reference
    rows = speed.turns(
        {name: one.decoder for name, one in timed.items()},
        spec.prompt_tokens, spec.short_tokens, spec.new_tokens, spec.repeats, spec.warmup,
    )  # fmt: skip
    shared = {
        "model": spec.model, "device": device_name(device), "driver": speed.driver_version(device),
        "backend": "triton" if device.type == "cuda" else "torch", "weights": "random", "dtype": spec.dtype,
        "threads": None if device.type == "cuda" else torch.get_num_threads(), "kv": "kept", "batch": 1,
        "prompt_tokens": spec.prompt_tokens, "new_tokens": spec.new_tokens, "ceiling_gb_s": ceiling,
    }  # fmt: skip
    cached = speed.bytes_cached(layout, spec.prompt_tokens + spec.new_tokens // 2) / 1e9
    summary = []
    for name, one in timed.items():
        times = [row["ms_per_token"] for row in rows if row["variant"] == name]
        summary.append(shared | one.keys | one.facts | quantiles(times) | roofline(one.facts, times, ceiling, cached))
    made = header("latency_random", spec, inputs)
    artifacts.write_table(outputs.summary, LATENCY.schema, LATENCY.build(summary), made)
    keyed = [row | timed[row.pop("variant")].keys | {"model": spec.model, "device": shared["device"]} for row in rows]
    table = LATENCY_REPEATS.build({k: v for k, v in row.items() if k in LATENCY_REPEATS.columns} for row in keyed)
    artifacts.write_table(outputs.repeats, LATENCY_REPEATS.schema, table, made)
    timed.clear()
    gc.collect()  # graphs and caches of this model make room for the next in this process
    progress(1, 1)


Variant = tuple[str, dict[str, Any], Callable[[], Any]]


def variants(spec: Spec, layout: Layout) -> Iterator[Variant]:
    """Name, key columns and maker of everything to be timed; the dense Triton decoder first."""
    return (on_gpu if layout.device.type == "cuda" else on_cpu)(spec, layout)


def kept_of(spec: Spec, layout: Layout, pct: int) -> dict[Kind, int]:
    """Units kept in each sparse layer."""
    return {kind: kept_units(layout.sizes.units(kind), pct) for kind in KINDS_OF[spec.units]}


def on_gpu(spec: Spec, layout: Layout) -> Iterator[Variant]:
    """The Triton decoder in all modes, and other dense decoders."""
    from shadowcore.decode.chosen import GivenUnits, PredictedUnits
    from shadowcore.decode.graph import GraphDecoder
    from shadowcore.measure.rivals import TorchGraph

    sizes, device, room = layout.sizes, layout.device, spec.prompt_tokens + spec.new_tokens
    first = range(FIRST_SPARSE_LAYER)
    generator = torch.Generator(device).manual_seed(spec.seed)

    def lists(kept: dict[Kind, int], turns: int, shuffled: bool) -> GivenUnits:
        chosen = {}
        for kind, count in kept.items():
            order = torch.rand(turns, sizes.layers, sizes.units(kind), generator=generator, device=device).argsort(-1)
            order = order[..., :count]
            chosen[kind] = (order if shuffled else order.sort(-1).values).to(torch.int32)
        return GivenUnits(chosen, dense=dict.fromkeys(kept, tuple(first)))

    all_units = kept_of(spec, layout, 0)
    dense = {
        "dense": lambda: GraphDecoder(layout, room),
        "cublas": lambda: TorchGraph(layout, room),
        "compiled": lambda: TorchGraph(layout, room, compiled=True),
        "gather_ordered": lambda: GraphDecoder(layout, room, lists(all_units, 1, shuffled=False)),
        "gather_shuffled": lambda: GraphDecoder(layout, room, lists(all_units, 1, shuffled=True)),
        "relu": lambda: GraphDecoder(layout, room, threshold=0.0),
    }
    for name, make in dense.items():
        if name == "dense" or (name in spec.baselines and (name != "relu" or layout.activation == "relu")):
            yield name, {"mode": name, "sparsity_pct": 0}, make
    for pct in spec.sparsities_pct:
        keys, kept = {"units": spec.units, "sparsity_pct": pct}, kept_of(spec, layout, pct)
        yield (
            f"static {pct}",
            keys | {"mode": "static"},
            lambda kept=kept: GraphDecoder(last_units(layout, kept, FIRST_SPARSE_LAYER), room),
        )
        yield (
            f"oracle {pct}",
            keys | {"mode": "oracle"},
            lambda kept=kept: GraphDecoder(layout, room, lists(kept, FRESH_LISTS, shuffled=False)),
        )
    for index, design in enumerate(spec.designs):
        ranks = ranks_of(spec, design)
        groups = random_groups(
            design.method, sizes, ranks, design.segments, design.bits, layout.dtype, device, spec.seed + index
        )
        for pct in design.sparsities_pct or spec.sparsities_pct:
            name, keys = named(spec, design, pct, len(groups))
            kept = kept_of(spec, layout, pct)
            yield (
                name,
                keys,
                lambda groups=groups, kept=kept: GraphDecoder(layout, room, PredictedUnits(groups, sizes, kept)),
            )
    if layout.activation == "relu":
        yield from hugging_face(spec, room)


def hugging_face(spec: Spec, room: int) -> Iterator[Variant]:
    """`generate` of a Hugging Face model of the same dimensions."""
    from transformers import OPTConfig, OPTForCausalLM

    from shadowcore.measure.rivals import HuggingFaceGenerate

    sizes = PUBLISHED[spec.model][1]
    config = OPTConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, num_hidden_layers=sizes.layers, ffn_dim=sizes.neurons,
        num_attention_heads=sizes.heads, word_embed_proj_dim=sizes.width, max_position_embeddings=sizes.positions,
    )  # fmt: skip
    for name in ("huggingface", "huggingface_static"):
        if name in spec.baselines:

            def make(name=name) -> HuggingFaceGenerate:
                with torch.device("cuda", 0):
                    model = OPTForCausalLM._from_config(config, dtype=getattr(torch, spec.dtype)).eval()
                return HuggingFaceGenerate(model, spec.prompt_tokens, room, name == "huggingface_static")

            yield name, {"mode": name, "sparsity_pct": 0}, make


def on_cpu(spec: Spec, layout: Layout) -> Iterator[Variant]:
    """The torch decoder in the modes it has."""
    room = spec.prompt_tokens + spec.new_tokens
    generator = torch.Generator().manual_seed(spec.seed)

    def masks(kept: dict[Kind, int]) -> KeepFixed:
        keep = {kind: layout.keep_masks()[kind] for kind in kept}
        for kind, count in kept.items():
            order = torch.rand(keep[kind].shape, generator=generator).argsort(-1)
            keep[kind][FIRST_SPARSE_LAYER:] = order[FIRST_SPARSE_LAYER:] < count
        return KeepFixed(keep)

    yield "dense", {"mode": "dense", "sparsity_pct": 0}, lambda: Decoder(layout, room)
    for pct in spec.sparsities_pct:
        keys, kept = {"units": spec.units, "sparsity_pct": pct}, kept_of(spec, layout, pct)
        compact = last_units(layout, kept, FIRST_SPARSE_LAYER)
        yield f"static {pct}", keys | {"mode": "static"}, lambda compact=compact: Decoder(compact, room)
        yield f"oracle {pct}", keys | {"mode": "oracle"}, lambda kept=kept: Decoder(layout, room, masks(kept))
    for index, design in enumerate(spec.designs):
        if design.bits != 16:
            raise ConfigError(f"designs: the torch backend has no {design.bits}-bit predictors; 16 would fit")
        ranks = ranks_of(spec, design)
        predictor = random_predictor(
            design.method, layout.sizes, ranks, design.segments, layout.dtype, spec.seed + index
        )
        for pct in design.sparsities_pct or spec.sparsities_pct:
            name, keys = named(spec, design, pct, len(predictor.groups))
            selection = KeepPredicted(predictor, "per_layer", dict.fromkeys(KINDS_OF[spec.units], pct))
            yield name, keys, lambda selection=selection: Decoder(layout, room, selection)


def ranks_of(spec: Spec, design: Design) -> dict[Kind, int]:
    """The predictor's hidden width for each kind of unit that is skipped."""
    ranks = {"heads": design.rank_heads, "neurons": design.rank_neurons}
    return {kind: ranks[kind] for kind in KINDS_OF[spec.units]}


def named(spec: Spec, design: Design, pct: int, groups: int) -> tuple[str, dict[str, Any]]:
    """What a predicted mode is called, and its key columns."""
    ranks = list(ranks_of(spec, design).values())
    keys = {
        "mode": design.method, "units": spec.units, "sparsity_pct": pct, "predictor_rank": ranks[-1],
        "predictor_rank_heads": ranks[0] if len(ranks) > 1 else None, "predictor_bits": design.bits,
        "predictor_groups": groups,
    }  # fmt: skip
    return f"{design.method} {'/'.join(map(str, ranks))} {design.bits} bits, {groups} groups {pct}", keys


def built(
    name: str, keys: dict[str, Any], make: Callable, spec: Spec, layout: Layout, timed: dict[str, Timed],
    reference: Decoder,
) -> Timed:  # fmt: skip
    """A decoder that has passed its gate, and what can be counted about it; all share the first one's cache."""
    gpu = layout.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    decoder = make()
    if not isinstance(decoder, Decoder):
        return Timed(keys, decoder)
    facts: dict[str, Any] = {}
    if timed:
        decoder.share_cache(next(iter(timed.values())).decoder)
    else:
        speed.fill_cache(decoder, spec.seed)
    decoder.go_to(spec.prompt_tokens)
    decoder.advance(1)
    if gpu:
        own = torch.cuda.max_memory_allocated() - before
        weights = speed.weight_bytes(layout) + layout.embedding.nbytes * (layout.head is not layout.embedding)
        facts["peak_gb"] = (weights + own + decoder.selection.weight_bytes) / 1e9
        facts["nodes"] = decoder.replay.nodes()
    facts["gate_error"] = speed.gate(name, decoder, reference, spec.prompt_tokens, token=spec.seed % 100 + 10)
    facts |= {f"kept_{kind}": int(decoder.keep_masks()[kind].sum()) for kind in KINDS}
    read = latency.bytes_per_step(decoder)
    if keys["mode"] == "relu":
        facts["active"] = (decoder._active > 0).float().mean().item()
        read -= round((1 - facts["active"]) * sum(layer.ffn_down.nbytes for layer in layout.layers))
    facts["gb_per_token"] = read / 1e9
    if decoder.selection.weight_bytes:
        facts["predictor_mb"] = decoder.selection.weight_bytes / 1e6
    if gpu and (keys["mode"] == "dense" or "predictor_mb" in facts):
        facts |= speed.parts(decoder, spec.prompt_tokens)
    if not timed:
        prompt = torch.randint(10, layout.sizes.vocabulary, (1, spec.prompt_tokens), device=layout.device)
        prefills = [latency.milliseconds(lambda: decoder.prefill(prompt), layout.device) for _ in range(4)]
        facts["ttft_ms"] = statistics.median(prefills[1:])
    return Timed(keys, decoder, facts)


def quantiles(times: list[float]) -> dict[str, Any]:
    """Median, 10th and 90th percentile, and how many."""
    low, middle, high = torch.quantile(
        torch.tensor(times, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    ).tolist()
    return {"ms_per_token": middle, "ms_p10": low, "ms_p90": high, "repeats": len(times)}


def roofline(facts: dict[str, Any], times: list[float], ceiling: float, cached: float) -> dict[str, float]:
    """Achieved bandwidth, and the time the counted bytes take at the ceiling; gigabytes and gigabytes a second."""
    if "gb_per_token" not in facts:
        return {}
    read = facts["gb_per_token"]
    return {"gb_per_s": read / statistics.median(times) * 1e3, "roofline_ms": (read + cached) / ceiling * 1e3}


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.processor_name()


STAGE = Stage(Spec, Inputs, Outputs, run)
