"""Layers as one persistent kernel against the seven kernels and the torch decoder, interpreted without a GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed, so there is no Triton decoder to test")
if torch.cuda.is_available():
    pytest.skip("kernels interpreted; bench_persist.py checks them on a GPU", allow_module_level=True)

from dataclasses import replace

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.kernels import persistent_layer
from shadowcore.decode.persistent_decoder import PersistentDecoder
from shadowcore.decode.random_weights import random_layout, random_predictor
from shadowcore.decode.selection import FixedSelection, PredictedSelection
from shadowcore.decode.triton_decoder import GraphDecoder
from shadowcore.models.families import KINDS
from shadowcore.models.published import PUBLISHED

ROOM, STEPS = 12, 4
CPU = torch.device("cpu")


def layout_of(name, activation=None, width=64, dtype=torch.float32):
    family, sizes = PUBLISHED[name]
    layout = random_layout(family, replace(sizes, width=width), dtype, CPU, 0)
    return layout if activation is None else replace(layout, activation=activation)


def selected(which, layout):
    if which == "dense":
        return None
    sizes = layout.sizes
    if which == "lists":
        generator = torch.Generator().manual_seed(1)
        keep = {}
        for kind in KINDS:
            keep[kind] = torch.zeros(sizes.layers, sizes.units(kind), dtype=torch.bool)
            for mask in keep[kind]:
                mask[torch.randperm(len(mask), generator=generator)[: len(mask) // 2]] = True
        keep["heads"][0] = True
        return FixedSelection(keep)
    predictor = random_predictor(which, sizes, dict.fromkeys(KINDS, 16), 1, torch.float32, 2)
    return PredictedSelection(predictor, "per_layer", dict.fromkeys(KINDS, 50))


@torch.inference_mode()
def logits(decoder, ids):
    decoder.prefill(ids[:, :-STEPS])
    return torch.stack([decoder.step(token) for token in ids[0, -STEPS:, None]])


@pytest.mark.parametrize("which, programs", [
    ("dense", 1), ("lists", 1), ("shadow", 1), ("layerwise", 1), ("dense", 5), ("lists", 3),
])  # fmt: skip
@pytest.mark.parametrize("name, activation, width", [
    ("opt-tiny", None, 64), ("llama-tiny", None, 64), ("llama-tiny", "gated_relu", 96), ("opt-tiny", None, 40),
])  # fmt: skip
def test_steps_are_those_of_the_other_decoders(name, activation, width, which, programs, monkeypatch):
    monkeypatch.setattr(persistent_layer, "INTERPRETED", programs)  # more than one: phase by phase
    monkeypatch.setattr(persistent_layer, "TILE", 256)  # several tiles a phase, the last one not full
    monkeypatch.setattr(persistent_layer, "WARPS", 4)
    monkeypatch.setattr(persistent_layer, "TOKENS", 4)
    monkeypatch.setattr(persistent_layer, "splits_of", lambda heads, positions, count: 3)
    layout = layout_of(name, activation, width)
    ids = torch.randint(0, layout.sizes.vocabulary, (1, 5 + STEPS), generator=torch.Generator().manual_seed(3))
    ours, theirs, torchs = (
        logits(decoder(layout, ROOM, selected(which, layout)), ids)
        for decoder in (PersistentDecoder, GraphDecoder, Decoder)
    )
    assert not ours.isnan().any()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, width", [("opt-tiny", 64), ("llama-tiny", 88)])
def test_pairs_of_16_bit_numbers(name, width, monkeypatch):
    monkeypatch.setattr(persistent_layer, "INTERPRETED", 2)
    layout = layout_of(name, None, width, torch.bfloat16)
    ids = torch.randint(0, layout.sizes.vocabulary, (1, 5 + STEPS), generator=torch.Generator().manual_seed(3))
    ours, theirs = (
        logits(decoder(layout, ROOM, selected("lists", layout)), ids).float()
        for decoder in (PersistentDecoder, GraphDecoder)
    )
    assert (ours - theirs).abs().max() <= 1e-2 * theirs.abs().max()


def test_it_is_the_other_decoder_inside_layers_and_in_batches():
    layout = layout_of("opt-tiny")
    decoder = PersistentDecoder(layout, ROOM)
    assert decoder._layer is not None
    decoder.reset(2)
    assert decoder._layer is None
