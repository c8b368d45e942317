"""Time per token of one model on this machine: dense, static and predicted variants take turns in one run.

On a GPU the Triton decoder is measured, with modes that only it has; without a GPU, the torch decoder. The column
`backend` says which. Before it is timed, each variant is checked against the Hugging Face model
(`measure.equivalence_model`). A variant that fails is not timed; the table `refused` names it and the reason.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import compacted, decoded_positions, from_model
from shadowcore.decode.low_bit_proxy import LowBitCopies, Proxy
from shadowcore.decode.random_weights import require_bytes
from shadowcore.decode.selection import DenseSelection, FixedSelection, PredictedSelection
from shadowcore.measure import gpu_timing, latency
from shadowcore.measure.dense_baselines import HuggingFaceDecoder
from shadowcore.measure.equivalence import Disagreement
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.latency import Variant
from shadowcore.measure.latency_variants import graph_decoder, proxy_keys
from shadowcore.measure.sparsity import fixed_units
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, Predictor
from shadowcore.method.thresholds import neuron_magnitudes
from shadowcore.models.families import KINDS_OF, Kind, dimensions_of, require_positions
from shadowcore.models.folders import read_config
from shadowcore.stages.base import Frozen, Outputs, Progress
from shadowcore.stages.inputs import ModelAndText, read_mean_scores, read_predictor
from shadowcore.stages.timed_tables import shared_columns, write

POLICY = "per_layer"
CHECKED = {"cuda": 200, "cpu": 12}  # tokens that each variant generates for its check
THRESHOLD_WINDOWS = 8  # of the prompt's length, to see how large neurons are


class Spec(Frozen):
    """predictors: the method of each file of --predictors, in order. proxies: methods that choose by low-bit copies."""

    model: str
    weights: str
    dtype: str
    criterion: str
    units: str
    sparsities_pct: tuple[int, ...]
    predictors: tuple[str, ...]
    proxies: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    warmup: int
    seed: int


class Inputs(ModelAndText):
    scores: Path
    predictors: tuple[Path, ...]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"latency {spec.model}")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    positions, timed = decoded_positions(read_config(inputs.weights)), spec.prompt_tokens + spec.new_tokens
    require_positions(positions, timed, "prompt_tokens + new_tokens", "the model, or of its sliding window")
    key = "latency.prompt_tokens"
    ids = inputs.ids("evaluation", spec.prompt_tokens, 1, spec.seed, key).to(device)
    ceiling = gpu_timing.read_ceiling(device) if device.type == "cuda" else None
    model = inputs.loaded(spec.dtype)
    require_bytes(2 * sum(parameter.nbytes for parameter in model.parameters()), device)  # the model, and our layout
    model = model.to(device)
    sizes = dimensions_of(model.config)
    checked = min(CHECKED[device.type], positions - spec.prompt_tokens)
    room = spec.prompt_tokens + max(spec.new_tokens, checked)
    means = read_mean_scores(inputs.scores, spec.criterion, KINDS_OF[spec.units], sizes)
    predictors = [read_predictor(path, sizes).to(device, model.dtype) for path in inputs.predictors]
    windows = inputs.ids("train", spec.prompt_tokens, THRESHOLD_WINDOWS, spec.seed, key)
    variants = variants_of(spec, model, room, means, predictors, windows, triton=device.type == "cuda")
    progress.say(f"{len(variants)} variants, {spec.warmup} + {spec.repeats} turns each, checked first")
    reasons: dict[str, str] = {}
    for name, variant in variants.items():
        try:
            progress.say(f"{name}: {variant.check(name, model, ids, checked)}")
        except Disagreement as error:
            reasons[name] = str(error)
            progress.say(f"{name} is not timed: {error}")
    decoders = {name: variant.decoder for name, variant in variants.items() if name not in reasons}
    raw = latency.measure(decoders, ids, spec.new_tokens, spec.repeats, spec.warmup)
    rows = [
        row | latency.costs(decoders[row["variant"]], ids[0, -1:], row["ms_per_token"], ceiling)
        for row in latency.summarise(raw)
    ]
    shared = shared_columns(spec, spec.weights, device, ceiling)
    keys = {name: shared | variant.keys for name, variant in variants.items()}
    write("latency", spec, inputs, outputs, keys, rows, raw, reasons)


def variants_of(
    spec: Spec, model: torch.nn.Module, room: int, means: Mapping[Kind, torch.Tensor], predictors: Sequence[Predictor],
    windows: torch.Tensor, triton: bool,
) -> dict[str, Variant]:  # fmt: skip
    """Everything to be timed, by name, with the Triton decoder, which also has thresholds, or the torch decoder.

    means: scores (L, U) of each kind, for fixed units; windows (N, T): text from which thresholds are made.
    """
    layout, kinds = from_model(model), KINDS_OF[spec.units]
    make = graph_decoder if triton else Decoder
    dense = {"sparsity_pct": 0}

    def thresholded(thresholds: list[float]) -> dict[str, Any]:
        return {"decoder": make(layout, room, thresholds=thresholds), "thresholds": torch.tensor(thresholds)}

    variants = {
        "huggingface": Variant({"mode": "huggingface"} | dense, HuggingFaceDecoder(model)),
        "dense": Variant({"mode": "dense"} | dense, make(layout, room), DenseSelection()),
    }
    if triton and layout.exact_zeros:
        variants["relu"] = Variant({"mode": "relu"} | dense, **thresholded([0.0] * layout.sizes.layers))
    copies: dict[int, LowBitCopies] = {}
    # each proxy of the decoders, and what the evaluation makes of the same method, which has its own scores
    proxies = [(proxy, ProxyMasks(model, proxy.bits, 0, proxy.ahead))
               for proxy in (Proxy(layout, method, copies) for method in spec.proxies)]  # fmt: skip
    magnitudes = None
    if triton and "neurons" in kinds:
        magnitudes = neuron_magnitudes(model, windows, 1, ["threshold"])["threshold"]
    for pct in spec.sparsities_pct:
        keys = {"units": spec.units, "sparsity_pct": pct}
        keep = layout.keep_masks()
        for kind, mask in fixed_units(means, POLICY, pct).items():
            keep[kind].copy_(mask)
        fixed = FixedSelection(keep)
        variants[f"static {pct}"] = Variant(keys | {"mode": "static"}, make(compacted(layout, keep), room), fixed)
        variants[f"given {pct}"] = Variant(keys | {"mode": "given"}, make(layout, room, fixed), fixed)
        for method, predictor in zip(spec.predictors, predictors, strict=True):
            predicted = PredictedSelection(predictor, POLICY, dict.fromkeys(kinds, pct))
            own = {"predictor_rank": predictor.ranks[kinds[-1]], "predictor_bits": predictor.bits}
            own |= {"mode": method, "predictor_groups": len(predictor.groups)}
            variants[f"{method} {pct}"] = Variant(keys | own, make(layout, room, predicted), predicted)
        for proxy, masks in proxies:
            predicted = PredictedSelection(proxy, POLICY, {"neurons": pct})
            own = proxy_keys(proxy.design, pct, layout.sizes.layers)
            variants[f"{proxy.design} {pct}"] = Variant(own, make(layout, room, predicted), predicted, masks=masks)
        if magnitudes is not None:
            layers = range(FIRST_SPARSE_LAYER, layout.sizes.layers)
            thresholds = [-1.0] * FIRST_SPARSE_LAYER + [magnitudes.threshold(layer, pct) for layer in layers]
            own = {"mode": "threshold", "units": "neurons"}
            variants[f"threshold {pct}"] = Variant(keys | own, **thresholded(thresholds))
    return variants
