"""Time per token of a model known by its dimensions, with random weights: all modes take turns in one run.

On a GPU the Triton decoder and its baselines are measured; without a GPU, the torch decoder. The column `backend` says
which. Before it is timed, each mode is checked against the torch decoder in float32 (`measure.equivalence_decoder`).
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout, upcast
from shadowcore.decode.random_weights import random_layout
from shadowcore.errors import ConfigError, one_of
from shadowcore.measure import gpu_timing, latency
from shadowcore.measure.equivalence import Agreement, Disagreement
from shadowcore.measure.equivalence_decoder import gate, gate_prompt
from shadowcore.measure.latency_variants import RIVALS, Design, Modes, variants
from shadowcore.models.families import require_positions
from shadowcore.models.folders import DTYPES
from shadowcore.models.published import PUBLISHED
from shadowcore.stages.base import Frozen, Outputs, Progress
from shadowcore.stages.base import Nothing as Inputs
from shadowcore.stages.timed_tables import shared_columns, write


class Spec(Frozen):
    """active: fraction of ReLU neurons above zero; time is the slope from short_tokens to new_tokens steps."""

    model: str
    dtype: str
    units: str
    sparsities_pct: tuple[int, ...]
    designs: tuple[Design, ...]
    baselines: tuple[str, ...]
    active: float
    batch: int
    prompt_tokens: int
    short_tokens: int
    new_tokens: int
    repeats: int
    warmup: int
    seed: int


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"latency-random {spec.model}")
    family, sizes = PUBLISHED[one_of(spec.model, PUBLISHED, "model")]
    for name in spec.baselines:
        one_of(name, RIVALS, "baselines")
    if not 0 < spec.short_tokens < spec.new_tokens:
        raise ConfigError(
            f"short_tokens: {spec.short_tokens} is not allowed; it must be between 0 and new_tokens {spec.new_tokens}"
        )
    room = spec.prompt_tokens + spec.new_tokens
    require_positions(sizes.positions, room, "prompt_tokens + new_tokens", spec.model)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = getattr(torch, one_of(spec.dtype, DTYPES, "dtype"))
    ceiling = gpu_timing.read_ceiling(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    progress.say(f"memory reads at {ceiling:.0f} GB/s at best")
    layout = random_layout(family, sizes, dtype, device, spec.seed, spec.active)
    shared = shared_columns(spec, "random", device, ceiling)
    modes = Modes(spec.units, spec.sparsities_pct, spec.designs, spec.baselines, room, spec.seed, spec.batch)
    decoders: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    reference = Decoder(upcast(layout), room)
    reasons: dict[str, str] = {}
    keys: dict[str, dict[str, Any]] = {}
    for name, own, make in variants(modes, layout, triton=device.type == "cuda"):
        keys[name] = shared | own
        try:
            first = next(iter(decoders.values()), None)
            decoders[name], agreement, facts[name] = built(name, own["mode"], make, spec, layout, first, reference)
        except (Disagreement, torch.OutOfMemoryError) as error:
            reasons[name] = str(error).splitlines()[0]
            progress.say(f"{name} is not timed: {reasons[name]}")
            if device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            progress.say(f"{name}: {agreement}; {facts[name]}")
    del reference
    raw = gpu_timing.turns(decoders, spec.prompt_tokens, spec.short_tokens, spec.new_tokens, spec.repeats, spec.warmup)
    rows = []
    for name, decoder in decoders.items():
        times = [row["ms_per_token"] for row in raw if row["variant"] == name]
        row = {"variant": name} | facts[name] | latency.quantiles(times)
        if "gb_per_token" in row:
            cached = gpu_timing.bytes_cached(decoder, spec.prompt_tokens + spec.new_tokens // 2)
            row |= latency.roofline(row["gb_per_token"], cached, statistics.median(times), ceiling)
        rows.append(row)
    write("latency_random", spec, inputs, outputs, keys, rows, raw, reasons)


def built(
    name: str, mode: str, make: Callable, spec: Spec, layout: Layout, first: Decoder | None, reference: Decoder
) -> tuple[Any, Agreement, dict[str, Any]]:  # fmt: skip
    """A decoder that has passed its check, and what is counted about it; all share the cache of the first one."""
    gpu, position = layout.device.type == "cuda", spec.prompt_tokens
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    decoder = make()
    tokens = torch.arange(spec.batch, device=layout.device) + spec.seed % 100 + 10
    if not isinstance(decoder, Decoder):  # another library's model: it starts from a prompt
        agreement = gate_prompt(name, decoder, reference, tokens)
        return decoder, agreement, {"gate_error": agreement.error}
    facts: dict[str, Any] = {}
    if first is not None:
        decoder.share_cache(first)
    else:
        gpu_timing.fill_cache(decoder, spec.seed)
    decoder.go_to(position)
    decoder.advance(1)
    if gpu:
        own = torch.cuda.max_memory_allocated() - before
        weights = gpu_timing.weight_bytes(layout) + layout.embedding.nbytes * (layout.head is not layout.embedding)
        facts["peak_gb"] = (weights + own + decoder.selection.weight_bytes) / 1e9
        facts["model_gb"], facts["cache_gb"] = weights / 1e9, 2 * decoder._keys.nbytes / 1e9
    agreement = gate(name, decoder, reference, position, tokens)
    facts |= {"gate_error": agreement.error} | latency.counted(decoder)
    if mode == "relu":
        facts["active"] = (decoder._active > 0).float().mean().item()
        facts["gb_per_token"] -= (1 - facts["active"]) * sum(layer.ffn_down.nbytes for layer in layout.layers) / 1e9
    if gpu and (mode == "dense" or "predictor_mb" in facts):
        facts |= gpu_timing.parts(decoder, position)
    if first is None:
        prompt = torch.randint(10, layout.sizes.vocabulary, (spec.batch, position), device=layout.device)
        prefills = [gpu_timing.milliseconds(lambda: decoder.prefill(prompt), layout.device) for _ in range(4)]
        facts["ttft_ms"] = statistics.median(prefills[1:])
    return decoder, agreement, facts
