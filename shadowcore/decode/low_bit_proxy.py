"""Low-bit copies of gate and up (or fc1), whose products say which neurons of a layer are worth computing exactly.

A neuron's score is |act(gate x) * up x| by the copies, times the norm of its row of the down projection: the methods
proxy4, proxy3 and so on of the evaluation (`measure.ffn_selectors`). Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn import functional

from shadowcore.decode import operations
from shadowcore.decode.layout import Layout
from shadowcore.errors import one_of
from shadowcore.method.low_bit import PROXIES, interval, low_bit, row_steps
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, proxied
from shadowcore.models.families import Kind
from shadowcore.models.recording import Site

WORD, ALIGNED = 32, 4  # bits of a word; words that are read at once


class PackedLayer(NamedTuple):
    """A layer's copies as the kernels read them: R rows, those of each neuron together; W words a row."""

    words: torch.Tensor  # (R, W) int32
    steps: torch.Tensor  # (R,) float32
    gains: torch.Tensor | None  # (R,) float32, of the norm before the FFN and its biases, folded (`fused_norm.folded`)
    bias: torch.Tensor | None
    norms: torch.Tensor  # (F,) float32, of the down projection's rows


class LowBitCopies:
    """Copies in a few bits of the FFN's input rows, in all layers but the first.

    The step sizes (F P, 1) are made at once, the copies when they are first used: as numbers for torch, or packed.
    """

    def __init__(self, layout: Layout, bits: int):
        self.layout, self.bits = layout, bits
        self.layers = range(FIRST_SPARSE_LAYER, len(layout.layers))
        self.steps = {i: row_steps(self._rows(i), bits) for i in self.layers}
        self.norms = {i: layout.layers[i].ffn_down.float().norm(dim=1) for i in self.layers}
        self._unpacked: dict[int, torch.Tensor] = {}
        self._packed: dict[int, PackedLayer] | None = None

    def unpacked(self, layer: int, dtype: torch.dtype) -> torch.Tensor:
        """A layer's copies (F, P, D) as numbers; those in the layout's own format are kept."""
        if layer in self._unpacked and dtype == self.layout.dtype:
            return self._unpacked[layer]
        copies = low_bit(self._rows(layer), self.steps[layer], self.bits, dtype)
        copies = copies.view_as(self.layout.layers[layer].ffn_in)
        if dtype == self.layout.dtype:
            self._unpacked[layer] = copies
        return copies

    def packed(self) -> dict[int, PackedLayer]:
        """Every layer's copies in words, made once."""
        if self._packed is None:
            self._packed = {i: self._in_words(i) for i in self.layers}
        return self._packed

    def _in_words(self, layer: int) -> PackedLayer:
        from shadowcore.decode.kernels.fused_norm import folded  # not above: it needs Triton

        weights, rows, steps = self.layout.layers[layer], self._rows(layer), self.steps[layer]
        norm, bias = weights.ffn_norm, weights.ffn_in_bias
        copies = low_bit(rows, steps, self.bits, torch.float32)
        read = folded(copies, None if bias is None else bias.flatten(), norm.weight, norm.bias, norm.rms)
        words = packed(interval(rows, steps, self.bits).int() + 2 ** (self.bits - 1), self.bits)
        return PackedLayer(words, steps.squeeze(1).float(), read.gains, read.bias, self.norms[layer])

    def scores(self, layer: int, x: torch.Tensor, normed: bool) -> torch.Tensor:
        """Scores (..., F) of a layer's neurons from the FFN's input x (..., D), or from a residual (not `normed`)."""
        weights = self.layout.layers[layer]
        if not normed:
            x = weights.ffn_norm.to(x.dtype)(x)
        bias = None if weights.ffn_in_bias is None else weights.ffn_in_bias.to(x.dtype)
        inner = operations.project(self.unpacked(layer, x.dtype), bias, x)
        return operations.activate(inner, self.layout.activation).abs() * self.norms[layer]

    def _rows(self, layer: int) -> torch.Tensor:
        return self.layout.layers[layer].ffn_in.flatten(0, 1)


class Proxy:
    """Low-bit copies in the place of a predictor (`method.predictors`): each layer's neurons are a group of their own.

    method: one of PROXIES. made: copies of this layout by their bits, which are used, or added where they are missing.
    Raises ConfigError for another method.
    """

    kinds: tuple[Kind, ...] = ("neurons",)
    blocks: Mapping[Kind, int] = {"neurons": 1}

    def __init__(self, layout: Layout, method: str, made: dict[int, LowBitCopies] | None = None):
        self.bits, self.ahead = PROXIES[one_of(method, PROXIES, "method")]
        self.design = method
        made = {} if made is None else made
        if self.bits not in made:
            made[self.bits] = LowBitCopies(layout, self.bits)
        self.copies = made[self.bits]
        self.groups = proxied(len(layout.layers), self.ahead)
        self.group_at = {group.site: index for index, group in enumerate(self.groups)}

    def read(self, site: Site, feature: torch.Tensor, kind: Kind) -> tuple[tuple[int, ...], torch.Tensor]:
        """The layer that is chosen from `site` and its scores (..., 1, F), for a feature (..., D)."""
        return (site.layer,), self.copies.scores(site.layer, feature, not self.ahead)[..., None, :]

    def spread(self, values: torch.Tensor, kind: Kind) -> torch.Tensor:
        """Values (..., F) as those of neurons (..., F): the same."""
        return values

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step of the torch decoder reads: the copies as numbers, the biases and the norms."""
        layers = [self.copies.layout.layers[i] for i in self.copies.layers]
        read = [tensor for layer in layers for tensor in (layer.ffn_in, layer.ffn_in_bias) if tensor is not None]
        return sum(tensor.nbytes for tensor in (*read, *self.copies.norms.values()))


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (R, D) from 0 to 2^bits - 1, int32, in W words a row, (R, W): word j has columns j, j + W, j + 2 W ..."""
    fields = WORD // bits
    words = -(-codes.shape[1] // (fields * ALIGNED)) * ALIGNED
    codes = functional.pad(codes, (0, words * fields - codes.shape[1])).view(-1, fields, words)
    shifts = torch.arange(0, fields * bits, bits, dtype=torch.int32, device=codes.device)[:, None]
    return (codes << shifts).sum(1, dtype=torch.int32)  # no two have a bit in common
