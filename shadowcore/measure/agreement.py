"""What a decoder must agree with before it is timed: the Hugging Face model, or the torch decoder in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layer, Layout, Norm
from shadowcore.decode.skipping import KeepAll, Kept
from shadowcore.errors import ShadowcoreError
from shadowcore.models.families import KINDS, Kind
from shadowcore.models.masking import masked

# size of the difference of logits over the size of the logits, by number format; float32 adds up in another order
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
# largest difference of logits, relative to the largest logit, that rounding explains
LARGEST = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
CHECKED_STEPS, GATED_STEPS = 4, 2


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


class Disagreement(ShadowcoreError):
    """A decoder does not compute what the model it stands for computes."""


class HuggingFaceDecoder:
    """The baseline everybody has: the Hugging Face model with its own growing cache."""

    def __init__(self, model: torch.nn.Module):
        self.model, self._cache = model, None

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Start anew with ids (B, T); logits (B, V) of the last position."""
        self._cache = None
        return self._forward(ids)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens (B,); logits (B, V)."""
        return self._forward(tokens[:, None])

    @torch.inference_mode()
    def continued(self, tokens: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """The greedy continuation (B, new_tokens) of what is cached and tokens (B,)."""
        generated = []
        for _ in range(new_tokens):
            tokens = self.step(tokens).argmax(-1)
            generated.append(tokens)
        return torch.stack(generated, 1)

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.forward(ids, 1)[:, -1]

    def forward(self, ids: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        """Append ids (B, T); logits (B, logits_to_keep, V) after the last of them."""
        out = self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=logits_to_keep)
        self._cache = out.past_key_values
        return out.logits


@torch.inference_mode()
def check(name: str, decoder: Decoder, model: torch.nn.Module, ids: torch.Tensor) -> None:
    """Raise Disagreement unless decoder and model give the same logits on ids (1, T), T at least 2.

    The model is masked with what the decoder says it kept: in the prompt's pass the units that have weights,
    in each of the last few tokens' steps the units of that step.
    """
    steps = min(CHECKED_STEPS, ids.shape[1] - 1)
    prompt, rest = ids[:, :-steps], ids[:, -steps:]
    theirs, device = HuggingFaceDecoder(model), next(model.parameters()).device

    def compare(where: str, got: torch.Tensor, keep: Mapping[Kind, torch.Tensor], run: Callable) -> None:
        with masked(model, {kind: mask.to(device) for kind, mask in keep.items()}):
            _require_close(name, where, got, run())

    compare(
        "the prompt", decoder.prefill(prompt), decoder.layout.keep_masks(), lambda: theirs.prefill(prompt.to(device))
    )
    for index, token in enumerate(rest.T):
        logits = decoder.step(token)
        compare(f"step {index}", logits, decoder.keep_masks(), lambda token=token: theirs.step(token.to(device)))


def _require_close(name: str, where: str, got: torch.Tensor, want: torch.Tensor) -> None:
    got_here, want = got.float().cpu(), want.float().cpu()
    worst = (got_here - want).abs().max() / want.abs().max()
    if not worst <= LARGEST[got.dtype]:
        raise Disagreement(
            f"variant '{name}': logits of {where} are off by {worst:.1e} of the largest, "
            f"{got.dtype} allows {LARGEST[got.dtype]:.0e}"
        )


@torch.inference_mode()
def check_logits(
    name: str, decoder: Decoder, ids: torch.Tensor, logits_of: Callable[[torch.Tensor, int], torch.Tensor]
) -> None:
    """Raise Disagreement unless a decoder's last few steps on ids (1, T) give the model's logits: `check_generated`."""
    steps = min(CHECKED_STEPS, ids.shape[1] - 1)
    if ids.shape[1] > steps + 1:
        decoder.prefill(ids[:, : -steps - 1])
    else:
        decoder.reset(1)
    want = logits_of(ids, ids.shape[1] - steps)
    for step in range(steps):
        _require_close(name, f"step {step}", decoder.step(ids[:, step - steps - 1])[0], want[step])


def check_generated(
    name: str,
    decoder: Decoder,
    prompt_ids: torch.Tensor,
    new_tokens: int,
    logits_of: Callable[[torch.Tensor, int], torch.Tensor],
) -> None:
    """Raise Disagreement unless the decoder's greedy continuation of a prompt (1, T) is the model's own.

    logits_of(ids, T) gives the model's logits (new_tokens, V) of every token after the first T of ids (1, T +
    new_tokens): its greedy continuation is the same if and only if each token is the best of them there.
    """
    generated = decoder.generate(prompt_ids, new_tokens)
    best = logits_of(torch.cat((prompt_ids, generated), 1), prompt_ids.shape[1]).argmax(-1).to(generated.device)
    wrong = (best != generated[0]).nonzero()
    if len(wrong):
        place = wrong[0].item()
        raise Disagreement(
            f"variant '{name}': generated token {place} of {new_tokens} is {generated[0, place].item()}, "
            f"the model's is {best[place].item()}"
        )


@torch.inference_mode()
def logits_after(
    model: torch.nn.Module,
    prompt_keep: Mapping[Kind, torch.Tensor],
    keep: Mapping[Kind, torch.Tensor],
    ids: torch.Tensor,
    prompt: int,
) -> torch.Tensor:
    """Logits of the tokens after the first `prompt` ones, all but one of those masked by `prompt_keep`, else `keep`."""
    theirs = HuggingFaceDecoder(model)
    if prompt > 1:
        with masked(model, prompt_keep):
            theirs.prefill(ids[:, : prompt - 1])
    with masked(model, keep):
        return theirs.forward(ids[:, prompt - 1 : -1], ids.shape[1] - prompt)[0]


class KeepSame(KeepAll):
    """What a decoder kept in its last step, as units of the whole model."""

    def __init__(self, decoder: Decoder):
        self._kept = {}
        for index, layer in enumerate(decoder.layout.layers):
            for kind in KINDS:
                present, kept = layer.present[kind], decoder.selection.kept(index, kind)
                if kept is None and len(present) < decoder.layout.sizes.units(kind):
                    kept = Kept(torch.arange(len(present), device=present.device), None)
                self._kept[index, kind] = None if kept is None else Kept(present[kept.units], kept.rows)

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        return self._kept[layer, kind]


@torch.inference_mode()
def gate(name: str, decoder: Decoder, reference: Decoder, position: int, tokens: torch.Tensor) -> float:
    """The relative error of the decoder's logits after tokens (B,) against the torch decoder in float32, a few steps.

    The reference keeps what the decoder says it kept, from the same filled cache on. Raises Disagreement above
    TOLERANCE: what computes something else is not timed.
    """
    decoder.go_to(position)
    reference.reset(len(tokens))
    reference.position = position
    reference._keys.copy_(decoder._keys)
    reference._values.copy_(decoder._values)
    worst = 0.0
    for _ in range(GATED_STEPS):
        ours = decoder.step(tokens).float()
        reference.selection = KeepSame(decoder)
        exact = reference.step(tokens)
        worst = max(worst, _within(name, ours, exact, decoder.layout.dtype))
        tokens = exact.argmax(-1)
    return worst


@torch.inference_mode()
def gate_prompt(name: str, rival: Any, reference: Decoder, tokens: torch.Tensor) -> float:
    """The relative error of another model's logits after short prompts that begin with tokens (B,); as `gate`."""
    ids = tokens[:, None] + torch.arange(8, device=tokens.device)
    reference.selection = KeepAll()
    exact = reference.prefill(ids)
    return _within(name, rival.prefill(ids).float(), exact, rival.layout.dtype)


def _within(name: str, ours: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> float:
    error = ((ours - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()
    if not error <= TOLERANCE[dtype]:  # NaN, too
        raise Disagreement(
            f"mode '{name}': logits are off by {error:.1e} of their size, {dtype} allows {TOLERANCE[dtype]:.0e}"
        )
    return error
