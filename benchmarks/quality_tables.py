"""Tables and numbers of README.md and docs/findings.md: quality at equal bytes, of SmolLM2 and of the ReLU model."""

from __future__ import annotations

import math
from functools import cache

import pandas as pd
from accuracy_tables import CALIBRATION, REFERENCE, table
from markdown_tables import markdown

from shadowcore import artifacts
from shadowcore.stages.base import CARD_SCHEMA

# by folder
MODELS = {"smollm2": "smollm2-135m", **dict.fromkeys(("relu", "relu-cpu", "relu-published"), "smollm2-relu")}
CRITERIA = ("plainact", "l2_norm", "-")  # a row is of the first of them that it was measured with
KEYS = ["method", "predictor", "criterion"]
TUNED = ("published", "each", "dejavu", "constants", "wide_1_tuned", "six_1_tuned", "each_1_tuned", "-")
# rows of the README's table: words, method, and the predictor of each model
SUMMARY = {
    "the same neurons for every token (`static`)": ("static", "-", "-"),
    "the same neurons for every token, tuned (`static_tuned`)": ("static_tuned", "constants", "constants"),
    "one predictor, published recipe (`shadow`)": ("shadow", "published", "published"),
    "one predictor per layer, published recipe (`layerwise`)": ("layerwise", "published", "published"),
    "one predictor, trained on the sparse model and tuned (`segments`)": ("segments", "wide_1_tuned", "wide_1_tuned"),
    "six predictors, trained on the sparse model and tuned (`segments`)": ("segments", "six_1_tuned", None),
    "one predictor per layer, trained on the sparse model and tuned (`layerwise`)": ("layerwise", "each_1_tuned", None),
    "DejaVu's own classifiers, one per layer (`dejavu`)": ("dejavu", None, "dejavu"),
    "low-bit copies of the FFN (`proxy4_tuned`)": ("proxy4_tuned", "constants", "constants"),
    "true scores of plainact, which no decoder knows (`oracle`)": ("oracle", "-", "-"),
}


def relufied(what: str, folder: str = "relu") -> str:
    """How a ReLU model does on held-out windows, from its card."""
    card = artifacts.read_record(REFERENCE / folder / "card.json", CARD_SCHEMA)
    found = card["training"]["heldout"]
    layers = [100 * share for share in found["zeros_by_layer"]]
    return {
        "windows": f"{found['windows']}",
        "ratio": f"{math.exp(found['student_loss'] - found['teacher_loss']):.2f}",
        "zeros": f"{100 * found['zeros']:.0f} %",
        "layers": f"{min(layers):.0f} to {max(layers):.0f} %",
    }[what]


@cache
def conditions(folder: str, data: str, units: str = "neurons") -> pd.DataFrame:
    """Perplexities of a model by KEYS and sparsity, first seed, and `ratio`, that over dense; no value: "-"."""
    found = table("perplexity", folder)
    found = found[(found["task"] == "perplexity") & (found["data"] == data) & (found["model"] == MODELS[folder])]
    found = found[found["seed"].isna() | (found["seed"] == 0)]
    dense = found.loc[found["method"] == "dense", "value"].item()
    for key, kept in {"calibration": CALIBRATION, "policy": "per_layer", "protocol": "token", "units": units}.items():
        found = found[found[key].isna() | (found[key] == kept)]
    found = found.assign(**{key: found[key].astype(object).where(found[key].notna(), "-") for key in KEYS})
    return found.assign(ratio=found["value"] / dense).set_index([*KEYS, "sparsity_pct"]).sort_index()


def _row(folder: str, data: str, method: str, pct: int, predictor: str, units: str = "neurons") -> dict:
    """One condition."""
    found = conditions(folder, data, units).xs(pct, level="sparsity_pct").loc[(method, predictor)]
    return found.loc[_criterion(found)].to_dict()


def _criterion(found: pd.DataFrame) -> str:
    return next(name for name in CRITERIA if name in found.index)


def of_dense(folder: str, data: str, method: str, pct: str, what: str, predictor: str = "-", units="neurons") -> str:
    """Of one condition: the share of weights read, its perplexity (value), or this over the dense model's (ratio)."""
    row = _row(folder, data, method, int(pct), predictor, units)
    words = {
        "share": f"{100 * row['read_share']:.0f} %",
        "value": f"{row['value']:.1f}",
        "ratio": f"{row['ratio']:.2f}",
    }
    return words[what]


def by_bytes(folder: str, data: str) -> list[str]:
    """Perplexity over dense, and the share of weights read; a row a method, by falling ratio at 50 %."""
    found = conditions(folder, data).drop(["random", "dense"], errors="ignore").reset_index()
    found = found[found["predictor"].isin(TUNED)]
    sparsities, rows = sorted(found["sparsity_pct"].unique()), []
    for key, part in found.groupby(KEYS[:2]):
        part = part.set_index("criterion")
        part = part.loc[[_criterion(part)]].set_index("sparsity_pct")
        cells = {pct: f"{row['ratio']:.2f} ({100 * row['read_share']:.0f} %)" for pct, row in part.iterrows()}
        names = ["" if name == "-" else name for name in key]
        place = part["ratio"].get(50, part["ratio"].min())
        rows.append((place, [*names, *(cells.get(pct, "") for pct in sparsities)]))
    heads = [f"{pct} % removed" if pct else "no share" for pct in sparsities]
    return markdown(["method", "predictor", *heads], [row for _, row in sorted(rows, reverse=True)])


def best_at(folder: str) -> list[str]:
    """The best method at some shares of the weights, on both texts, with its interval and the method after it."""
    found = table("best_at_bytes", folder)
    found = found[(found["model"] == MODELS[folder]) & (found["metric"] == "log_perplexity")]
    found = found[found["task"] == "perplexity"].sort_values(["data", "budget_pct"], ascending=False)
    rows = []
    for row in found.to_dict("records"):
        removed = f"{row['sparsity_pct']} %" if row["sparsity_pct"] else "its zeros"
        low, high = (math.exp(row[end]) for end in ("low", "high"))
        next_ = f"{row['next_method']}, {math.exp(-row['next_difference']):.3f} times this"
        ratio = f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
        rows.append([row["data"], f"{row['budget_pct']} %", row["method"], removed, ratio, next_])
    names = ["text", "weights read, at most", "best method", "removed", "perplexity over dense", "next method"]
    return markdown(names, rows)


def summary() -> list[str]:
    """The README's table: at 50 % on Wikipedia, weights read and perplexity over dense of both models."""
    rows = []
    for words, (method, *predictors) in SUMMARY.items():
        cells, share = [], ""
        for folder, predictor in zip(("smollm2", "relu"), predictors, strict=True):
            row = predictor and _row(folder, "wikipedia", method, 50, predictor)
            cells.append(f"{row['ratio']:.2f}" if row else "")
            share = f"{100 * row['read_share']:.0f} %" if row else share
        rows.append([words, share, *cells])
    return markdown(["which neurons are kept", "weights read", "SmolLM2-135M", "its ReLU version"], rows)
