"""From text windows to a trace: every criterion's scores, and what predictors will read, in one pass.

A trace holds, for N windows and M sampled tokens of them (L layers, U units of a kind):

    sequence.<criterion>.<kind>   the scores of whole windows: their mean and deviation over windows (L, U)
    tokens.<criterion>.<kind>     scores of single tokens (M, L, U), codes and their maxima
    windows.<criterion>.<kind>    scores of whole windows (N, L, U), codes and their maxima
    tokens.feature.<what>.<layer> what predictors of tokens read at a site of the model (M, D), bfloat16
    windows.feature.<what>.<layer>  what predictors of windows read there, at the last position (N, D), bfloat16
    loss                          mean cross-entropy of each window (N,)

Features are kept of the sites some predictor reads, and scores of windows where some predictor learns them. Where
`masking` says so, units are masked while the model runs: a trace then holds what the sparse model computes, and how
much each unit, before its mask, would matter to it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from shadowcore.errors import ArtifactError
from shadowcore.method.criteria import CRITERIA, Signals
from shadowcore.method.gradient_capture import ImportancePass
from shadowcore.method.score_quantization import encode
from shadowcore.models.families import Kind, dimensions_of
from shadowcore.models.ffn import ffn_norm
from shadowcore.models.losses import all_scored
from shadowcore.models.recording import Choose, Site

SCHEMA = "trace/4"
EXAMPLES = ("tokens", "windows")  # one token, or the score summed over a window with the features of its last token
WINDOW_BITS = 8  # of a score of a window: there are few of them
Masking = Callable[[torch.Tensor, torch.Tensor], Choose | None]


@dataclass(frozen=True)
class TracePlan:
    """What to keep: moments of the sequence scores of `criteria`, token scores in so many bits, features of sites.

    window_criteria, window_sites: the scores of whole windows to keep, and what is read at their last positions.
    """

    criteria: Sequence[str]
    token_criteria: Sequence[str]
    token_bits: int
    tokens_per_window: int
    sites: Sequence[Site]
    seed: int
    window_criteria: Sequence[str] = ()
    window_sites: Sequence[Site] = ()


def trace(
    model: torch.nn.Module, windows: torch.Tensor, plan: TracePlan, batch: int, progress=lambda done, total: None,
    masking: Masking = lambda ids, scored: None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Tensors of a trace (see the module's text) of token windows (N, T), on the CPU.

    masking(ids, scored): what chooses the masks of a pass (`models.recording.Choose`); None: dense. Raises
    ArtifactError if the model's loss is not finite.
    """
    importance = ImportancePass(model)
    for site in (*plan.sites, *plan.window_sites):
        if site.what == "ffn_residual":
            ffn_norm(model, site.layer)  # raises ConfigError if there is none
    layers = dimensions_of(model.config).layers
    generator = torch.Generator().manual_seed(plan.seed)
    moments: dict[str, Moments] = {}
    batches = []
    for start in range(0, len(windows), batch):
        ids = windows[start : start + batch].to(model.device)
        # the last token predicts nothing, so its scores are zero: never sampled
        picked = torch.stack(
            [torch.randperm(ids.shape[1] - 1, generator=generator)[: plan.tokens_per_window].sort().values for _ in ids]
        )
        sequences, tokens = _trace_batch(importance, layers, ids, picked.to(model.device), plan, masking)
        for name, scores in sequences.items():
            moments.setdefault(name, Moments()).add(scores)
        batches.append(tokens)
        progress(min(start + batch, len(windows)), len(windows))
    found = {name: torch.cat([one[name] for one in batches]) for name in batches[0]}
    for name, one in moments.items():
        found |= {f"{name}.mean": one.mean, f"{name}.deviation": one.deviation}
    if not found["loss"].isfinite().all():
        raise ArtifactError(
            f"{model.config.name_or_path}: the model's loss on this text is not finite in {model.dtype}; use dtype "
            "float32 or other weights"
        )
    return found


