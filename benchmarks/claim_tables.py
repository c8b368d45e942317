"""Tables of docs/claims.md, from results/reference: what was published, what we measured, and the verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from accuracy_tables import table
from markdown_tables import markdown

from shadowcore.report.claims import CLAIMS
from shadowcore.report.select import comparable

WRONG = "published_lookahead"  # our training of these predictors began at the constant one; to be measured again
FOLDERS = ("smollm2", "relu", "published-speed-h200")
PLACE = ["model", "units", "sparsity_pct", "policy", "protocol", "criterion", "predictor", "side_winner", "side_loser"]
TEXTS = ("wikitext", "wikipedia", "c4")


def judged(name: str) -> pd.DataFrame:
    """Rows of one claim, a row a place and text, of all folders where it was measured."""
    rows = pd.concat([table("claims", folder).dropna(axis=1, how="all") for folder in FOLDERS], ignore_index=True)
    rows = rows[(rows["claim"] == name) & (rows["verdict"] != "not attempted") & (rows["predictor"] != WRONG)]
    fixed = rows["side_winner"].str.startswith("static") & rows["side_loser"].str.startswith("static")
    # masks that are the same for every input are the same under every protocol
    return rows.assign(protocol=rows["protocol"].mask(fixed)).drop_duplicates([*PLACE, "data"])


def _number(name: str, effect: float) -> str:
    return f"{effect if CLAIMS[name].quantity == 'rank_correlation' else np.exp(effect):.3f}"


def _effect(name: str, rows: pd.DataFrame) -> str:
    ends = rows[["effect", "low", "high"]].itertuples(index=False)
    return "; ".join("{} [{}, {}]".format(*(_number(name, value) for value in values)) for values in ends)


def claim(name: str) -> list[str]:
    """A line a place: our effect on every text, the nearest published effect, the verdict; comparable pairs, if any."""
    rows = comparable(judged(name))
    texts = [text for text in TEXTS if (rows["data"] == text).any()]
    lines = []
    for _, place in rows.groupby(PLACE, dropna=False, sort=False):
        first = place.iloc[0]
        pct = "" if pd.isna(first["sparsity_pct"]) else f"{first['sparsity_pct']:.0f} %"
        words = [first["model"], first["units"], pct, first["policy"], first["criterion"], first["predictor"]]
        words = [word for word in words if pd.notna(word) and word]
        cells = [_effect(name, place[place["data"] == text]) for text in texts] or [_effect(name, place)]
        lines.append([", ".join(words), *cells, _number(name, first["published_effect"]), first["verdict"]])
    return markdown(["where", *(texts or ["ours"]), "published", "verdict"], lines)


def verdicts() -> list[str]:
    """How many places of every claim got each verdict."""
    lines = []
    for name, one in CLAIMS.items():
        places = judged(name).drop_duplicates(PLACE)["verdict"].value_counts(sort=False)
        counts = ", ".join(f"{verdict} ({count})" for verdict, count in places.items()) or "not attempted"
        lines.append((one.statement, counts))
    return markdown(["claim", "verdicts (number of conditions)"], lines)
