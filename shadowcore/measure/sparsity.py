"""A Hugging Face model with some units switched off, and the masks that say which ones.

A protocol (see `protocols`) says from which positions a mask is computed, and to which it applies.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from typing import Protocol as Interface

import torch

from shadowcore.measure.protocols import TOKEN, Protocol
from shadowcore.measure.read_bytes import dense_bytes, unit_bytes
from shadowcore.method.policies import POLICIES, kept_units, predictor_policy
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, Predictor, reads_own_heads
from shadowcore.models.families import KINDS, Dimensions, Kind, dimensions_of, family_of
from shadowcore.models.recording import Choose, Site, visiting

# makes the model's other arguments anew for every call, because a call changes a cache
Context = Callable[[], dict[str, Any]]


def no_context() -> dict[str, Any]:
    """Nothing comes before the first tokens of the rows."""
    return {"use_cache": False}


SCORES_AT_ONCE = 2e9  # bytes of predicted scores


class Masks(Interface):
    """Makes keep masks, from what it reads at `sites`, and for the units there.

    reads_prompt: it needs the whole prompt of a row, so prompts cannot run before the rows.
    """

    sites: Collection[str] = KINDS
    reads_prompt = False

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        """The function that chooses units in a pass over ids[:, :-1], (B, T - 1), to predict tokens `scored` (B, T)."""

    def spared_bytes(self, model: torch.nn.Module) -> dict[Kind, int]:
        """Bytes of a removed unit that a decode step does not read: all, unless the choice reads some of them."""
        return {kind: unit_bytes(model, kind) for kind in KINDS}

    def selector_bytes(self, model: torch.nn.Module) -> int:
        """Bytes that the choice for one token reads in addition to the model's own weights."""
        return 0


def fixed_units(scores: Mapping[Kind, torch.Tensor], policy: str, sparsity_pct: int) -> dict[Kind, torch.Tensor]:
    """The kept units, masks (L, U), by scores (L, U) of each kind; layer 0 keeps all."""
    keep = {kind: torch.ones_like(table, dtype=torch.bool) for kind, table in scores.items()}
    for kind, table in scores.items():
        keep[kind][FIRST_SPARSE_LAYER:] = POLICIES[policy](table[FIRST_SPARSE_LAYER:], sparsity_pct)
    return keep


class FixedMasks(Masks):
    """The same units kept for every token: static and random pruning; `decode.selection.FixedSelection` for hooks."""

    def __init__(self, scores: Mapping[Kind, torch.Tensor], policy: str, sparsity_pct: int):
        """scores: (L, U) per kind to prune."""
        self.keep = fixed_units(scores, policy, sparsity_pct)

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        return lambda site, x: self.keep[site.what][site.layer] if site.what in self.keep else None


