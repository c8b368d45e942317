"""How large published models are, as their own config.json says: what can be planned before anything is fetched."""

from __future__ import annotations

from typing import NamedTuple

from shadowcore.models.families import Dimensions


class Size(NamedTuple):
    """A model family and the dimensions of one of its models."""

    family: str
    dimensions: Dimensions

    @property
    def multiplied(self) -> int:
        """Weights that a token's pass multiplies with: attention and FFN of every layer, and the output's."""
        d, mats = self.dimensions, 3 if self.family == "llama" else 2
        attention = 2 * d.width * (d.heads + d.kv_heads) * d.head_width
        return d.layers * (attention + mats * d.width * d.neurons) + d.vocabulary * d.width

    @property
    def parameters(self) -> int:
        """All weights but norms and biases; the input's embedding is apart from the output's in large Llamas."""
        d = self.dimensions
        apart = d.vocabulary * d.width if self.family == "llama" and d.width >= 4096 else 0
        return self.multiplied + apart + (d.positions * d.width if self.family == "opt" else 0)


def opt(layers: int, width: int, heads: int) -> Size:
    """An OPT model: F = 4 D."""
    return Size("opt", Dimensions(layers, width, heads, heads, width // heads, 4 * width, 50272, 2048))


def llama2(layers: int, width: int, heads: int, neurons: int) -> Size:
    """A Llama 2 model without grouped keys and values."""
    return Size("llama", Dimensions(layers, width, heads, heads, width // heads, neurons, 32000, 4096))


# by repository of the hub, or name of the packaged model
SIZES = {
    "smollm2-135m": Size("llama", Dimensions(30, 576, 9, 3, 64, 1536, 49152, 8192)),
    "facebook/opt-125m": opt(12, 768, 12),
    "facebook/opt-1.3b": opt(24, 2048, 32),
    "facebook/opt-2.7b": opt(32, 2560, 32),
    "facebook/opt-6.7b": opt(32, 4096, 32),
    "facebook/opt-13b": opt(40, 5120, 40),
    "facebook/opt-30b": opt(48, 7168, 56),
    "facebook/opt-66b": opt(64, 9216, 72),
    "meta-llama/Llama-2-7b-hf": llama2(32, 4096, 32, 11008),
    "meta-llama/Llama-2-13b-hf": llama2(40, 5120, 40, 13824),
}
