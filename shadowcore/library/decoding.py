"""Decode with a transformers model and a predictor, without reading the weights of skipped units; time it."""

from collections.abc import Sequence
from typing import Any

import torch

from shadowcore import provenance
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import from_model
from shadowcore.decode.low_bit_proxy import Proxy
from shadowcore.decode.selection import DenseSelection, PredictedSelection
from shadowcore.errors import ConfigError, one_of
from shadowcore.library.checks import at_least, kinds_of, percent, placed, require_fit, require_model
from shadowcore.measure import gpu_timing, latency
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.predictors import Predictor

BACKENDS = ("torch", "triton")
MOST_POSITIONS = 2048  # default limit of the cache's positions, which are all allocated at the start
CHECKED = 16  # tokens that are generated for the check before a measurement
WARMUP = 1
STEPS_BETWEEN_CHECKS = {"torch": 1, "triton": 16}  # tokens decoded between two checks for the end of the text


class SparseDecoder:
    """A decoder that skips units; `dense` is a decoder of the same weights that skips nothing.

    selection: what `sparse` was made to keep, which `benchmark` checks. masks: of a proxy, those of the evaluation, for
    this check.
    """

    def __init__(
        self, model: torch.nn.Module, sparse: Decoder, dense: Decoder, selection: PredictedSelection, backend: str,
        masks: ProxyMasks | None = None,
    ):  # fmt: skip
        self.model, self.sparse, self.dense, self.selection, self.backend = model, sparse, dense, selection, backend
        self.masks = masks

    def generate(
        self, prompt: str | Sequence[int] | torch.Tensor, tokenizer=None, max_new_tokens: int = 64,
        stop: str | Sequence[str] = (), eos_token_id: int | Sequence[int] | None = None, dense: bool = False,
    ) -> str | torch.Tensor:  # fmt: skip
        """The greedy continuation of one prompt: a text for a text, token ids (N,) for token ids.

        tokenizer: needed for a text and for `stop`. max_new_tokens: most tokens that are generated. stop: texts at
        which generation ends; they are not part of the returned text. eos_token_id: tokens at which it ends; by default
        those of the model's generation configuration and of the tokenizer. dense: skip nothing.
        """
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if tokenizer is None and (isinstance(prompt, str) or stops):
            raise ConfigError("tokenizer: it is missing; a prompt that is a text, and `stop`, need one")
        if not all(isinstance(one, str) and one for one in stops):
            raise ConfigError(f"stop: {stop!r} is not allowed; it must be texts that are not empty")
        at_least(1, max_new_tokens=max_new_tokens)
        ids = self._ids(prompt, tokenizer)
        room = self.sparse.max_positions - len(ids) + 1  # every step writes its input, not its output, into the cache
        if max_new_tokens > room:
            raise ConfigError(
                f"max_new_tokens: {max_new_tokens} is too large after a prompt of {len(ids)} tokens; it must be at "
                f"most {max(room, 0)}, because the cache has {self.sparse.max_positions} positions (`max_positions`)"
            )
        ends = self._ends(tokenizer) if eos_token_id is None else _numbers(eos_token_id)
        new = self._continued(self.dense if dense else self.sparse, ids, max_new_tokens, ends, stops, tokenizer)
        if not isinstance(prompt, str):
            return torch.tensor(new, dtype=torch.int64, device=self.model.device)
        text = _text(tokenizer, ids, new)
        return text[: min((text.index(one) for one in stops if one in text), default=len(text))]

    def _continued(
        self, decoder: Decoder, ids: list[int], most: int, ends: set[int], stops: list[str], tokenizer
    ) -> list[int]:
        """New tokens up to and including the first one that ends the text."""
        steps, new = STEPS_BETWEEN_CHECKS[self.backend], []
        chunk = decoder.generate(torch.tensor([ids], device=self.model.device), min(steps, most))
        while True:
            for token in chunk[0].tolist():
                new.append(token)
                text = _text(tokenizer, ids, new) if stops else ""
                if len(new) == most or token in ends or any(one in text for one in stops):
                    return new
            chunk = decoder.continued(chunk[:, -1], min(steps, most - len(new)))

    def _ids(self, prompt: str | Sequence[int] | torch.Tensor, tokenizer) -> list[int]:
        """The token ids of one prompt."""
        if isinstance(prompt, str):
            ids = tokenizer(prompt)["input_ids"]
        else:
            ids = prompt.tolist() if isinstance(prompt, torch.Tensor) else list(prompt)
            if len(ids) == 1 and isinstance(ids[0], list):
                ids = ids[0]
        vocabulary = self.sparse.layout.sizes.vocabulary
        if not ids:
            raise ConfigError("prompt: it has no tokens; at least one is needed")
        for one in ids:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < vocabulary:
                raise ConfigError(
                    f"prompt: {one!r} is not a token of the model; one prompt is needed, of whole numbers from 0 to "
                    f"{vocabulary - 1}"
                )
        return ids

    def _ends(self, tokenizer) -> set[int]:
        """Tokens that end a text, from the model's generation configuration and the tokenizer."""
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return _numbers(ends) | _numbers(getattr(tokenizer, "eos_token_id", None))


