"""The check of a decoder before it is timed, against the Hugging Face model under the same masks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.selection import DenseSelection, FixedSelection, PredictedSelection, Scores, Selection
from shadowcore.measure.dense_baselines import HuggingFaceDecoder
from shadowcore.measure.equivalence import LARGEST, NEAR_THRESHOLD, Agreement, Disagreement, near_ties, of_blocks
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.predictor_free import ThresholdMasks
from shadowcore.measure.sparsity import SparseModel
from shadowcore.method.policies import WHOLE_MODEL_POLICIES
from shadowcore.models.families import KINDS, Kind
from shadowcore.models.masking import masked
from shadowcore.models.recording import Site, visiting


class Steps(NamedTuple):
    """A decoder's greedy continuation of a prompt, recorded step by step.

    fed (B, N): the tokens each step appended; generated (B, N): the tokens each step chose; logits (B, N, V);
    keep[kind] (L, B, N, U): the units each step kept; prompt_logits (B, V): of the prompt without its last token.
    """

    fed: torch.Tensor
    generated: torch.Tensor
    logits: torch.Tensor
    keep: dict[Kind, torch.Tensor]
    prompt_logits: torch.Tensor


@torch.inference_mode()
def check(
    name: str, decoder: Decoder, model: torch.nn.Module, ids: torch.Tensor, new_tokens: int,
    selection: Selection | None = None, masks: ProxyMasks | None = None,
) -> Agreement:  # fmt: skip
    """Compare a decoder's greedy continuation of ids (B, T), T at least 2, with the Hugging Face model's.

    selection: what the decoder was made to keep; without it, only logits and tokens are compared. masks: of a
    proxy, those of the evaluation, whose scores are not the selection's own. Raises Disagreement, naming the variant.
    """
    steps = record(decoder, ids, new_tokens)
    _require_given(name, steps, selection)
    predicted = selection if isinstance(selection, PredictedSelection) else None
    scores: dict[Site, Scores] = {}

    def see(site: Site, x: torch.Tensor) -> None:
        if masks or predicted:
            scores[site] = (masks.read if masks else predicted.scores)(site, x.flatten(2))

    reference = HuggingFaceDecoder(model)
    with masked(model, decoder.layout.keep_masks()):
        prompt_logits = reference.prefill(ids[:, :-1])
    # the scores are read before the masks act: hooks run in the order in which they were registered
    with visiting(model, see), masked(model, steps.keep):
        logits = reference.forward(steps.fed, new_tokens)
    _close(name, "the prompt", steps.prompt_logits, prompt_logits)
    error = _all_close(name, steps.logits, logits)
    unit_ties = 0
    for by_kind in scores.values():
        for kind, (layers, scored) in by_kind.items():
            kept = steps.keep[kind][list(layers)].movedim(0, 2)  # (B, N, layers, U)
            kept = of_blocks(name, kept, predicted.predictor.blocks[kind])
            wanted = predicted.policy(scored, predicted.sparsity_pct[kind])
            whole = predicted.policy_name in WHOLE_MODEL_POLICIES
            unit_ties += near_ties(name, kind, scored, kept, wanted, model.dtype, whole)
    return Agreement(error, unit_ties, _token_ties(name, steps.generated, logits))


def _require_given(name: str, steps: Steps, selection: Selection | None) -> None:
    """Raise Disagreement unless every step kept the units that a dense or a fixed selection keeps."""
    given = selection.keep if isinstance(selection, FixedSelection) else {}
    for kind, kept in steps.keep.items():
        wanted = torch.ones_like(kept) if isinstance(selection, DenseSelection) else kept
        if kind in given:
            wanted = given[kind][None] if given[kind].dim() == 2 else given[kind]  # (1 or B, L, U)
            wanted = wanted.transpose(0, 1)[:, :, None].to(kept).expand_as(kept)
        if not torch.equal(kept, wanted):
            raise Disagreement(f"variant '{name}': the {kind} that it kept are not the {kind} it was given")


@torch.inference_mode()
def check_thresholds(
    name: str, decoder: Decoder, model: torch.nn.Module, ids: torch.Tensor, new_tokens: int, thresholds: torch.Tensor
) -> Agreement:
    """As `check` of one sequence, for a decoder that drops neurons by a threshold (L,) and does not report which.

    The reference runs twice, with all near ties kept and with all of them removed; the decoder's logits may differ
    from the first by the tolerance and by as much as the two runs differ from each other.
    """
    steps = record(decoder, ids, new_tokens)
    whole, first = torch.cat((ids, steps.generated), 1), ids.shape[1]
    scored = (torch.arange(whole.shape[1], device=ids.device) >= first)[None]
    runs, removed = [], []
    for factor in (1 - NEAR_THRESHOLD[model.dtype], 1 + NEAR_THRESHOLD[model.dtype]):
        sparse = SparseModel(model, ThresholdMasks(thresholds * factor))
        runs.append(sparse.logits(whole, scored, first_kept=first - 1))
        removed.append(int(sparse.removed["neurons"]))
    room = (runs[1] - runs[0]).abs().amax((0, 2)).tolist()
    error = _all_close(name, steps.logits, runs[0], room)
    return Agreement(error, abs(removed[1] - removed[0]), _token_ties(name, steps.generated, runs[0], max(room)))


@torch.inference_mode()
def record(decoder: Decoder, ids: torch.Tensor, new_tokens: int) -> Steps:
    """Generate greedily after ids (B, T), then repeat it step by step with the generated tokens as input."""
    generated = decoder.generate(ids, new_tokens)
    fed = torch.cat((ids[:, -1:], generated[:, :-1]), 1)
    prompt_logits = decoder.prefill(ids[:, :-1])
    logits, keep = [], []
    for tokens in fed.T:
        logits.append(decoder.step(tokens))
        keep.append(decoder.masks_by_sequence())
    kept = {kind: torch.stack([masks[kind] for masks in keep], 2) for kind in KINDS}
    return Steps(fed, generated, torch.stack(logits, 1), kept, prompt_logits)


def _token_ties(name: str, generated: torch.Tensor, logits: torch.Tensor, room: float = 0.0) -> int:
    """How many generated tokens (B, N) are not the best of the reference's logits, but as good within rounding."""
    generated, logits = generated.flatten(), logits.flatten(0, 1)
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


def _all_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, room: Sequence[float] | None = None) -> float:
    """The largest `_close` of the logits (B, N, V) of every step."""
    return max(
        _close(name, f"step {i}", *both, room=room[i] if room else 0.0)
        for i, both in enumerate(zip(ours.unbind(1), theirs.unbind(1), strict=True))
    )


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
