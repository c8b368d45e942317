"""Sparsity without a predictor: masks of neurons from what the model itself computes on the way.

    threshold   at every token, neurons whose magnitude |act(gate) * up| exceeds their layer's threshold
    griffin     for a whole continuation, the neurons that were large over its prompt (GRIFFIN)
    relu        at every token, the neurons that are not zero: nothing is lost, where the FFN's activation is ReLU

threshold knows a neuron only when gate and up are computed, so it spares its column of the down projection alone. It is
neither CATS (arXiv 2404.08763: `ffn_selectors`) nor TEAL (2408.14690), which thresholds the input of every matrix.
relu knows a zero from gate or fc1. GRIFFIN is arXiv 2404.01365.
"""

import torch

from shadowcore.measure.protocols import TOKEN, Protocol
from shadowcore.measure.read_bytes import unit_bytes
from shadowcore.measure.sparsity import Context, Masks
from shadowcore.method.policies import POLICIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import Kind, dimensions_of
from shadowcore.models.ffn import require_relu
from shadowcore.models.recording import Choose, Site, visiting


class ThresholdMasks(Masks):
    """Neurons are kept where their magnitude is above their layer's threshold (L,)."""

    def __init__(self, thresholds: torch.Tensor, computed: int = 2):
        """computed: how many of the FFN's input matrices are read for all neurons: 2 is gate and up, or fc1."""
        self.thresholds, self.computed = thresholds.tolist(), computed

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        def choose(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            return x.squeeze(-1).abs() > self.thresholds[site.layer] if site.what == "neurons" else None

        return choose

    def spared_bytes(self, model: torch.nn.Module) -> dict[Kind, int]:
        return {"neurons": unit_bytes(model, "neurons", self.computed)}


def nonzero_masks(model: torch.nn.Module) -> ThresholdMasks:
    """Neurons that are not zero, in every layer; ConfigError unless the FFN's activation is ReLU."""
    require_relu(model, "relu", "it skips exact zeros")
    return ThresholdMasks(torch.zeros(dimensions_of(model.config).layers), computed=1)


class PromptMasks(Masks):
    """A row's neurons by their share of each prompt token's activations: sqrt(sum_t a(t, u)^2 / |a(t)|^2).

    The prompt is dense, also its last position. The mask applies from that position on, because it predicts the first
    token; otherwise a continuation of one token would be dense.
    """

    reads_prompt = True

    def __init__(self, model: torch.nn.Module, policy: str, sparsity_pct: int):
        self.model, self.policy, self.sparsity_pct = model, POLICIES[policy], sparsity_pct

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        inputs = ids[:, :-1]
        prompt = torch.arange(inputs.shape[1], device=ids.device) <= protocol.source(scored)[:, None]  # (B, T)
        scores: list[torch.Tensor] = []

        def see(site: Site, x: torch.Tensor) -> None:
            if site.what == "neurons" and site.layer >= FIRST_SPARSE_LAYER:
                a = torch.nn.functional.normalize(x.squeeze(-1).float(), dim=-1)
                scores.append((a * prompt.to(a.device)[..., None]).norm(dim=1).to(ids.device))  # (B, F)

        with visiting(self.model, see, ["neurons"]):
            self.model.base_model(inputs, **context())
        keep = self.policy(torch.stack(scores, 1), self.sparsity_pct)[:, None]  # (B, 1, L - 1, F)

        def choose(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            if site.what != "neurons" or site.layer < FIRST_SPARSE_LAYER:
                return None
            return keep[:, :, site.layer - FIRST_SPARSE_LAYER]

        return choose
