"""Tables and numbers of docs/findings.md about the ReLU model, from results/reference/relu and relu-cpu."""

from __future__ import annotations

import math

import pandas as pd
from accuracy_tables import REFERENCE, interval
from byte_tables import perplexities
from markdown_tables import markdown

from shadowcore import artifacts
from shadowcore.stages.base import CARD_SCHEMA

MODEL = "smollm2-relu"
KEYS = ["method", "criterion"]


def relufied(what: str) -> str:
    """How the ReLU model does on held-out windows, from its card."""
    card = artifacts.read_record(REFERENCE / "relu" / "card.json", CARD_SCHEMA)
    found = card["training"]["heldout"]
    layers = [100 * share for share in found["zeros_by_layer"]]
    return {
        "windows": f"{found['windows']}",
        "ratio": f"{math.exp(found['student_loss'] - found['teacher_loss']):.2f}",
        "zeros": f"{100 * found['zeros']:.0f} %",
        "layers": f"{min(layers):.0f} to {max(layers):.0f} %",
    }[what]


def neurons(model: str = MODEL) -> pd.DataFrame:
    """Conditions of a model, indexed by method, criterion and sparsity, with `ratio`: perplexity over dense."""
    found = perplexities("relu-cpu").query("model == @model")
    dense = found.loc[found["method"] == "dense", "value"].item()
    return found.assign(ratio=found["value"] / dense).set_index([*KEYS, "sparsity_pct"]).sort_index()


def relu_neurons() -> list[str]:
    """Perplexity, and the share of weights read, by method and sparsity; methods by falling perplexity at 50 %."""
    found = neurons().drop("random")
    sparsities = sorted(found.index.get_level_values("sparsity_pct").unique())
    rows = []
    for key, part in found.groupby(KEYS):
        part = part.droplevel(KEYS)
        cells = {pct: f"{row['value']:,.1f} ({100 * row['read_share']:.0f} %)" for pct, row in part.iterrows()}
        names = ["" if name == "-" else name for name in key]
        rows.append((part["value"].get(50, part["value"].max()), [*names, *(cells.get(pct, "") for pct in sparsities)]))
    names = ["method", "criterion", *(f"{pct} % removed" if pct else "its own zeros" for pct in sparsities)]
    return markdown(names, [row for _, row in sorted(rows, reverse=True)])


def relu_neuron(method: str, pct: str, what: str, criterion: str = "l2_norm", model: str = MODEL) -> str:
    """Of one condition: its perplexity with interval, or over dense (ratio), or the share of weights it reads."""
    found = neurons(model)
    row = found.loc[(method, criterion if (method, criterion) in found.index.droplevel(2) else "-", int(pct))]
    return {"value": interval(row), "ratio": f"{row['ratio']:.2f}", "share": f"{100 * row['read_share']:.0f} %"}[what]