class Moments:
    """Mean and standard deviation over examples that come in batches, in float64."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # squares: summed squared deviations from the mean

    def add(self, values: torch.Tensor) -> None:
        """Count some examples (n, ...) in."""
        values = values.double()
        mean = values.mean(0)
        self.merge(len(values), mean, (values - mean).square().sum(0))

    def merge(self, count: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """Count in examples of known moments (Chan et al. 1979)."""
        apart, together = mean - self.mean, self.count + count
        self.squares = self.squares + squares + apart.square() * (self.count * count / together)
        self.mean, self.count = self.mean + apart * (count / together), together

    @property
    def deviation(self) -> torch.Tensor:
        """Population standard deviation."""
        return (self.squares / self.count).sqrt()


def _trace_batch(
    importance: ImportancePass, layers: int, ids: torch.Tensor, picked: torch.Tensor, plan: TracePlan,
    masking: Masking,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:  # fmt: skip
    """Sequence scores of every window (B, L, U), and what is kept of its tokens and losses."""
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    sequences: dict[str, list] = {}  # tensor name -> one entry per layer
    tokens: dict[str, list] = {}
    features: dict[str, torch.Tensor] = {}

    def at_picked(x: torch.Tensor) -> torch.Tensor:
        return x[rows.to(x.device), picked.to(x.device)].flatten(0, 1)

    def keep(found: dict[str, list], name: str, layer: int, value: torch.Tensor) -> None:
        found.setdefault(name, [None] * layers)[layer] = value.cpu()

    def keep_codes(examples: str, name: str, site: Site, scores: torch.Tensor, bits: int) -> None:
        codes, top = encode(scores, bits)
        keep(tokens, codes_name(name, site.what, examples), site.layer, codes)
        keep(tokens, top_name(name, site.what, examples), site.layer, top)

    def see_units(site: Site, signals: Signals) -> None:
        for name in dict.fromkeys((*plan.criteria, *plan.window_criteria)):
            scores = CRITERIA[name].sequence(signals)
            if name in plan.criteria:
                keep(sequences, f"sequence.{name}.{site.what}", site.layer, scores)
            if name in plan.window_criteria:
                keep_codes("windows", name, site, scores, WINDOW_BITS)
        for name in plan.token_criteria:
            keep_codes("tokens", name, site, at_picked(CRITERIA[name].token(signals)), plan.token_bits)

    def see_feature(site: Site, x: torch.Tensor) -> None:
        if site in plan.sites:
            features[feature_name(site)] = at_picked(x).bfloat16().cpu()
        if site in plan.window_sites:  # its last position predicts the window's last token
            features[feature_name(site, "windows")] = x[:, -1].bfloat16().cpu()

    scored = all_scored(ids)
    second_order = any(CRITERIA[name].order == 2 for name in plan.criteria)
    choose = masking(ids, scored)
    losses = importance(ids, scored, see_units, see_feature, choose=choose, second_order=second_order)
    return _stacked(sequences), _stacked(tokens) | features | {"loss": losses.cpu()}


def _stacked(layers: dict[str, list]) -> dict[str, torch.Tensor]:
    return {name: torch.stack(values, 1) for name, values in layers.items()}


def feature_name(site: Site, examples: str = "tokens") -> str:
    """What a trace calls the feature of a site; examples: tokens or windows."""
    return f"{examples}.feature.{site.what}.{site.layer}"


def codes_name(criterion: str, kind: Kind, examples: str = "tokens") -> str:
    """What a trace calls the codes of the examples' scores."""
    return f"{examples}.{criterion}.{kind}.codes"


def top_name(criterion: str, kind: Kind, examples: str = "tokens") -> str:
    """What a trace calls the maxima that the codes are relative to."""
    return f"{examples}.{criterion}.{kind}.top"


def sequence_moments(traces: Iterable, criterion: str, kind: Kind) -> Moments:
    """Moments of the scores (L, U) of all windows in open traces (`artifacts.open_tensors`), the shards of a split."""
    together, name = Moments(), f"sequence.{criterion}.{kind}"
    for trace in traces:
        count = trace.get_slice("loss").get_shape()[0]
        mean, deviation = (trace.get_tensor(f"{name}.{part}") for part in ("mean", "deviation"))
        together.merge(count, mean, deviation.square() * count)
    return together
