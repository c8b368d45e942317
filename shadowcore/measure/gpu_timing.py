"""Time per token on a GPU: the memory's read bandwidth, turns of the decoders, and the time of each part of a step.

Time per token is the slope between a short and a long run of graph replays from one position, so that the cost of
starting cancels. A GPU is timed by events; a CPU, where the torch decoder is measured, by the clock.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from shadowcore.decode.cuda_graph import Replay
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout, weights_of

CEILING_BYTES = 4 * 2**30  # read at once: many times any cache
SELECTIONS = 10  # in one graph, so that starting it costs little


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time of `work`: by the clock on a CPU, between two events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


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
    """One row {variant, repeat, ms_per_token, and the device's clocks} a turn; a warm-up turn is a short run."""
    rows = []
    for _ in range(warmup):
        for decoder in decoders.values():
            decoder.go_to(position)
            decoder.advance(short)
    for repeat in range(repeats):
        for name, decoder in decoders.items():
            row = {"variant": name, "repeat": repeat, "ms_per_token": slope(decoder, position, short, long)}
            rows.append(row | device_state(decoder.layout.device))
    return rows


def device_state(device: torch.device) -> dict[str, Any]:
    """Clocks, power, temperature and throttling as the driver reports them now; nothing without NVML."""
    if (pynvml := _nvml(device)) is None:
        return {}
    # not by number: this process may see other devices than the driver counts
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    idle = pynvml.nvmlClocksEventReasonGpuIdle | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    return {
        "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "throttled": int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & ~idle),
    }


def driver_version(device: torch.device) -> str | None:
    """The GPU driver's version; None without one."""
    pynvml = _nvml(device)
    return None if pynvml is None else str(pynvml.nvmlSystemGetDriverVersion())


def _nvml(device: torch.device) -> Any:
    """The started NVML module; None on a CPU or without the package."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    pynvml.nvmlInit()
    return pynvml


def read_ceiling(device: torch.device, repeats: int = 20) -> float:
    """The fastest that this device read or copied much memory, medians of several ways, 10^9 bytes a second."""
    size = CEILING_BYTES if device.type == "cuda" else 2**28
    buffer = torch.empty(size // 2, dtype=torch.bfloat16, device=device).normal_()
    attempts: list[tuple[Callable[[], Any], int]] = []
    half = len(buffer) // 2
    attempts.append((lambda: buffer[:half].copy_(buffer[half:]), size))
    if device.type == "cuda":
        from shadowcore.decode.kernels.gemv import NOTHING, project

        for width in (4096, 8192):
            weight, x = buffer.view(-1, width), torch.randn(width, dtype=torch.bfloat16, device=device)
            out = torch.empty(len(weight), device=device)
            attempts.append((lambda w=weight, x=x, out=out: project(x, w, NOTHING, out), size))
    else:
        attempts.append((lambda: buffer.view(torch.int16).max(), size))
    best = 0.0
    for attempt, moved in attempts:
        for _ in range(3):
            attempt()
        time = statistics.median(milliseconds(attempt, device) for _ in range(repeats))
        best = max(best, moved / time / 1e6)
    return best


def bytes_cached(decoder: Decoder, position: int) -> int:
    """Bytes of keys and values that a step reads at a position: of what each sequence kept in the last step.

    A sequence reads the cache of a key-value head if it keeps one of the heads that share it.
    """
    sizes, heads = decoder.layout.sizes, decoder.masks_by_sequence()["heads"]  # (L, B, H)
    read = int(heads.unflatten(-1, (sizes.kv_heads, -1)).any(-1).sum())
    return 2 * read * sizes.head_width * position * decoder.layout.dtype.itemsize


def weight_bytes(layout: Layout) -> int:
    """Bytes of all weights a dense step reads: layers, final norm and the output table."""
    layers = sum(weight.nbytes for layer in layout.layers for weight in weights_of(layer))
    return layers + layout.head.nbytes + sum(weight.nbytes for weight in weights_of(layout.final_norm))


@torch.inference_mode()
def parts(decoder: Any, position: int, repeats: int = 20) -> dict[str, float]:
    """Milliseconds a step that each part of a Triton decoder takes alone, without overlap with its neighbours."""
    layers, sites = decoder.layout.layers, decoder.selection.sites
    decoder.go_to(position)
    decoder.replay()  # fills every buffer with the results of a step

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

    def selections() -> None:
        for _ in range(SELECTIONS):
            for site in sites:
                decoder.selection.choose(site)

    timed = {"attention_ms": attention, "ffn_ms": ffn, "norms_ms": norms, "vocabulary_ms": decoder.emit}
    if sites:
        timed["predictor_ms"] = predictor
        if decoder.batch == 1:
            timed["selection_ms"] = selections
    times = {}
    for name, part in timed.items():
        replay = Replay(part, decoder.layout.device)
        samples = []
        for _ in range(repeats + 1):
            decoder.go_to(position)
            samples.append(milliseconds(replay, decoder.layout.device))
        times[name] = statistics.median(samples[1:]) / (SELECTIONS if part is selections else 1)
    return times
