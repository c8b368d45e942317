"""Tables and numbers of docs/findings.md about the ReLU model, from results/reference/relu and relu-cpu."""

from __future__ import annotations

import math

import pandas as pd
from accuracy_tables import REFERENCE
from byte_tables import perplexities
from markdown_tables import markdown

from shadowcore import artifacts
from shadowcore.stages.base import CARD_SCHEMA

MODEL = "smollm2-relu"
KEYS = ["method", "predictor", "criterion"]


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
    """Conditions of a model, indexed by KEYS and sparsity, with `ratio`: perplexity over dense."""
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
    names = [*KEYS, *(f"{pct} % removed" if pct else "its own zeros" for pct in sparsities)]
    return markdown(names, [row for _, row in sorted(rows, reverse=True)])


def relu_neuron(method: str, pct: str, what: str, predictor: str = "wide", model: str = MODEL) -> str:
    """Of one condition of l2_norm: its perplexity over dense (ratio), or the share of weights that it reads."""
    found = neurons(model).xs(int(pct), level="sparsity_pct").loc[method].reset_index()
    found = found[found["predictor"].isin([predictor, "-"]) & found["criterion"].isin(["l2_norm", "-"])]
    (row,) = found.to_dict("records")
    return {"ratio": f"{row['ratio']:.2f}", "share": f"{100 * row['read_share']:.0f} %"}[what]
