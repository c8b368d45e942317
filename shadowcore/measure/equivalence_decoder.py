"""The check of a decoder before it is timed, against the torch decoder in float32, for models of any size."""

from collections.abc import Mapping
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.selection import DenseSelection, Kept, Selection
from shadowcore.measure.equivalence import TOLERANCE, Agreement, Disagreement, near_ties, of_blocks
from shadowcore.method.policies import top_units
from shadowcore.models.families import KINDS, Kind
from shadowcore.models.recording import Site

GATED_STEPS = 2


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
    ties, masks = 0, decoder.masks_by_sequence()
    for site, feature in features.items():
        for kind, (layers, scores) in decoder.selection.scores(site, feature).items():  # scores (B, layers, U)
            kept = masks[kind][list(layers)].transpose(0, 1)  # (B, layers, U)
            kept = of_blocks(name, kept, kept.shape[-1] // scores.shape[-1])
            wanted = top_units(scores, int(kept[0, 0].sum()))
            dtype = decoder.selection.score_dtype or decoder.layout.dtype
            ties += near_ties(name, kind, scores, kept, wanted, dtype)
    return ties


def _within(name: str, ours: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> float:
    """The size of the difference of logits (B, V) over their size; Disagreement above TOLERANCE."""
    error = ((ours - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()
    if not error <= TOLERANCE[dtype]:  # NaN, too
        raise Disagreement(
            f"variant '{name}': logits are off by {error:.1e} of their size; {dtype} allows {TOLERANCE[dtype]:.0e}"
        )
    return error
