"""Neurons chosen by the FFN's own input matrices, or by a cheap copy of them; nothing is trained.

    cats          the gate: neurons whose |act(gate x)| exceeds their layer's threshold (arXiv 2404.08763)
    sparseinfer   sign bits of gate (or fc1) and of the FFN's input: a neuron is removed where more than half of its
                  products are negative, which predicts that ReLU makes it zero (arXiv 2411.12692, its alpha is 1)
    proxyB        a copy of gate and up (or fc1) in B bits: kept are the neurons with the largest |act(gate x) * up x|
                  by the copy, times the norm of their column of the down projection (proxyB_tuned: times that norm
                  and a gain, which is tuned on the sparse model; it costs nothing where it is multiplied into the norm)
    proxyB_ahead  the same from the residual that enters the layer, so that the choice can run during the attention

Layer 0 stays dense.
"""

import torch
from torch.nn.functional import linear

from shadowcore.measure.protocols import TOKEN, Protocol
from shadowcore.measure.read_bytes import unit_bytes
from shadowcore.measure.sparsity import Context, Masks
from shadowcore.method.low_bit import copy_bytes, low_bit, row_steps
from shadowcore.method.policies import per_layer
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import Kind, dimensions_of, output_projection
from shadowcore.models.ffn import activation_function, ffn_inputs, ffn_norm, gate_activation, require_relu
from shadowcore.models.recording import Choose, Site


class FfnMasks(Masks):
    """Masks of a layer's neurons from what flows at one of its sites; layer 0 stays dense."""

    def __init__(self, model: torch.nn.Module, read_at: str = "ffn_input"):
        self.model, self.read_at, self.sites = model, read_at, (read_at, "neurons")
        self.layers = range(FIRST_SPARSE_LAYER, dimensions_of(model.config).layers)

    def keep(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Which neurons (B, T, F) of a layer are kept, from what its site has, (B, T, D)."""
        raise NotImplementedError

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        kept: dict[int, torch.Tensor] = {}

        def choose(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            if site.layer not in self.layers:
                return None
            if site.what == self.read_at:
                kept[site.layer] = self.keep(site.layer, x)
            return kept.pop(site.layer) if site.what == "neurons" else None

        return choose


class GateMasks(FfnMasks):
    """CATS: keeps the neurons whose activated gate exceeds their layer's threshold (L,) in magnitude."""

    def __init__(self, model: torch.nn.Module, thresholds: torch.Tensor):
        super().__init__(model)
        self.thresholds = thresholds.tolist()

    def keep(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        return gate_activation(self.model, layer, x).abs() > self.thresholds[layer]

    def spared_bytes(self, model: torch.nn.Module) -> dict[Kind, int]:
        return {"neurons": unit_bytes(model, "neurons", computed=1)}


class SignMasks(FfnMasks):
    """SparseInfer: keeps the neurons whose gate and input agree in the sign of half of their numbers or more."""

    def __init__(self, model: torch.nn.Module):
        require_relu(model, "sparseinfer", "it predicts which neurons are zero")
        super().__init__(model)

    def keep(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        signs, of_rows = (torch.where(part < 0, -1.0, 1.0) for part in (x, ffn_inputs(self.model, layer)[0].weight))
        return linear(signs, of_rows) >= 0  # agreeing minus other signs

    def selector_bytes(self, model: torch.nn.Module) -> int:
        sizes = dimensions_of(model.config)
        return len(self.layers) * sizes.neurons * -(-sizes.width // 8)


class ProxyMasks(FfnMasks):
    """Keeps the neurons of every layer that are largest by a low-bit copy of the layer's input matrices."""

    def __init__(self, model: torch.nn.Module, bits: int, sparsity_pct: int, ahead: bool = False):
        """bits: of a weight of the copy. ahead: read the residual that enters the layer, not the FFN's input."""
        super().__init__(model, "residual" if ahead else "ffn_input")
        self.bits, self.sparsity_pct, self.activation = bits, sparsity_pct, activation_function(model)
        self.before = {layer: ffn_norm(model, layer) for layer in self.layers} if ahead else {}
        with torch.no_grad():  # steps only: a copy of every matrix would take almost as much memory as the model
            self.norms = {i: output_projection(model, i, "neurons").weight.float().norm(dim=0) for i in self.layers}
            self.steps = {i: [row_steps(one.weight, bits) for one in ffn_inputs(model, i)] for i in self.layers}

    def keep(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        return per_layer(self.scores(layer, x), self.sparsity_pct)

    def read(self, site: Site, x: torch.Tensor) -> dict[Kind, tuple[tuple[int, ...], torch.Tensor]]:
        """As a selection: the layer that is chosen from a site, and its scores (B, T, 1, F)."""
        if site.layer not in self.layers or site.what != self.read_at:
            return {}
        return {"neurons": ((site.layer,), self.scores(site.layer, x)[..., None, :])}

    def scores(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, T, F) of a layer's neurons."""
        x = self.before[layer].forward(x) if self.before else x  # not a call of the module: its hooks are who asks
        gate, *up = (
            linear(x, low_bit(one.weight, step, self.bits), one.bias)
            for one, step in zip(ffn_inputs(self.model, layer), self.steps[layer], strict=True)
        )
        neurons = self.activation(gate) * up[0] if up else self.activation(gate)
        return neurons.abs() * self.norms[layer]

    def selector_bytes(self, model: torch.nn.Module) -> int:
        """The packed copies with their biases, and the norms of the down projection's columns in 32 bits."""
        sizes = dimensions_of(model.config)
        inputs = ffn_inputs(model, 0)
        biases = sum(one.bias.nbytes for one in inputs if one.bias is not None)
        copies = len(inputs) * copy_bytes(sizes.neurons, sizes.width, self.bits)
        return len(self.layers) * (copies + biases + 4 * sizes.neurons)