class PredictedMasks(Masks):
    """Masks from a predictor, for every position or one a row; `decode.selection.PredictedSelection` for hooks."""

    def __init__(self, predictor: Predictor, kinds: tuple[Kind, ...], policy: str, sparsity_pct: int):
        self.predictor, self.kinds, self.sparsity_pct = predictor, kinds, sparsity_pct
        self.policy_name, self.policy = policy, predictor_policy(policy, predictor)
        self.sites = {*kinds, *(group.site.what for group in predictor.groups)}

    def begin(
        self, ids: torch.Tensor, scored: torch.Tensor, context: Context = no_context, protocol: Protocol = TOKEN
    ) -> Choose:
        source = protocol.source(scored)
        keep: dict[Site, torch.Tensor] = {}  # masks that were chosen at earlier sites of this pass

        def choose(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            if site in self.predictor.group_at:
                feature = self.predictor.feature(site, x)  # (B, T or 1, D)
                if source is not None:
                    feature = feature[torch.arange(len(x), device=x.device), source.to(x.device)][:, None]
                for kind in self.kinds:
                    layers, chosen = self._chosen(site, feature, kind)
                    keep.update({Site(layer, kind): chosen[..., i, :] for i, layer in enumerate(layers)})
            return keep.pop(site, None)

        return choose

    def spared_bytes(self, model: torch.nn.Module) -> dict[Kind, int]:
        spared = super().spared_bytes(model)
        if reads_own_heads(self.predictor.groups):
            spared["heads"] = 0
        return spared

    def selector_bytes(self, model: torch.nn.Module) -> int:
        return self.predictor.step_bytes(self.kinds)

    def _chosen(self, site: Site, feature: torch.Tensor, kind: Kind) -> tuple[tuple[int, ...], torch.Tensor]:
        """The layers that are predicted from a site, and their keep masks (B, T, layers, U).

        Scores of a large model's layers take more memory than the model, so only some positions are scored at once.
        """
        scorer = self.predictor.scorers[kind][self.predictor.group_at[site]]
        feature = feature.to(scorer.score_mean.device)
        position = len(feature) * scorer.layers * scorer.units * 4
        masks = []
        for part in feature.split(max(1, int(SCORES_AT_ONCE // position)), 1):
            with _tensor_cores(part):
                layers, scores = self.predictor.read(site, part, kind)
            masks.append(self._kept(scores))
        return layers, self.predictor.spread(torch.cat(masks, 1), kind)

    def _kept(self, scores: torch.Tensor) -> torch.Tensor:
        if not scores.is_cuda or self.policy_name != "per_layer":
            return self.policy(scores, self.sparsity_pct)
        from shadowcore.decode.kernels import select  # not at the top: there is no Triton without a GPU

        with torch.cuda.device(scores.device):  # Triton starts kernels on the current one
            return select.top_units(scores, kept_units(scores.shape[-1], self.sparsity_pct))


@contextmanager
def _tensor_cores(feature: torch.Tensor) -> Iterator[None]:
    """On a GPU, float32 products in TF32 where the feature has 16 bits: it rounds less than the feature itself."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before or (feature.is_cuda and feature.dtype != torch.float32)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class SparseModel:
    """A Hugging Face model whose units are switched off while it runs, and counted; masks: None for the dense model."""

    def __init__(self, model: torch.nn.Module, masks: Masks | None, protocol: Protocol = TOKEN):
        self.model, self.masks, self.protocol = model, masks, protocol
        self.sizes = dimensions_of(model.config)
        self.count_anew()

    def count_anew(self) -> None:
        """Start counting again: the measured sparsity is that of the following passes."""
        # the count stays on the device, because a GPU would wait at every layer for a copy to the host
        zero = torch.zeros((), dtype=torch.int64, device=self.model.device)
        self.removed: dict[Kind, torch.Tensor] = {"heads": zero, "neurons": zero}
        self.positions = zero

    @property
    def prompts_may_run_first(self) -> bool:
        """Whether prompts may run, dense, before the rows that continue them, so that rows share a prompt's pass."""
        return self.masks is None or (self.protocol.dense_prompt and not self.masks.reads_prompt)

    @torch.no_grad()
    def logits(
        self, ids: torch.Tensor, scored: torch.Tensor, first_kept: int = 0, context: Context = no_context
    ) -> torch.Tensor:
        """Logits (B, T - 1 - first_kept, V) that predict ids (B, T), right-padded, from position `first_kept` on.

        scored (B, T): tokens whose prediction counts. The model runs on tokens 0 to T-2, because the last is only a
        target. context: the dense prompts that rows continue (`models.prefixes`), if there are any.
        """
        inputs, applied = ids[:, :-1], self.protocol.applied(scored)
        logits_to_keep = inputs.shape[1] - first_kept
        if self.masks is None:
            return self.model(inputs, logits_to_keep=logits_to_keep, **context()).logits
        self.positions = self.positions + applied.sum()
        choose = self.masks.begin(ids, scored, context, self.protocol)
        untouched = ~applied[..., None]  # (B, T, 1)
        on = cache(lambda device: (applied.to(device), untouched.to(device)))  # a model may be on several devices

        def visit(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            keep = choose(site, x)
            if keep is None:
                return None
            keep, (here, others) = keep.to(x.device), on(x.device)  # keep: (B, T, U)
            removed = ((keep.shape[-1] - keep.count_nonzero(-1)) * here).sum()
            self.removed[site.what] = self.removed[site.what] + removed.to(self.model.device)
            return x.where((keep | others)[..., None], 0)

        with visiting(self.model, visit, self.masks.sites):
            return self.model(inputs, logits_to_keep=logits_to_keep, **context()).logits

    def measured_sparsity(self, kinds: tuple[Kind, ...]) -> dict[str, float]:
        """Removed over all units at the positions masks applied to; see schemas.MEASURED for the keys."""
        sizes = self.sizes
        positions = max(1, int(self.positions))
        fraction = {
            kind: int(removed) / (positions * sizes.layers * sizes.units(kind))
            for kind, removed in self.removed.items()
        }
        units = {kind: sizes.layers * sizes.units(kind) for kind in kinds}
        weights = sum(fraction[kind] * sizes.layers * unit_weights(self.model, kind) for kind in self.removed)
        return {
            "sparsity_heads": fraction["heads"],
            "sparsity_neurons": fraction["neurons"],
            "sparsity_measured": sum(fraction[kind] * units[kind] for kind in kinds) / max(1, sum(units.values())),
            "sparsity_weights": weights / sum(parameter.numel() for parameter in self.model.parameters()),
            "read_bytes": (read := self._read_bytes(positions)),
            "read_share": read / dense_bytes(self.model),
        }

    def _read_bytes(self, positions: int) -> float:
        """Bytes of weights that a decode step reads, on average over the positions that masks applied to.

        A mask for a whole continuation is made before its first step, so its steps read no selector.
        """
        if self.masks is None:
            return float(dense_bytes(self.model))
        each_step = self.protocol is TOKEN
        spared = self.masks.spared_bytes(self.model) if each_step else Masks.spared_bytes(self.masks, self.model)
        selector = self.masks.selector_bytes(self.model) if each_step else 0
        skipped = sum(int(removed) * spared.get(kind, 0) for kind, removed in self.removed.items())
        return dense_bytes(self.model) + selector - skipped / positions


def unit_weights(model: torch.nn.Module, kind: Kind) -> int:
    """Weights a step need not read in one layer if all units of a kind are removed (keys and values are kept)."""
    sizes: Dimensions = dimensions_of(model.config)
    if kind == "heads":
        return 2 * sizes.width * sizes.heads * sizes.head_width  # query and output projections
    matrices = len(family_of(model.config).ffn_in) + 1
    return matrices * sizes.width * sizes.neurons


def random_scores(sizes: Dimensions, kinds: tuple[Kind, ...], seed: int) -> dict[Kind, torch.Tensor]:
    """Seeded uniform scores (L, U) per kind, for the method `random`."""
    generator = torch.Generator().manual_seed(seed)
    return {kind: torch.rand(sizes.layers, sizes.units(kind), generator=generator) for kind in kinds}
