"""Magnitude thresholds: what a share of a layer's neurons does not exceed, over the tokens of a text.

Calibrated as in CATS (arXiv 2404.08763) and TEAL (2408.14690): from the dense model's activations, layer by layer.
What is compared with them is |act(gate) * up| for the method `threshold`, and |act(gate)| for `cats`.
"""

from collections.abc import Collection

import torch

from shadowcore.models.families import dimensions_of
from shadowcore.models.ffn import gate_activation
from shadowcore.models.recording import Site, visiting

# a magnitude's bin is the upper half of its float32 bits, 9 of them mantissa: bins are 0.2 % wide, and zero has one
MANTISSA_BITS = 9
DROPPED_BITS = 23 - MANTISSA_BITS


class Magnitudes:
    """How often neurons of each layer had which magnitude, counted in bins while tokens stream by."""

    def __init__(self, layers: int):
        self.counts = torch.zeros(layers, 2 ** (8 + MANTISSA_BITS), dtype=torch.int64)

    def add(self, layer: int, activations: torch.Tensor) -> None:
        """Count a layer's activations, of any shape."""
        bits = activations.float().abs().view(torch.int32).flatten() >> DROPPED_BITS
        self.counts[layer] += bits.bincount(minlength=self.counts.shape[1]).cpu()

    def threshold(self, layer: int, sparsity_pct: int) -> float:
        """The end of the lowest bin at or below which that share of the layer's activations lies, or more."""
        cumulated = self.counts[layer].cumsum(0)
        found = torch.searchsorted(cumulated * 100, cumulated[-1:] * sparsity_pct)  # integers: nothing is rounded
        end = (found.int() + 1 << DROPPED_BITS) - 1
        return end.view(torch.float32).item()


@torch.no_grad()
def neuron_magnitudes(
    model: torch.nn.Module, windows: torch.Tensor, batch: int, methods: Collection[str],
    progress=lambda done, total: None,
) -> dict[str, Magnitudes]:  # fmt: skip
    """What each method compares with thresholds, counted at all but the last token of windows (N, T)."""
    found = {method: Magnitudes(dimensions_of(model.config).layers) for method in methods}

    def visit(site: Site, x: torch.Tensor) -> None:
        if site.what == "neurons" and "threshold" in found:
            found["threshold"].add(site.layer, x)
        elif site.what == "ffn_input" and "cats" in found:
            found["cats"].add(site.layer, gate_activation(model, site.layer, x))

    with visiting(model, visit, ["ffn_input", "neurons"]):
        for start in range(0, len(windows), batch):
            model.base_model(windows[start : start + batch, :-1].to(model.device), use_cache=False)
            progress(min(start + batch, len(windows)), len(windows))
    return found
