"""Sizes of published models, to measure their speed or to plan a study without their weights."""

from typing import NamedTuple

from shadowcore.models.families import FAMILIES, Dimensions


class Size(NamedTuple):
    """A model's family and dimensions, and its number of weights."""

    family: str
    dimensions: Dimensions

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied with: attention and FFN of every layer, and the output projection."""
        d, matrices = self.dimensions, 1 + len(FAMILIES[self.family].ffn_in)
        attention = 2 * d.width * (d.heads + d.kv_heads) * d.head_width
        return d.layers * (attention + matrices * d.width * d.neurons) + d.vocabulary * d.width

    @property
    def parameters(self) -> int:
        """All weights without norms and biases; large rotary models have separate input and output embeddings."""
        d, rotary = self.dimensions, FAMILIES[self.family].rotary
        embedding = d.vocabulary * d.width if rotary and d.width >= 4096 else 0
        return self.multiplied + embedding + (0 if rotary else d.positions * d.width)


def _opt(layers: int, width: int, heads: int) -> Size:
    return Size("opt", Dimensions(layers, width, heads, heads, width // heads, 4 * width, 50272, 2048))


def _llama(layers: int, width: int, heads: int, neurons: int) -> Size:
    return Size("llama", Dimensions(layers, width, heads, heads, width // heads, neurons, 32000, 4096))


# from each model's config.json
PUBLISHED = {
    "smollm2-135m": Size("llama", Dimensions(30, 576, 9, 3, 64, 1536, 49152, 8192)),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56),
    "opt-66b": _opt(64, 9216, 72),
    "llama-2-7b": _llama(32, 4096, 32, 11008),
    "llama-2-13b": _llama(40, 5120, 40, 13824),
    # for tests, and to run a study's workflow on any machine
    "opt-tiny": Size("opt", Dimensions(3, 64, 4, 4, 16, 256, 128, 64)),
    "llama-tiny": Size("llama", Dimensions(3, 64, 4, 2, 16, 160, 128, 64)),
}
