"""Time per token: variants are checked, take turns, and every time is kept.

Variants take turns inside each repeat, so that a machine that slows down slows all of them. The timed loop is the one
that a user runs: a step, its argmax, the next step.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.selection import PredictedSelection, Selection
from shadowcore.errors import ConfigError
from shadowcore.measure import gpu_timing
from shadowcore.measure.dense_baselines import HuggingFaceDecoder
from shadowcore.measure.equivalence import Agreement
from shadowcore.measure.equivalence_model import check, check_thresholds
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.gpu_timing import milliseconds
from shadowcore.models.families import KINDS

Timed = Decoder | HuggingFaceDecoder


@dataclass(frozen=True)
class Variant:
    """One way to decode: the key columns of its rows, its decoder, and what its check compares.

    selection: what the decoder was made to keep (`equivalence_model.check`); thresholds (L,): of neurons' magnitudes,
    for a decoder that does not report what it kept; masks: a proxy's scores for the check.
    """

    keys: dict[str, Any]
    decoder: Timed
    selection: Selection | None = None
    thresholds: torch.Tensor | None = None
    masks: ProxyMasks | None = None

    def check(self, name: str, model: torch.nn.Module, ids: torch.Tensor, new_tokens: int) -> Agreement:
        """Raise Disagreement unless it computes what the Hugging Face model with the same masks computes."""
        if isinstance(self.decoder, HuggingFaceDecoder):
            return Agreement(0.0)
        if self.thresholds is not None:
            return check_thresholds(name, self.decoder, model, ids, new_tokens, self.thresholds)
        return check(name, self.decoder, model, ids, new_tokens, self.selection, self.masks)


def measure(
    variants: Mapping[str, Timed], prompt_ids: torch.Tensor, new_tokens: int, repeats: int, warmup: int
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
            ttft_ms = milliseconds(partial(decoder.prefill, prompt_ids[:, :-1]), prompt_ids.device)
            ms = milliseconds(partial(decoder.continued, prompt_ids[:, -1], new_tokens), prompt_ids.device)
            if repeat >= 0:
                rows.append({"variant": name, "repeat": repeat, "ttft_ms": ttft_ms, "ms_per_token": ms / new_tokens})
    return rows


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
    """Weight bytes that the last step read, counted: kept units, all that is dense, rows of embeddings, predictor."""
    layout, selection = decoder.layout, decoder.selection
    batch_rows = decoder.batch * (1 + (layout.positions is not None))
    total = gpu_timing.weight_bytes(layout) + layout.embedding[0].nbytes * batch_rows
    for index, layer in enumerate(layout.layers):
        for kind in KINDS:
            kept = selection.kept(index, kind)
            if kept is not None:
                skipped = len(layer.present[kind]) - len(kept.units)
                total -= skipped * sum(weight[0].nbytes for weight in layer.of_unit(kind))
    return total + selection.weight_bytes


def summarise(raw: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a variant: median and 10th and 90th percentile of ms_per_token, median ttft_ms, repeats."""
    by_variant: dict[str, tuple[list[float], list[float]]] = {}
    for row in raw:
        ttft_ms, times = by_variant.setdefault(row["variant"], ([], []))
        ttft_ms.append(row["ttft_ms"])
        times.append(row["ms_per_token"])
    return [
        {"variant": name, "ttft_ms": statistics.median(ttft_ms)} | quantiles(times)
        for name, (ttft_ms, times) in by_variant.items()
    ]


def quantiles(times: list[float]) -> dict[str, Any]:
    """Median, 10th and 90th percentile of times per token, and their number."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    low, middle, high = torch.quantile(torch.tensor(times, dtype=torch.float64), levels).tolist()
    return {"ms_per_token": middle, "ms_p10": low, "ms_p90": high, "repeats": len(times)}


def costs(decoder: Any, token: torch.Tensor, ms_per_token: float, ceiling: float | None) -> dict[str, Any]:
    """Counted weight bytes of a step, units kept, and the predictor's share of bytes and time."""
    if not isinstance(decoder, Decoder):
        return {}
    columns = counted(decoder)
    cached = gpu_timing.bytes_cached(decoder, decoder.position)
    columns |= roofline(columns["gb_per_token"], cached, ms_per_token, ceiling)
    if ceiling is not None:
        columns |= gpu_timing.parts(decoder, decoder.position - 1)
    elif decoder.selection.weight_bytes:
        columns["predictor_ms"] = predictor_time(decoder, token, repeats=20)
    return columns


def counted(decoder: Decoder) -> dict[str, Any]:
    """What the decoder's last step read and kept; on a GPU also the nodes of its graph."""
    columns: dict[str, Any] = {"gb_per_token": bytes_per_step(decoder) / 1e9}
    columns |= {f"kept_{kind}": int(mask.sum()) for kind, mask in decoder.keep_masks().items()}
    if decoder.selection.weight_bytes:
        columns["predictor_mb"] = decoder.selection.weight_bytes / 1e6
    if decoder.layout.device.type == "cuda":
        columns["nodes"] = decoder.replay.nodes()
    return columns


def roofline(gb_per_token: float, cached: float, ms_per_token: float, ceiling: float | None) -> dict[str, float]:
    """Achieved bandwidth, and the time that the weights and `cached` bytes take at the ceiling, in 10^9 bytes/s."""
    columns = {"gb_per_s": gb_per_token / ms_per_token * 1e3}
    if ceiling is not None:
        columns["roofline_ms"] = (gb_per_token + cached / 1e9) / ceiling * 1e3
    return columns
