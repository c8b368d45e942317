"""Time per token of decoders that live on a GPU: what the memory can do, gates, turns, and where the time goes.

Time is the slope between a short and a long run of graph replays from one position on, between two events: what
starting costs falls out. On a CPU, where the torch decoder is measured, the clock takes the place of the events.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layer, Layout, Norm, weights_of
from shadowcore.decode.replay import Replay
from shadowcore.decode.skipping import KeepFixed
from shadowcore.measure.latency import Disagreement, milliseconds

# size of the difference of logits over the size of the logits, by number format; float32 adds up in another order
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
GATED_STEPS = 2
CEILING_BYTES = 4 * 2**30  # read at once: many times any cache
CLOCKS = ("sm_mhz", "memory_mhz", "power_w", "temperature_c", "throttled")


class Upcast(Sequence):
    """Layers in float32, each made when it is asked for."""

    def __init__(self, layers: Sequence[Layer]):
        self._layers = layers

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> Layer:
        layer = self._layers[index]
        changes: dict[str, Any] = {"attention_norm": _upcast(layer.attention_norm), "ffn_norm": _upcast(layer.ffn_norm)}
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                changes[name] = value.float()
        return replace(layer, **changes)

    def __iter__(self) -> Iterator[Layer]:
        return (self[index] for index in range(len(self)))


def upcast(layout: Layout) -> Layout:
    """The same weights in float32, no more than one layer of them at a time."""
    if layout.dtype == torch.float32:
        return layout
    embedding = layout.embedding.float()
    return replace(
        layout,
        embedding=embedding,
        positions=None if layout.positions is None else layout.positions.float(),
        head=embedding if layout.head is layout.embedding else layout.head.float(),
        layers=Upcast(layout.layers),
        final_norm=_upcast(layout.final_norm),
    )


def _upcast(norm: Norm) -> Norm:
    weight, bias = (None if tensor is None else tensor.float() for tensor in (norm.weight, norm.bias))
    return replace(norm, weight=weight, bias=bias)


@torch.inference_mode()
def gate(name: str, decoder: Decoder, reference: Decoder, position: int, token: int) -> float:
    """The relative error of the decoder's logits against the torch decoder in float32, over a few steps.

    The reference keeps what the decoder says it kept, from the same filled cache on. Raises Disagreement above
    TOLERANCE: what computes something else is not timed.
    """
    decoder.go_to(position)
    reference.position = position
    reference._keys.copy_(decoder._keys)
    reference._values.copy_(decoder._values)
    worst, tokens = 0.0, torch.tensor([token], device=decoder.layout.device)
    for _ in range(GATED_STEPS):
        ours = decoder.step(tokens).float()
        reference.selection = KeepFixed(decoder.keep_masks())
        exact = reference.step(tokens)
        error = ((ours - exact).norm() / exact.norm()).item()
        if not error <= TOLERANCE[decoder.layout.dtype]:  # NaN, too
            raise Disagreement(
                f"mode '{name}': logits are off by {error:.1e} of their size, "
                f"{decoder.layout.dtype} allows {TOLERANCE[decoder.layout.dtype]:.0e}"
            )
        worst, tokens = max(worst, error), exact.argmax(-1)
    return worst


@torch.inference_mode()
def fill_cache(decoder: Decoder, seed: int) -> None:
    """Random keys and values everywhere, as if a prompt had been there."""
    generator = torch.Generator(decoder.layout.device).manual_seed(seed)
    for cache in (decoder._keys, decoder._values):
        cache.normal_(generator=generator)


def slope(decoder: Decoder, position: int, short: int, long: int) -> float:
    """Milliseconds a token: the time of `long` tokens minus that of `short` ones, over their difference."""

    def run(tokens: int) -> float:
        decoder.go_to(position)
        return milliseconds(lambda: decoder.advance(tokens), decoder.layout.device)

    first = run(short)
    return (run(long) - first) / (long - short)


def turns(
    decoders: Mapping[str, Decoder], position: int, short: int, long: int, repeats: int, warmup: int
) -> list[dict[str, Any]]:
    """One row {variant, repeat, ms_per_token, and the device's clocks} a turn; variants alternate in every repeat."""
    rows = []
    for repeat in range(-warmup, repeats):
        for name, decoder in decoders.items():
            time = slope(decoder, position, short, long)
            if repeat >= 0:
                row = {"variant": name, "repeat": repeat, "ms_per_token": time}
                rows.append(row | device_state(decoder.layout.device))
    return rows


def device_state(device: torch.device) -> dict[str, Any]:
    """Clocks, power, temperature and throttling as the driver reports them now; nothing without NVML."""
    if device.type != "cuda":
        return {}
    try:
        import pynvml
    except ImportError:
        return {}
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
    idle = pynvml.nvmlClocksEventReasonGpuIdle | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & ~idle
    values = (
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        int(reasons),
    )
    return dict(zip(CLOCKS, values, strict=True))


def driver_version(device: torch.device) -> str | None:
    """The GPU driver's version; None without one."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    pynvml.nvmlInit()
    return str(pynvml.nvmlSystemGetDriverVersion())


def read_ceiling(device: torch.device, repeats: int = 20) -> float:
    """The fastest this device was seen to read or copy memory, 10^9 bytes a second: the roof over every mode.

    The best of sums of several shapes over a buffer far larger than the cache and of a copy, each its median.
    """
    size = CEILING_BYTES if device.type == "cuda" else 2**28
    buffer = torch.empty(size // 2, dtype=torch.bfloat16, device=device).normal_()
    attempts: list[tuple[Callable[[], Any], int]] = []
    half = len(buffer) // 2
    attempts.append((lambda: buffer[:half].copy_(buffer[half:]), size))
    if device.type == "cuda":
        from shadowcore.decode.kernels.rows import project

        for width in (4096, 8192):
            weight, x = buffer.view(-1, width), torch.randn(width, dtype=torch.bfloat16, device=device)
            out = torch.empty(len(weight), device=device)
            attempts.append((lambda w=weight, x=x, out=out: project(x, w, None, out), size))
    else:
        attempts.append((lambda: buffer.view(torch.int16).max(), size))
    best = 0.0
    for attempt, moved in attempts:
        for _ in range(3):
            attempt()
        time = statistics.median(milliseconds(attempt, device) for _ in range(repeats))
        best = max(best, moved / time / 1e6)
    return best


def bytes_cached(layout: Layout, position: int) -> int:
    """Bytes of keys and values that one step reads at a position, every head's."""
    sizes = layout.sizes
    return 2 * sizes.layers * sizes.kv_heads * sizes.head_width * position * layout.dtype.itemsize


def weight_bytes(layout: Layout) -> int:
    """Bytes of all weights a dense step reads: layers, final norm and the output table."""
    layers = sum(weight.nbytes for layer in layout.layers for weight in weights_of(layer))
    return layers + layout.head.nbytes + sum(weight.nbytes for weight in weights_of(layout.final_norm))


@torch.inference_mode()
def parts(decoder: Any, position: int, repeats: int = 20) -> dict[str, float]:
    """Milliseconds a step that each part of a Triton decoder takes alone, each in a graph of its own.

    Alone a part cannot overlap with its neighbours, so the parts may add up to more than the step.
    """
    layers, sites = decoder.layout.layers, decoder.selection.sites()
    decoder.go_to(position)
    decoder.replay()  # every buffer holds what a step leaves there

    def predictor() -> None:
        for site in sites:
            decoder.selection.see(site, decoder.feature(site))

    def attention() -> None:
        for index, layer in enumerate(layers):
            decoder.attention(index, layer)

    def ffn() -> None:
        for index, layer in enumerate(layers):
            decoder.ffn(index, layer)

    sums = [(decoder.attention(index, layer), decoder.ffn(index, layer)) for index, layer in enumerate(layers)]

    def norms() -> None:
        for layer, (mixed, active) in zip(layers, sums, strict=True):
            decoder.settle(mixed, layer.output_bias, layer.ffn_norm)
            decoder.settle(active, layer.ffn_down_bias, layer.attention_norm)

    found = {"attention_ms": attention, "ffn_ms": ffn, "norms_ms": norms, "vocabulary_ms": decoder.emit}
    if sites:
        found["predictor_ms"] = predictor
    times = {}
    for name, part in found.items():
        replay = Replay(part, decoder.layout.device)
        samples = []
        for _ in range(repeats + 1):
            decoder.go_to(position)
            samples.append(milliseconds(replay, decoder.layout.device))
        times[name] = statistics.median(samples[1:])
    return times
