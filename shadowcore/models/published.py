"""Sizes of published models: enough to measure their speed without their weights."""

from __future__ import annotations

from shadowcore.models.families import Dimensions


def _opt(layers: int, width: int, heads: int) -> tuple[str, Dimensions]:
    return "opt", Dimensions(layers, width, heads, heads, width // heads, 4 * width, 50272, 2048)


def _llama(layers: int, width: int, heads: int, neurons: int) -> tuple[str, Dimensions]:
    return "llama", Dimensions(layers, width, heads, heads, width // heads, neurons, 32000, 4096)


# family and sizes of published models
PUBLISHED: dict[str, tuple[str, Dimensions]] = {
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56),
    "opt-66b": _opt(64, 9216, 72),
    "llama-2-7b": _llama(32, 4096, 32, 11008),
    "llama-2-13b": _llama(40, 5120, 40, 13824),
    # for tests, and to see a study's workflow run anywhere
    "opt-tiny": ("opt", Dimensions(3, 64, 4, 4, 16, 256, 128, 64)),
    "llama-tiny": ("llama", Dimensions(3, 64, 4, 2, 16, 160, 128, 64)),
}
