"""Tables of docs/claims.md, from results/reference: what was published, what we measured, and the verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from accuracy_tables import table
from markdown_tables import markdown

from shadowcore.report.claims import CLAIMS
from shadowcore.report.select import comparable, distinct

FOLDERS = ("smollm2", "heads-cpu", "relu", "relu-published", "published-speed-h200")
SECOND = "relu-published"  # its ReLU model has the recipe of that of `relu` and was made again
# names on the page of models that other folders have, too
NAMES = {SECOND: {"smollm2-relu": "second smollm2-relu"}, "heads-cpu": {"smollm2-135m": "smollm2-135m on a CPU"}}
PLACE = ["model", "units", "sparsity_pct", "policy", "protocol", "criterion", "predictor", "side_winner", "side_loser"]
TEXTS = ("wikitext", "wikipedia", "c4")
# in the order of the page's list
VERDICTS = ("reproduced", "direction only", "contradicted", "transfers", "does not transfer", "undecided")
VERDICTS += ("not comparable", "not attempted")


def _named(name: str, folder: str) -> pd.DataFrame:
    """A table of a folder, with the model's name on the page."""
    rows = table(name, folder)
    return rows.assign(model=rows["model"].replace(NAMES.get(folder, {})))


def judged(name: str) -> pd.DataFrame:
    """Rows of one claim, a row a place and text, of all folders where it was measured."""
    rows = pd.concat([_named("claims", folder).dropna(axis=1, how="all") for folder in FOLDERS], ignore_index=True)
    return distinct(rows[(rows["claim"] == name) & (rows["verdict"] != "not attempted")])


def _number(name: str, effect: float) -> str:
    return f"{effect if CLAIMS[name].quantity == 'rank_correlation' else np.exp(effect):.3f}"


def _effect(name: str, rows: pd.DataFrame) -> str:
    ends = rows[["effect", "low", "high"]].itertuples(index=False)
    return "; ".join("{} [{}, {}]".format(*(_number(name, value) for value in values)) for values in ends)


def claim(name: str) -> list[str]:
    """A line a place: our effect on every text, the nearest published effect, the verdict; comparable pairs, if any.

    Where the published pair changes more than the claim names, its effect is left out.
    """
    rows, alone = comparable(judged(name)), CLAIMS[name].published is None
    texts = [text for text in TEXTS if (rows["data"] == text).any()]
    lines = []
    for _, place in rows.groupby(PLACE, dropna=False, sort=False):
        first = place.iloc[0]
        pct = "" if pd.isna(first["sparsity_pct"]) else f"{first['sparsity_pct']:.0f} %"
        policy, protocol = first["policy"], first["protocol"] if first["protocol"] != "token" else None
        words = [first["model"], first["units"], pct, policy, protocol, first["criterion"], first["predictor"]]
        words = [word for word in words if pd.notna(word) and word]
        cells = [_effect(name, place[place["data"] == text]) for text in texts] or [_effect(name, place)]
        theirs = [_number(name, first["published_effect"])] if alone else []
        lines.append([", ".join(words), *cells, *theirs, first["verdict"]])
    return markdown(["where", *(texts or ["ours"]), *(["published"] if alone else []), "verdict"], lines)


def verdicts() -> list[str]:
    """How many places of every claim got each verdict."""
    places = pd.concat([judged(name).drop_duplicates(PLACE) for name in CLAIMS])
    counts = pd.crosstab(places["claim"], places["verdict"])
    assert set(counts) <= set(VERDICTS), f"not in the page's list of verdicts: {sorted(set(counts) - set(VERDICTS))}"
    names = [name for name in VERDICTS if name in counts]
    lines = [(one.statement, *counts.loc[name, names].replace(0, "")) for name, one in CLAIMS.items()]
    return markdown(["claim", *names], lines)


def example_correlations() -> list[str]:
    """The published kind of rank correlation, and held-out losses, of predictors of windows and of constants."""
    keys = ["model", "criterion", "kind", "method", "predictor"]
    quality, trained = (
        pd.concat([_named(name, folder) for folder in ("smollm2", SECOND)]) for name in ("quality", "predictors")
    )
    trained = trained.set_index(keys).sort_index()
    names = {"static": "the mean of the training windows, constant", "shadow": "one predictor (shadow)",
             "layerwise_own": "one predictor per layer (layerwise_own)"}  # fmt: skip
    quality = quality[quality["metric"] == "spearman_of_examples"].sort_values([*keys[:3], "value"])
    rows = []
    for row in quality.to_dict("records"):
        key = tuple(row[name] for name in keys)
        ratio = (trained.loc[key, "loss"] / trained.loc[key, "loss_constant"]).item() if key in trained.index else 1
        value = f"{row['value']:.3f} ± {row['stderr']:.3f}"
        rows.append([row["model"], row["criterion"], row["kind"], names[row["method"]], value, f"{ratio:.3f}"])
    return markdown(["model", "criterion", "units", "scores by", "rank correlation", "loss / constant's"], rows)
