"""Time per token of one model on this machine: dense, static and predicted, all in one run, taking turns."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shadowcore import artifacts
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout, compacted, from_model
from shadowcore.decode.skipping import KeepPredicted
from shadowcore.measure import latency
from shadowcore.measure.agreement import HuggingFaceDecoder
from shadowcore.method.policies import POLICIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models import sources
from shadowcore.models.families import KINDS_OF
from shadowcore.schemas import LATENCY, LATENCY_REPEATS
from shadowcore.stages.base import Progress, Stage, header
from shadowcore.stages.inputs import read_mean_scores, read_predictor, read_tokenizer, windows_of

POLICY = "per_layer"


@dataclass(frozen=True)
class Spec:
    """predictors: the method of each file of --predictors, in order."""

    model: str
    weights: str
    dtype: str
    criterion: str
    units: str
    sparsities_pct: tuple[int, ...]
    predictors: tuple[str, ...]
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


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"latency {spec.model}")
    tokenizer = read_tokenizer(inputs.card, inputs.weights)
    prompt = windows_of(inputs.documents, "evaluation", tokenizer, spec.prompt_tokens, 1, spec.seed)[0]
    model = sources.load_model(inputs.weights, spec.dtype)
    variants = variants_of(spec, inputs, model)
    progress.say(f"{len(variants)} variants, {spec.warmup} + {spec.repeats} turns each, checked first")
    decoders = {name: decoder for name, (_, decoder) in variants.items()}
    raw = latency.measure(
        decoders, torch.tensor([prompt.ids]), spec.new_tokens, spec.repeats, spec.warmup, reference=model
    )
    shared = {
        "model": spec.model, "device": processor_name(), "backend": "torch", "weights": spec.weights,
        "dtype": spec.dtype, "threads": torch.get_num_threads(), "kv": "kept", "batch": 1,
        "prompt_tokens": spec.prompt_tokens, "new_tokens": spec.new_tokens,
    }  # fmt: skip
    rows = []
    for row in latency.summarise(raw):
        keys, decoder = variants[row.pop("variant")]
        rows.append(shared | keys | row | costs(decoder, torch.tensor(prompt.ids[-1:]), row["ms_per_token"]))
    made = header("latency", spec, inputs)
    artifacts.write_table(outputs.summary, LATENCY.schema, LATENCY.build(rows), made)
    repeats = [
        {"model": spec.model, "device": shared["device"], **variants[row["variant"]][0]}
        | {name: row[name] for name in ("repeat", "ttft_ms", "ms_per_token")}
        for row in raw
    ]
    artifacts.write_table(
        outputs.repeats, LATENCY_REPEATS.schema,
        LATENCY_REPEATS.build({k: v for k, v in row.items() if k in LATENCY_REPEATS.columns} for row in repeats), made,
    )  # fmt: skip
    progress(1, 1)


def variants_of(spec: Spec, inputs: Inputs, model: torch.nn.Module) -> dict[str, tuple[dict[str, Any], Any]]:
    """Key columns and decoder of everything to be timed, by name."""
    layout = from_model(model)
    room = spec.prompt_tokens + spec.new_tokens
    kinds = KINDS_OF[spec.units]
    variants = {
        "huggingface": ({"mode": "huggingface", "sparsity_pct": 0}, HuggingFaceDecoder(model)),
        "dense": ({"mode": "dense", "sparsity_pct": 0}, Decoder(layout, room)),
    }
    means = read_mean_scores(inputs.scores, spec.criterion, kinds, layout.sizes)
    predictors = [read_predictor(path, layout.sizes).to(layout.dtype) for path in inputs.predictors]
    for pct in spec.sparsities_pct:
        keys = {"units": spec.units, "sparsity_pct": pct}
        static = Decoder(compacted(layout, static_masks(means, layout, pct)), room)
        variants[f"static {pct}"] = (keys | {"mode": "static"}, static)
        for method, predictor in zip(spec.predictors, predictors, strict=True):
            decoder = Decoder(layout, room, KeepPredicted(predictor, POLICY, dict.fromkeys(kinds, pct)))
            variants[f"{method} {pct}"] = (
                keys | {"mode": method, "predictor_rank": predictor.ranks[kinds[-1]]},
                decoder,
            )
    return variants


def static_masks(means: dict[str, torch.Tensor], layout: Layout, sparsity_pct: int) -> dict[str, torch.Tensor]:
    """Keep masks (L, U) per kind from mean scores; layer 0 is dense."""
    masks = layout.keep_masks()
    for kind, scores in means.items():
        masks[kind][FIRST_SPARSE_LAYER:] = POLICIES[POLICY](scores[FIRST_SPARSE_LAYER:], sparsity_pct)
    return masks


def costs(decoder: Any, token: torch.Tensor, ms_per_token: float) -> dict[str, float]:
    """Counted weight bytes of a step, and the predictor's share of bytes and time."""
    if not isinstance(decoder, Decoder):
        return {}
    found = {"gb_per_token": latency.bytes_per_step(decoder) / 1e9}
    found["gb_per_s"] = found["gb_per_token"] / ms_per_token * 1e3
    if isinstance(decoder.selection, KeepPredicted):
        found["predictor_mb"] = latency.predictor_bytes(decoder) / 1e6
        found["predictor_ms"] = latency.predictor_time(decoder, token, repeats=20)
    return found


def processor_name() -> str:
    """The processor's model name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


STAGE = Stage(Spec, Inputs, Outputs, run)
