"""Time per token of one model on this machine: dense, static and predicted variants take turns in one run.

On a GPU the Triton decoder is measured, with modes that only it has; without a GPU, the torch decoder. The column
`backend` says which. Before it is timed, each variant is checked against the Hugging Face model
(`measure.equivalence`). A variant that fails is not timed; the table `refused` names it and the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shadowcore import artifacts, provenance
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout, compacted, decoded_positions, from_model
from shadowcore.decode.low_bit_proxy import LowBitCopies, Proxy
from shadowcore.decode.random_weights import require_bytes
from shadowcore.decode.selection import FixedSelection, PredictedSelection
from shadowcore.measure import gpu_timing, latency
from shadowcore.measure.dense_baselines import HuggingFaceDecoder
from shadowcore.measure.equivalence import Agreement, Disagreement, check, check_thresholds
from shadowcore.measure.ffn_selectors import ProxyMasks
from shadowcore.measure.latency_variants import graph_decoder, proxy_keys
from shadowcore.measure.sparsity import PredictedMasks
from shadowcore.method.policies import POLICIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, Predictor
from shadowcore.method.thresholds import neuron_magnitudes
from shadowcore.models.families import KINDS_OF, Kind, dimensions_of, require_positions
from shadowcore.models.folders import read_config
from shadowcore.schemas import LATENCY, LATENCY_REPEATS, REFUSED
from shadowcore.stages.base import Progress, Stage, header
from shadowcore.stages.inputs import (
    read_mean_scores,
    read_model_on_cpu,
    read_predictor,
    read_tokenizer,
    windows_of,
)

POLICY = "per_layer"
CHECKED = {"cuda": 200, "cpu": 12}  # tokens that each variant generates for its check
THRESHOLD_WINDOWS = 8  # of the prompt's length, to see how large neurons are


@dataclass(frozen=True)
class Spec:
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


@dataclass(frozen=True)
class Inputs:
    card: Path
    weights: Path
    documents: Path
    scores: Path
    predictors: tuple[Path, ...]


@dataclass(frozen=True)
class Outputs:
    summary: Path
    repeats: Path
    refused: Path


@dataclass(frozen=True)
class Variant:
    """One way to decode: the key columns of its rows, its decoder, and what its check compares.

    masks: what the evaluation harness would keep, for a predictor or proxy; expected[kind] (L, U): the units that it
    must keep, where they are fixed; thresholds (L,): of neurons' magnitudes, for a decoder that does not report what it
    kept.
    """

    keys: dict[str, Any]
    decoder: Any
    masks: PredictedMasks | ProxyMasks | None = None
    expected: Mapping[Kind, torch.Tensor] | None = None
    thresholds: torch.Tensor | None = None


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"latency {spec.model}")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    tokenizer = read_tokenizer(inputs.card, inputs.weights)
    positions, timed = decoded_positions(read_config(inputs.weights)), spec.prompt_tokens + spec.new_tokens
    require_positions(positions, timed, "prompt_tokens + new_tokens", "the model, or of its sliding window")
    card, documents, key = inputs.card, inputs.documents, "latency.prompt_tokens"
    prompt = windows_of(card, documents, "evaluation", tokenizer, spec.prompt_tokens, 1, spec.seed, key)[0]
    ids = torch.tensor([prompt.ids], device=device)
    ceiling = gpu_timing.read_ceiling(device) if device.type == "cuda" else None
    model = read_model_on_cpu(inputs.card, inputs.weights, spec.dtype)
    require_bytes(2 * sum(parameter.nbytes for parameter in model.parameters()), device)  # the model, and our layout
    model = model.to(device)
    sizes = dimensions_of(model.config)
    checked = min(CHECKED[device.type], positions - spec.prompt_tokens)
    room = spec.prompt_tokens + max(spec.new_tokens, checked)
    windows = windows_of(card, documents, "train", tokenizer, spec.prompt_tokens, THRESHOLD_WINDOWS, spec.seed, key)
    choosers = Choosers(
        means=read_mean_scores(inputs.scores, spec.criterion, KINDS_OF[spec.units], sizes),
        predictors=[read_predictor(path, sizes).to(device, model.dtype) for path in inputs.predictors],
        windows=torch.tensor([window.ids for window in windows]),
    )
    variants = variants_of(spec, model, room, choosers, triton=device.type == "cuda")
    progress.say(f"{len(variants)} variants, {spec.warmup} + {spec.repeats} turns each, checked first")
    reasons: dict[str, str] = {}
    for name, variant in variants.items():
        try:
            progress.say(f"{name}: {check_variant(name, variant, model, ids, checked)}")
        except Disagreement as error:
            reasons[name] = str(error)
            progress.say(f"{name} is not timed: {error}")
    decoders = {name: variant.decoder for name, variant in variants.items() if name not in reasons}
    raw = latency.measure(decoders, ids, spec.new_tokens, spec.repeats, spec.warmup)
    shared = {
        "model": spec.model, "device": provenance.device_name(), "driver": gpu_timing.driver_version(device),
        "backend": "triton" if device.type == "cuda" else "torch", "weights": spec.weights, "dtype": spec.dtype,
        "threads": None if device.type == "cuda" else torch.get_num_threads(), "kv": "kept", "batch": 1,
        "prompt_tokens": spec.prompt_tokens, "new_tokens": spec.new_tokens, "ceiling_gb_s": ceiling,
    }  # fmt: skip
    rows = []
    for row in latency.summarise(raw):
        variant = variants[row.pop("variant")]
        rows.append(shared | variant.keys | row | costs(variant.decoder, ids[0, -1:], row["ms_per_token"], ceiling))
    made = header("latency", spec, inputs)
    artifacts.write_table(outputs.summary, LATENCY.schema, LATENCY.build(rows), made)
    repeats = [
        shared | variants[row["variant"]].keys | {name: row[name] for name in ("repeat", "ttft_ms", "ms_per_token")}
        for row in raw
    ]
    artifacts.write_table(
        outputs.repeats, LATENCY_REPEATS.schema,
        LATENCY_REPEATS.build({k: v for k, v in row.items() if k in LATENCY_REPEATS.columns} for row in repeats), made,
    )  # fmt: skip
    refused = latency.refusals(reasons, {name: shared | variant.keys for name, variant in variants.items()})
    artifacts.write_table(outputs.refused, REFUSED.schema, refused, made)
    progress(1, 1)


class Choosers(NamedTuple):
    """What selections are made from: mean scores (L, U) per kind, predictors, and text (N, T) for the thresholds."""

    means: Mapping[Kind, torch.Tensor]
    predictors: Sequence[Predictor]
    windows: torch.Tensor


def variants_of(spec: Spec, model: torch.nn.Module, room: int, choosers: Choosers, triton: bool) -> dict[str, Variant]:
    """Everything to be timed, by name, with the Triton decoder, which also has thresholds, or the torch decoder."""
    layout, kinds = from_model(model), KINDS_OF[spec.units]
    make = graph_decoder if triton else Decoder
    variants = {
        "huggingface": Variant({"mode": "huggingface", "sparsity_pct": 0}, HuggingFaceDecoder(model)),
        "dense": Variant({"mode": "dense", "sparsity_pct": 0}, make(layout, room), expected=layout.keep_masks()),
    }
    if triton and layout.exact_zeros:
        keys = {"mode": "relu", "sparsity_pct": 0}
        zeros = [0.0] * layout.sizes.layers
        variants["relu"] = Variant(keys, make(layout, room, thresholds=zeros), thresholds=torch.tensor(zeros))
    proxies = proxies_of(spec.proxies, model, layout)
    magnitudes = None
    if triton and "neurons" in kinds:
        magnitudes = neuron_magnitudes(model, choosers.windows, 1, ["threshold"])["threshold"]
    for pct in spec.sparsities_pct:
        keys = {"units": spec.units, "sparsity_pct": pct}
        keep = static_masks(choosers.means, layout, pct)
        variants[f"static {pct}"] = Variant(
            keys | {"mode": "static"}, make(compacted(layout, keep), room), expected=keep
        )
        variants[f"given {pct}"] = Variant(
            keys | {"mode": "given"}, make(layout, room, FixedSelection(keep)), expected=keep
        )
        for method, predictor in zip(spec.predictors, choosers.predictors, strict=True):
            variants[f"{method} {pct}"] = Variant(
                keys | {"mode": method, "predictor_rank": predictor.ranks[kinds[-1]], "predictor_bits": predictor.bits}
                | {"predictor_groups": len(predictor.groups)},
                make(layout, room, PredictedSelection(predictor, POLICY, dict.fromkeys(kinds, pct))),
                masks=PredictedMasks(predictor, kinds, POLICY, pct),
            )  # fmt: skip
        for method, (proxy, masks) in proxies.items():
            at_pct = copy(masks)
            at_pct.sparsity_pct = pct
            variants[f"{method} {pct}"] = Variant(
                proxy_keys(method, pct, layout.sizes.layers),
                make(layout, room, PredictedSelection(proxy, POLICY, {"neurons": pct})), masks=at_pct,
            )  # fmt: skip
        if magnitudes is not None:
            layers = range(FIRST_SPARSE_LAYER, layout.sizes.layers)
            thresholds = [-1.0] * FIRST_SPARSE_LAYER + [magnitudes.threshold(layer, pct) for layer in layers]
            variants[f"threshold {pct}"] = Variant(
                {"mode": "threshold", "units": "neurons", "sparsity_pct": pct},
                make(layout, room, thresholds=thresholds), thresholds=torch.tensor(thresholds),
            )  # fmt: skip
    return variants


def proxies_of(methods: Sequence[str], model: torch.nn.Module, layout: Layout) -> dict[str, tuple[Proxy, ProxyMasks]]:
    """Each proxy of the decoders, and what the evaluation makes of the same method."""
    copies: dict[int, LowBitCopies] = {}
    proxies = [Proxy(layout, method, copies) for method in methods]
    return {proxy.design: (proxy, ProxyMasks(model, proxy.bits, 0, proxy.ahead)) for proxy in proxies}


def check_variant(name: str, variant: Variant, model: torch.nn.Module, ids: torch.Tensor, new_tokens: int) -> Agreement:
    """Raise Disagreement unless a variant computes what the Hugging Face model with the same masks computes."""
    if isinstance(variant.decoder, HuggingFaceDecoder):
        return Agreement(0.0)
    if variant.thresholds is not None:
        return check_thresholds(name, variant.decoder, model, ids, new_tokens, variant.thresholds)
    return check(name, variant.decoder, model, ids, new_tokens, variant.masks, variant.expected)


def static_masks(means: dict[str, torch.Tensor], layout: Layout, sparsity_pct: int) -> dict[str, torch.Tensor]:
    """Keep masks (L, U) per kind from mean scores; layer 0 is dense."""
    masks = layout.keep_masks()
    for kind, scores in means.items():
        masks[kind][FIRST_SPARSE_LAYER:] = POLICIES[POLICY](scores[FIRST_SPARSE_LAYER:], sparsity_pct)
    return masks


def costs(decoder: Any, token: torch.Tensor, ms_per_token: float, ceiling: float | None) -> dict[str, Any]:
    """Counted weight bytes of a step, units kept, and the predictor's share of bytes and time."""
    if not isinstance(decoder, Decoder):
        return {}
    columns: dict[str, Any] = {"gb_per_token": latency.bytes_per_step(decoder) / 1e9}
    columns |= {f"kept_{kind}": int(mask.sum()) for kind, mask in decoder.keep_masks().items()}
    columns["gb_per_s"] = columns["gb_per_token"] / ms_per_token * 1e3
    if ceiling is not None:
        cached = gpu_timing.bytes_cached(decoder.layout, decoder.position) / 1e9
        columns["roofline_ms"] = (columns["gb_per_token"] + cached) / ceiling * 1e3
        columns["nodes"] = decoder.replay.nodes()
        columns |= gpu_timing.parts(decoder, decoder.position - 1)
    if decoder.selection.weight_bytes:
        columns["predictor_mb"] = latency.predictor_bytes(decoder) / 1e6
        if ceiling is None:
            columns["predictor_ms"] = latency.predictor_time(decoder, token, repeats=20)
    return columns


STAGE = Stage(Spec, Inputs, Outputs, run)