def decoder(
    model: torch.nn.Module, predictor: Predictor | str, sparsity: float = 0.5, units: str | None = None,
    policy: str = "per_layer", max_positions: int | None = None, backend: str | None = None,
) -> SparseDecoder:  # fmt: skip
    """Make a decoder that skips units, with Triton kernels on a GPU and torch on a CPU.

    model, predictor, sparsity, units, policy: as in `sparsify`; the Triton backend supports only per_layer. A text
    instead of a predictor, such as "proxy4" or "proxy3_ahead", chooses neurons by low-bit copies of the weights; this
    needs no training. The decoder copies the weights of the layers. max_positions: most tokens of prompt and
    continuation together, at most the positions of the model or its sliding window; 2048 by default, or fewer if the
    model has fewer. backend: torch or triton, instead of the device's default.
    """
    proxy = predictor if isinstance(predictor, str) else None
    if proxy is not None:
        if proxy not in PROXIES:
            raise ConfigError(
                f"predictor: '{proxy}' is not allowed; it must be what train_predictor or Predictor.from_pretrained "
                f"returns, or one of {', '.join(PROXIES)}"
            )
        require_model(model)
    else:
        require_fit(predictor, model)
    kinds, pct = kinds_of(Proxy if proxy else predictor, units), percent(sparsity)
    if max_positions is not None:
        at_least(1, max_positions=max_positions)
    chosen = ("triton" if model.device.type == "cuda" else "torch") if backend is None else backend
    make: Any = _triton() if one_of(chosen, BACKENDS, "backend") == "triton" else Decoder
    layout = from_model(model)
    scorer: Any = Proxy(layout, proxy) if proxy else placed(predictor, model.device, model.dtype)
    room = min(MOST_POSITIONS, layout.sizes.positions) if max_positions is None else max_positions
    selection = PredictedSelection(scorer, policy, dict.fromkeys(kinds, pct))
    sparse = make(layout, room, selection)
    dense = make(layout, room)
    dense.share_cache(sparse)  # the two never decode at the same time
    masks = ProxyMasks(model, scorer.bits, pct, scorer.ahead) if proxy else None
    return SparseDecoder(model, sparse, dense, selection, chosen, masks)


def _triton() -> type[Decoder]:
    """The Triton decoder, imported only when it is used, because Triton may not be installed."""
    try:
        from shadowcore.decode.triton_decoder import GraphDecoder
    except ImportError as error:
        raise ConfigError(f"backend: 'triton' cannot be used ({error}); use backend='torch'") from None
    return GraphDecoder


def _text(tokenizer, ids: list[int], new: list[int]) -> str:
    """The text of new tokens, decoded after the prompt because some tokenizers would omit the first space."""
    before, whole = (tokenizer.decode(some, skip_special_tokens=True) for some in (ids, ids + new))
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def _numbers(ids: int | Sequence[int] | None) -> set[int]:
    """Token ids as a set: of one number, several, or None."""
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


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
