"""Time per token: decoders that have passed their checks take turns, and every time is kept.

Variants take turns inside each repeat, so that a machine that slows down slows all of them. The timed loop is the one
that a user runs: a step, its argmax, the next step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import pyarrow as pa
import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import weights_of
from shadowcore.decode.selection import PredictedSelection
from shadowcore.errors import ConfigError
from shadowcore.models.families import KINDS
from shadowcore.schemas import REFUSED


class Decodes(Protocol):
    """What is timed: our decoder on any backend, or another one behind these two methods."""

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Start anew with ids (B, T); logits (B, V) of the last position."""

    def continued(self, tokens: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """The greedy continuation (B, new_tokens) of what is cached and tokens (B,)."""


def measure(
    variants: Mapping[str, Decodes],
    prompt_ids: torch.Tensor,
    new_tokens: int,
    repeats: int,
    warmup: int,
) -> list[dict[str, Any]]:
    """Raw times of decoding after prompt_ids (B, T): one row {variant, repeat, ttft_ms, ms_per_token} a turn.

    ttft_ms is the prompt's pass (all but its last token), ms_per_token the mean of `new_tokens` greedy steps.
    Variants must have passed their checks (`equivalence`). Raises ConfigError for a prompt of fewer than two tokens.
    """
    if prompt_ids.shape[1] < 2:
        raise ConfigError("prompt_tokens: a prompt of 1 token has nothing to prefill; it must have 2 or more")
    rows = []
    for repeat in range(-warmup, repeats):
        for name, decoder in variants.items():
            ttft_ms, ms_per_token = time_once(decoder, prompt_ids, new_tokens)
            if repeat >= 0:
                rows.append({"variant": name, "repeat": repeat, "ttft_ms": ttft_ms, "ms_per_token": ms_per_token})
    return rows


def time_once(decoder: Decodes, prompt_ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Milliseconds of the prompt's pass, and of one step on average, on a fresh cache."""

    prefill_ms = milliseconds(lambda: decoder.prefill(prompt_ids[:, :-1]), prompt_ids.device)
    steps_ms = milliseconds(lambda: decoder.continued(prompt_ids[:, -1], new_tokens), prompt_ids.device)
    return prefill_ms, steps_ms / new_tokens


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


def predictor_time(decoder: Decoder, token: torch.Tensor, repeats: int) -> float:
    """Median milliseconds that predictor and selection take in one step, measured apart, after token (B,).

    Each reading follows a whole decode step, which leaves the predictor's weights as cold as they are in use.
    """
    selection, layout = decoder.selection, decoder.layout
    if not isinstance(selection, PredictedSelection):
        raise ConfigError(f"predictor_time: {type(selection).__name__} has no predictor; PredictedSelection has one")
    features = []
    for group in selection.predictor.groups:
        width = layout.layers[0].output.flatten(0, 1).shape[0] if group.site.what == "heads" else layout.sizes.width
        features.append((group.site, torch.randn(len(token), width, dtype=layout.dtype, device=layout.device)))

    @torch.inference_mode()
    def choose() -> None:
        for site, feature in features:
            selection.see(site, feature)

    times = []
    for _ in range(repeats):
        decoder.reset(len(token))
        decoder.step(token)
        times.append(milliseconds(choose, layout.device))
    return statistics.median(times)


def bytes_per_step(decoder: Decoder) -> int:
    """Weight bytes the decoder's last step had to read, counted: kept units, everything dense, the predictor.

    Of the embedding it is the batch's rows; keys, values and activations are not weights and not counted.
    """
    layout, selection = decoder.layout, decoder.selection
    batch_rows = decoder.batch * (1 + (layout.positions is not None))
    total = layout.head.nbytes + layout.embedding[0].nbytes * batch_rows
    total += sum(weight.nbytes for weight in weights_of(layout.final_norm))
    for index, layer in enumerate(layout.layers):
        total += sum(weight.nbytes for weight in weights_of(layer))
        for kind in KINDS:
            kept = selection.kept(index, kind)
            if kept is not None:
                skipped = len(layer.present[kind]) - len(kept.units)
                total -= skipped * sum(weight[0].nbytes for weight in layer.of_unit(kind))
    return total + predictor_bytes(decoder)


def predictor_bytes(decoder: Decoder) -> int:
    """Bytes of the predictor's weights that one step reads; 0 without a predictor."""
    return decoder.selection.weight_bytes


def summarise(raw: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a variant: median and 10th and 90th percentile of ms_per_token, median ttft_ms, repeats."""
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for row in raw:
        by_variant.setdefault(row["variant"], []).append(row)
    summary = []
    for variant, rows in by_variant.items():
        ttft_ms = statistics.median(row["ttft_ms"] for row in rows)
        summary.append({"variant": variant, "ttft_ms": ttft_ms} | quantiles([row["ms_per_token"] for row in rows]))
    return summary


def quantiles(times: list[float]) -> dict[str, Any]:
    """Median, 10th and 90th percentile of times per token, and their number."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    low, middle, high = torch.quantile(torch.tensor(times, dtype=torch.float64), levels).tolist()
    return {"ms_per_token": middle, "ms_p10": low, "ms_p90": high, "repeats": len(times)}


def refusals(reasons: Mapping[str, str], keys: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Rows of REFUSED: variants that were not timed, by name, with the reasons and each one's key columns."""
    rows = [{"variant": name, "reason": reason} | dict(keys[name]) for name, reason in reasons.items()]
    return REFUSED.build({key: value for key, value in row.items() if key in REFUSED.columns} for row in rows)
