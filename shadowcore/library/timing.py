"""Measure time and bytes per token of our decoder, sparse and dense, after a check against transformers."""

from __future__ import annotations

from typing import Any

import torch

from shadowcore import provenance
from shadowcore.decode.selection import DenseSelection
from shadowcore.errors import ConfigError
from shadowcore.library.checks import at_least
from shadowcore.library.decoding import SparseDecoder
from shadowcore.measure import gpu_timing, latency

CHECKED = 16  # tokens that are generated for the check
WARMUP = 1


def benchmark(
    decoder: SparseDecoder, prompt_tokens: int = 32, new_tokens: int = 24, repeats: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Measure milliseconds per token of a decoder, sparse and dense in turns, for one sequence.

    prompt_tokens: length of a random prompt (2 or more, drawn with `seed`). new_tokens: steps per measurement, of which
    the mean is taken. repeats: measurements, of which the median is taken.

    Returns device, backend, dtype; ms_per_token and dense_ms_per_token (medians), speedup (their ratio);
    bytes_per_token and dense_bytes_per_token (weights that a step reads, the predictor's included), and
    share_of_dense_bytes (their ratio); limit_ms_per_token: the shortest time in which the device can read these bytes
    and the cache (None on a CPU, where it is not known). Raises Disagreement if the decoder does not compute what the
    masked transformers model computes.
    """
    if not isinstance(decoder, SparseDecoder):
        raise ConfigError(f"decoder: {type(decoder).__name__} found; it must be what shadowcore.decoder returns")
    at_least(1, new_tokens=new_tokens, repeats=repeats)
    at_least(2, prompt_tokens=prompt_tokens)
    room = decoder.sparse.max_positions
    if prompt_tokens + new_tokens > room:
        raise ConfigError(
            f"prompt_tokens + new_tokens: {prompt_tokens + new_tokens} is too large; it must be at most {room}, the "
            "decoder's max_positions"
        )
    layout = decoder.sparse.layout
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(layout.sizes.vocabulary, (1, prompt_tokens), generator=generator).to(layout.device)
    checked = min(CHECKED, room - prompt_tokens)
    both = {"sparse": decoder.sparse, "dense": decoder.dense}
    variants = {
        "sparse": latency.Variant({}, decoder.sparse, decoder.selection, masks=decoder.masks),
        "dense": latency.Variant({}, decoder.dense, DenseSelection()),
    }
    for name, variant in variants.items():
        variant.check(name, decoder.model, ids, checked)
    rows = {row["variant"]: row for row in latency.summarise(latency.measure(both, ids, new_tokens, repeats, WARMUP))}
    sparse_ms, dense_ms = (rows[name]["ms_per_token"] for name in both)
    sparse_bytes, dense_bytes = map(latency.bytes_per_step, both.values())
    limit = None
    if layout.device.type == "cuda":
        read = sparse_bytes + gpu_timing.bytes_cached(decoder.sparse, decoder.sparse.position)
        limit = read / gpu_timing.read_ceiling(layout.device) / 1e6
    return {
        "device": provenance.device_name(), "backend": decoder.backend, "dtype": str(layout.dtype)[len("torch.") :],
        "ms_per_token": sparse_ms, "dense_ms_per_token": dense_ms, "speedup": dense_ms / sparse_ms,
        "bytes_per_token": sparse_bytes, "dense_bytes_per_token": dense_bytes,
        "share_of_dense_bytes": sparse_bytes / dense_bytes, "limit_ms_per_token": limit,
    }  # fmt: skip
