"""Correctness checks before timing: a decoder must compute what its reference computes, up to rounding.

Two implementations add numbers in different orders, so they differ in the last bits, and processors differ, too. A
neuron whose score lies within rounding of the selection threshold may be kept by one side only; two tokens whose
logits are nearly equal may change places. After that, the two sides compute different things, and both are right.
The checks therefore compare only what can be equal:

1. Logits. The reference gets the decoder's own tokens and keeps the decoder's own units, step by step.
2. Selections. Both sides keep the same units, except units whose score is within NEAR_TIE of the threshold.
3. Tokens. The decoder's token is the reference's best one, unless their logits differ by less than the tolerance.

Rounding is relative: of logits to the largest logit, of scores to the range of a layer's scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.selection import DenseSelection, Kept, Selection
from shadowcore.errors import ShadowcoreError
from shadowcore.measure.dense_baselines import HuggingFaceDecoder
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.predictor_free import ThresholdMasks
from shadowcore.measure.sparsity import PredictedMasks, SparseModel
from shadowcore.method.policies import WHOLE_MODEL_POLICIES, top_units
from shadowcore.models.families import KINDS, Kind
from shadowcore.models.masking import masked
from shadowcore.models.recording import Site, visiting

# largest difference of two logits over the largest logit
LARGEST = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# size (norm) of the difference of logits over the size of the logits, against a float32 reference
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
# distance of a score from the threshold, over the range of the scores that are compared, that rounding explains
NEAR_TIE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# the same for an activation compared with a magnitude threshold, relative to the threshold
NEAR_THRESHOLD = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
GATED_STEPS = 2


class Disagreement(ShadowcoreError):
    """A decoder does not compute what the model it stands for computes."""


class Agreement(NamedTuple):
    """What a passed check saw: the largest relative error of a logit, and how many near ties it let pass.

    unit_ties: units that one side only kept; token_ties: steps whose token is not the reference's best.
    """

    error: float
    unit_ties: int = 0
    token_ties: int = 0

    def __str__(self) -> str:
        return f"logits within {self.error:.1e}, {self.unit_ties} near ties of units, {self.token_ties} of tokens"


class Steps(NamedTuple):
    """A decoder's greedy continuation of a prompt, recorded step by step.

    fed (N,): the token each step appended; generated (N,): the token each step chose; logits (N, V); keep[kind]
    (L, N, U): the units each step kept; prompt_logits (1, V): of the prompt without its last token.
    """

    fed: torch.Tensor
    generated: torch.Tensor
    logits: torch.Tensor
    keep: dict[Kind, torch.Tensor]
    prompt_logits: torch.Tensor


@torch.inference_mode()
def check(
    name: str,
    decoder: Decoder,
    model: torch.nn.Module,
    ids: torch.Tensor,
    new_tokens: int,
    masks: PredictedMasks | ProxyMasks | None = None,
    expected: Mapping[Kind, torch.Tensor] | None = None,
) -> Agreement:
    """Compare a decoder's greedy continuation of ids (1, T), T at least 2, with the Hugging Face model's.

    masks: what the evaluation harness would keep, for a decoder with a predictor or a proxy. expected[kind] (L, U): the
    units that every step must keep, for a decoder whose units are fixed. Raises Disagreement, naming the variant.
    """
    steps = record(decoder, ids, new_tokens)
    for kind, mask in (expected or {}).items():
        if not torch.equal(steps.keep[kind], mask[:, None].to(steps.keep[kind]).expand_as(steps.keep[kind])):
            raise Disagreement(f"variant '{name}': the {kind} that it kept are not the {kind} it was given")
    scores: dict[Site, dict[Kind, tuple]] = {}

    def see(site: Site, x: torch.Tensor) -> None:
        for kind in masks.kinds if masks else ():
            if (reading := masks.read(site, x.flatten(2), kind)) is not None:
                scores.setdefault(site, {})[kind] = reading

    reference = HuggingFaceDecoder(model)
    with masked(model, decoder.layout.keep_masks()):
        prompt_logits = reference.prefill(ids[:, :-1])
    # the scores are read before the masks act: hooks run in the order in which they were registered
    with visiting(model, see), masked(model, steps.keep):
        logits = reference.forward(steps.fed[None], new_tokens)[0]
    _close(name, "the prompt", steps.prompt_logits, prompt_logits)
    error = max(
        _close(name, f"step {i}", ours, theirs)
        for i, (ours, theirs) in enumerate(zip(steps.logits, logits, strict=True))
    )
    unit_ties = 0
    for by_kind in scores.values():
        for kind, (layers, scored) in by_kind.items():
            block = masks.blocks[kind]
            kept = steps.keep[kind][list(layers)].transpose(0, 1)[None]  # (1, N, layers, U)
            wanted = masks.policy(scored, masks.sparsity_pct)
            whole = masks.policy_name in WHOLE_MODEL_POLICIES
            unit_ties += near_ties(name, kind, scored, _of_blocks(name, kept, block), wanted, model.dtype, whole)
    return Agreement(error, unit_ties, _token_ties(name, steps.generated, logits))


@torch.inference_mode()
def check_thresholds(
    name: str, decoder: Decoder, model: torch.nn.Module, ids: torch.Tensor, new_tokens: int, thresholds: torch.Tensor
) -> Agreement:
    """As `check`, for a decoder that drops neurons by a magnitude threshold (L,) and does not report which.

    The reference runs twice, with all near ties kept and with all of them removed; the decoder's logits may differ
    from the first by the tolerance and by as much as the two runs differ from each other.
    """
    steps = record(decoder, ids, new_tokens)
    whole, first = torch.cat((ids[0], steps.generated))[None], ids.shape[1]
    scored = (torch.arange(whole.shape[1], device=ids.device) >= first)[None]
    runs, removed = [], []
    for factor in (1 - NEAR_THRESHOLD[model.dtype], 1 + NEAR_THRESHOLD[model.dtype]):
        sparse = SparseModel(model, ThresholdMasks(thresholds * factor))
        runs.append(sparse.logits(whole, scored, first_kept=first - 1)[0])
        removed.append(int(sparse.removed["neurons"]))
    room = (runs[1] - runs[0]).abs().amax(-1).tolist()
    error = max(
        _close(name, f"step {i}", ours, theirs, room=room[i])
        for i, (ours, theirs) in enumerate(zip(steps.logits, runs[0], strict=True))
    )
    return Agreement(error, abs(removed[1] - removed[0]), _token_ties(name, steps.generated, runs[0], max(room)))


@torch.inference_mode()
def record(decoder: Decoder, ids: torch.Tensor, new_tokens: int) -> Steps:
    """Generate greedily after ids (1, T), then repeat it step by step with the generated tokens as input."""
    generated = decoder.generate(ids, new_tokens)[0]
    fed = torch.cat((ids[0, -1:], generated[:-1]))
    prompt_logits = decoder.prefill(ids[:, :-1])
    logits, keep = [], []
    for token in fed:
        logits.append(decoder.step(token[None])[0])
        keep.append(decoder.keep_masks())
    kept = {kind: torch.stack([masks[kind] for masks in keep], 1) for kind in KINDS}
    return Steps(fed, generated, torch.stack(logits), kept, prompt_logits)


def near_ties(
    name: str, kind: Kind, scores: torch.Tensor, kept: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype,
    whole_model: bool = False,
) -> int:  # fmt: skip
    """How many units only one side keeps; Disagreement if a score of theirs is not within NEAR_TIE of the threshold.

    scores (..., layers, U); kept and wanted: masks of the same shape. The threshold lies between the lowest score
    that `wanted` keeps and the highest that it removes, of a layer or, with `whole_model`, of all layers.
    """
    scores = scores.float() if scores.dtype != torch.float64 else scores
    if whole_model:
        scores, kept, wanted = (values.flatten(-2)[..., None, :] for values in (scores, kept, wanted))
    if not torch.equal(kept.sum(-1), wanted.sum(-1)):
        raise Disagreement(f"variant '{name}': it kept another number of {kind} in a layer than the reference")
    lowest = scores.where(wanted, torch.inf).amin(-1, keepdim=True)
    highest = scores.where(~wanted, -torch.inf).amax(-1, keepdim=True)
    reach = NEAR_TIE[dtype] * (scores.amax(-1, keepdim=True) - scores.amin(-1, keepdim=True))
    differ = kept ^ wanted
    # a kept unit may be outranked by one that is removed, and the other way round
    far = differ & ~torch.where(wanted, scores <= highest + reach, scores >= lowest - reach)  # NaN, too
    if far.any():
        raise Disagreement(
            f"variant '{name}': {int(far.sum())} {kind} are kept by one side only, and their scores are further from "
            f"the threshold than rounding explains ({NEAR_TIE[dtype]:.0e} of the range of a layer's scores)"
        )
    return int(differ.sum())


class ForcedUnits(Selection):
    """The units that another decoder kept in its last step, as units of the whole model; records the features."""

    def __init__(self, decoder: Decoder):
        self.features: dict[Site, torch.Tensor] = {}
        self._kept = {}
        for index, layer in enumerate(decoder.layout.layers):
            for kind in KINDS:
                present, kept = layer.present[kind], decoder.selection.kept(index, kind)
                if kept is None and len(present) < decoder.layout.sizes.units(kind):
                    kept = Kept(torch.arange(len(present), device=present.device), None)
                self._kept[index, kind] = None if kept is None else Kept(present[kept.units], kept.rows)

    def see(self, site: Site, feature: torch.Tensor) -> None:
        self.features[site] = feature

    def kept(self, layer: int, kind: Kind) -> Kept | None:
        return self._kept[layer, kind]


@torch.inference_mode()
def gate(name: str, decoder: Decoder, reference: Decoder, position: int, tokens: torch.Tensor) -> Agreement:
    """Compare a decoder's logits after tokens (B,) with the torch decoder's in float32, for a few steps.

    The reference continues from the same filled cache, with the same tokens and the units that the decoder kept.
    Raises Disagreement above TOLERANCE, or where a predictor's selection is not the one its scores ask for.
    """
    decoder.go_to(position)
    reference.reset(len(tokens))
    reference.position = position
    reference._keys.copy_(decoder._keys)
    reference._values.copy_(decoder._values)
    worst, unit_ties = 0.0, 0
    for _ in range(GATED_STEPS):
        ours = decoder.step(tokens).float()
        reference.selection = forced = ForcedUnits(decoder)
        exact = reference.step(tokens)
        worst = max(worst, _within(name, ours, exact, decoder.layout.dtype))
        unit_ties += _selection_ties(name, decoder, forced.features)
        tokens = exact.argmax(-1)
    return Agreement(worst, unit_ties)


@torch.inference_mode()
def gate_prompt(name: str, rival: Any, reference: Decoder, tokens: torch.Tensor) -> Agreement:
    """As `gate`, for another dense model: logits after short prompts that begin with tokens (B,)."""
    ids = tokens[:, None] + torch.arange(8, device=tokens.device)
    reference.selection = DenseSelection()
    exact = reference.prefill(ids)
    return Agreement(_within(name, rival.prefill(ids).float(), exact, rival.layout.dtype))


def _selection_ties(name: str, decoder: Decoder, features: Mapping[Site, torch.Tensor]) -> int:
    """Near ties between the units a decoder kept and those its predictor's scores of the features (B, D) ask for."""
    ties, batch = 0, decoder.batch
    for site, feature in features.items():
        for kind, (layers, scores) in decoder.selection.scores(site, feature).items():  # scores (B, layers, U)
            units = decoder.layout.sizes.units(kind)
            kept = torch.stack([_mask(decoder.selection.kept(layer, kind), batch, units) for layer in layers], 1)
            kept = _of_blocks(name, kept, units // scores.shape[-1])
            wanted = top_units(scores, int(kept[0, 0].sum()))
            dtype = decoder.selection.score_dtype or decoder.layout.dtype
            ties += near_ties(name, kind, scores, kept, wanted, dtype)
    return ties


def _mask(kept: Kept, batch: int, units: int) -> torch.Tensor:
    """Kept units as a mask (B, U)."""
    mask = torch.zeros(batch, units, dtype=torch.bool, device=kept.units.device)
    mask[:, kept.units] = True if kept.rows is None else kept.rows
    return mask


def _of_blocks(name: str, kept: torch.Tensor, block: int) -> torch.Tensor:
    """A mask (..., U) of units as one of blocks (..., U / block), each of which is kept or removed whole."""
    if block == 1:
        return kept
    blocks = kept.unflatten(-1, (-1, block))
    if not torch.equal(blocks.any(-1), blocks.all(-1)):
        raise Disagreement(f"variant '{name}': it kept a part of a block of {block} neurons")
    return blocks.all(-1)


def _token_ties(name: str, generated: torch.Tensor, logits: torch.Tensor, room: float = 0.0) -> int:
    """How many generated tokens (N,) are not the best of the reference's logits (N, V), but as good within rounding."""
    allowed, logits = LARGEST[logits.dtype], logits.double()
    behind = logits.amax(-1) - logits.gather(-1, generated[:, None].to(logits.device)).squeeze(-1)
    wrong = ~(behind <= allowed * logits.abs().amax(-1) + room)  # NaN, too
    if wrong.any():
        place = int(wrong.int().argmax())
        raise Disagreement(
            f"variant '{name}': generated token {place} of {len(generated)} is {int(generated[place])}, the best of "
            f"the reference is {int(logits[place].argmax())}, and their logits differ by {behind[place].item():.2g}"
        )
    return int((behind > 0).sum())


def _close(name: str, where: str, ours: torch.Tensor, theirs: torch.Tensor, room: float = 0.0) -> float:
    """The largest difference of two logits over the largest logit, after `room`; Disagreement above LARGEST."""
    dtype = ours.dtype
    ours, theirs = (values.double().cpu() for values in (ours, theirs))
    worst = (((ours - theirs).abs().max() - room).clamp(min=0) / theirs.abs().max()).item()
    if not worst <= LARGEST[dtype]:  # NaN, too
        raise Disagreement(
            f"variant '{name}': logits of {where} are off by {worst:.1e} of the largest logit; {dtype} allows "
            f"{LARGEST[dtype]:.0e}"
        )
    return worst


def _within(name: str, ours: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> float:
    """The size of the difference of logits (B, V) over their size; Disagreement above TOLERANCE."""
    error = ((ours - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()
    if not error <= TOLERANCE[dtype]:  # NaN, too
        raise Disagreement(
            f"variant '{name}': logits are off by {error:.1e} of their size; {dtype} allows {TOLERANCE[dtype]:.0e}"
        )
    return error
