"""From text windows to a trace: every criterion's scores, and what predictors will read, in one pass.

A trace holds, for N windows and M sampled tokens of them (L layers, U units of a kind):

    sequence.<criterion>.<kind>   scores of whole windows (N, L, U), 8-bit codes and their maxima
    token.<criterion>.<kind>      scores of single tokens (M, L, U), codes and their maxima
    feature.residual.<layer>      the residual entering a layer (M, D), bfloat16
    feature.heads.<layer>         a layer's concatenated head outputs (M, H K), bfloat16
    loss                          mean cross-entropy of each window (N,)

Features are kept of the sites some predictor reads. Where `masking` says so, units are masked while the model
runs: a trace then holds what the sparse model computes, and how much each unit, before its mask, would matter to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from shadowcore.method.codes import decode, encode
from shadowcore.method.criteria import CRITERIA, Signals
from shadowcore.method.passes import ImportancePass
from shadowcore.models.families import Kind, dimensions_of
from shadowcore.models.recording import Choose, Site

SCHEMA = "trace/2"
SEQUENCE_BITS = 8
Masking = Callable[[torch.Tensor, torch.Tensor], Choose | None]


@dataclass(frozen=True)
class TracePlan:
    """What to keep: sequence scores of `criteria`, token scores of `token_criteria` in so many bits, features."""

    criteria: Sequence[str]
    token_criteria: Sequence[str]
    token_bits: int
    tokens_per_window: int
    sites: Sequence[Site]
    seed: int


def trace(
    model: torch.nn.Module,
    windows: torch.Tensor,
    plan: TracePlan,
    batch: int,
    progress=lambda done, total: None,
    masking: Masking = lambda ids, scored: None,
) -> dict[str, torch.Tensor]:
    """Tensors of a trace (see the module's text) of token windows (N, T), on the CPU.

    masking(ids, scored): what chooses the masks of a batch's pass (`passes.Choose`), or None for the dense model.
    """
    importance = ImportancePass(model)
    layers = dimensions_of(model.config).layers
    generator = torch.Generator().manual_seed(plan.seed)
    batches = []
    for start in range(0, len(windows), batch):
        ids = windows[start : start + batch].to(model.device)
        # the last token predicts nothing, so its scores are zero: never sampled
        picked = torch.stack(
            [torch.randperm(ids.shape[1] - 1, generator=generator)[: plan.tokens_per_window].sort().values for _ in ids]
        )
        batches.append(_trace_batch(importance, layers, ids, picked.to(model.device), plan, masking))
        progress(min(start + batch, len(windows)), len(windows))
    return {name: torch.cat([one[name] for one in batches]) for name in batches[0]}


def _trace_batch(
    importance: ImportancePass,
    layers: int,
    ids: torch.Tensor,
    picked: torch.Tensor,
    plan: TracePlan,
    masking: Masking,
) -> dict[str, torch.Tensor]:
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    found: dict[str, list] = {}  # tensor name -> one entry per layer
    features: dict[str, torch.Tensor] = {}

    def keep(name: str, layer: int, value: torch.Tensor) -> None:
        found.setdefault(name, [None] * layers)[layer] = value.cpu()

    def see_units(site: Site, signals: Signals) -> None:
        for name in plan.criteria:
            codes, top = encode(CRITERIA[name].sequence(signals), SEQUENCE_BITS)
            keep(f"sequence.{name}.{site.what}.codes", site.layer, codes)
            keep(f"sequence.{name}.{site.what}.top", site.layer, top)
        for name in plan.token_criteria:
            codes, top = encode(CRITERIA[name].token(signals)[rows, picked].flatten(0, 1), plan.token_bits)
            keep(f"token.{name}.{site.what}.codes", site.layer, codes)
            keep(f"token.{name}.{site.what}.top", site.layer, top)

    def see_feature(site: Site, x: torch.Tensor) -> None:
        if site in plan.sites:
            features[feature_name(site)] = x[rows, picked].flatten(0, 1).bfloat16().cpu()

    scored = torch.ones_like(ids, dtype=torch.bool)
    scored[:, 0] = False
    losses = importance(ids, scored, see_units, see_feature, choose=masking(ids, scored))
    return {name: torch.stack(values, 1) for name, values in found.items()} | features | {"loss": losses.cpu()}


def feature_name(site: Site) -> str:
    """What a trace calls the feature of a site."""
    return f"feature.{site.what}.{site.layer}"


def sequence_scores(trace, criterion: str, kind: Kind, units: int) -> torch.Tensor:
    """Decoded scores of whole windows, float32 (N, L, U), from an open trace (`artifacts.open_tensors`)."""
    name = f"sequence.{criterion}.{kind}"
    return decode(trace.get_tensor(f"{name}.codes"), trace.get_tensor(f"{name}.top"), SEQUENCE_BITS, units)


def token_scores(
    trace, criterion: str, kind: Kind, layers: slice, units: int, bits: int, device: torch.device
) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """A reader of token scores, index (m,) -> float32 (m, layers, U) on `device`, and how many tokens there are.

    Codes stay packed in the CPU's memory; only what is asked for moves to the device and is decoded there.
    """
    name = f"token.{criterion}.{kind}"
    codes, top = (trace.get_slice(f"{name}.{part}")[:, layers] for part in ("codes", "top"))
    return lambda index: decode(codes[index].to(device), top[index].to(device), bits, units), len(codes)


def feature(trace, site: Site) -> torch.Tensor:
    """What a predictor reads at a site, float32 (M, D)."""
    return trace.get_tensor(feature_name(site)).float()
