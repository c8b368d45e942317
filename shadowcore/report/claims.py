"""Verdicts on the published claims: CLAIMS has a row a claim, and `judge` compares it with our tables.

A pair of ours agrees in everything that the claim does not name. Each evaluated text votes by the 95 % interval of its
effect. docs/claims.md has the rule that makes a verdict of votes, and a paragraph on each claim.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shadowcore.errors import ArtifactError
from shadowcore.report import PUBLISHED
from shadowcore.report.outcomes import Documents
from shadowcore.report.pairs import OF_SIDES, PLACE, RANKS, Claim, effects, pairs_of
from shadowcore.report.tables import Tables
from shadowcore.schemas import CLAIMS as TABLE
from shadowcore.schemas import MEASURED_TABLES

PUBLISHED_COLUMNS = {  # that a table of published values must have
    "quantity", "model", "method", "criterion", "policy", "protocol", "units", "sparsity_pct", "task", "metric",
    "value", "source",
}  # fmt: skip
HALF = 0.5  # of the published effect counts as reproduced
SHADOW = {"method": "shadow", "criterion": "plainact"}
LAYERWISE = {"method": ("layerwise_own", "layerwise")}
DEJAVU = (SHADOW, {"method": "layerwise_own", "criterion": "l2_norm"})
MAGNITUDE = {"criterion": "l2_norm"}
SETTING = ("model", "units", "policy", "protocol")  # that a reproduction shares with what was published
NAMED = ("sparsity_pct", "criterion", *RANKS)
OWN = "layerwise_own"
CLAIMS = {
    "shadow_over_dejavu": Claim(
        "One predictor of plainact keeps perplexity lower than predictors of magnitude, one per layer.",
        "perplexity", SHADOW, LAYERWISE | MAGNITUDE, opponent=OWN,
    ),
    "one_over_many": Claim(
        "The design alone: one predictor keeps perplexity lower than one per layer of the same criterion.",
        "perplexity", {"method": "shadow"}, LAYERWISE, opponent=OWN, published=DEJAVU,
    ),
    "predicted_plainact": Claim(
        "The criterion alone: one predictor of plainact keeps perplexity lower than one of magnitude.",
        "perplexity", SHADOW, {"method": "shadow"} | MAGNITUDE, published=DEJAVU,
    ),
    "global_over_per_layer": Claim(
        "Ranking the units of all layers together keeps perplexity lower than a fixed share of each layer.",
        "perplexity", SHADOW | {"policy": "global"}, SHADOW | {"policy": "per_layer"},
    ),
    "plainact_over_magnitude": Claim(
        "Without a predictor too, plainact keeps perplexity lower than magnitude.",
        "perplexity", {"method": "static", "criterion": "plainact"}, {"method": "static"} | MAGNITUDE,
    ),
    "context_over_static": Claim(
        "Units chosen for the input keep perplexity lower than the same units for every input.",
        "perplexity", SHADOW, {"method": "static", "criterion": "plainact"},
    ),
    "more_accurate": Claim(
        "One predictor of plainact is more accurate on the tasks than predictors of magnitude, one per layer.",
        "accuracy", SHADOW, LAYERWISE | MAGNITUDE, opponent=OWN,
    ),
    "one_ranks_as_well": Claim(
        "One predictor ranks units as well as one per layer, up to 0.02 of rank correlation.",
        "rank_correlation", {"method": "shadow"}, LAYERWISE, margin=0.02, opponent=OWN,
    ),
    "magnitude_is_easier": Claim(
        "Magnitude is easier to predict than plainact.",
        "rank_correlation", {"method": "shadow"} | MAGNITUDE, SHADOW,
    ),
    "faster_than_layerwise": Claim(
        "One predictor decodes faster than one per layer, both as wide as in the published benchmark (rank 2048).",
        "latency", {"method": "shadow"}, {"method": "layerwise"},
    ),
}  # fmt: skip


def published(path: Path, claim: Claim) -> pd.DataFrame:
    """Published effects of a claim; a ratio has an effect but no values. ArtifactError for a file without columns."""
    rows = _read_published(path)
    rows = rows[rows["quantity"] == claim.quantity]
    ratios = rows[rows["metric"] == "ratio"]
    if len(ratios):
        return ratios.assign(effect=np.log(ratios["value"]), value_winner=np.nan, value_loser=np.nan)
    winner, loser = claim.published or (claim.winner, claim.loser)
    sources = rows.drop_duplicates("model")[["model", "source"]]
    return pairs_of(rows, claim, winner, loser).merge(sources, on="model")


def _read_published(path: Path) -> pd.DataFrame:
    needed = f"give a table with the columns of shadowcore/report/{PUBLISHED.name}"
    try:
        rows = pd.read_csv(path, dtype={"value": float, "sparsity_pct": float})
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; {needed}") from None
    except ValueError as error:  # no CSV, not UTF-8, or words where numbers belong
        raise ArtifactError(f"{path}: {' '.join(str(error).split())}; {needed}") from None
    if missing := sorted(PUBLISHED_COLUMNS - set(rows)):
        raise ArtifactError(f"{path}: no column {', '.join(missing)}; {needed}")
    return rows


def judge(tables: Tables, documents: Sequence[Documents], path: Path = PUBLISHED) -> list[dict[str, Any]]:
    """Rows of CLAIMS for every model and claim; documents: the outcomes behind the tables; path: published values."""
    models = sorted(set().union(*(tables[name]["model"] for name in MEASURED_TABLES)))
    evaluated = set(tables["perplexity"]["model"]) | set(tables["accuracy"]["model"])  # others were only timed
    of_tokens = set(tables["quality"].query("metric == 'spearman'")["predictor"].dropna())
    rows = []
    for name, claim in CLAIMS.items():
        theirs = published(path, claim)
        ours = effects(tables, documents, claim)
        for model in models:
            pairs = ours[ours["model"] == model]
            voters = [key for key in (*PLACE, *OF_SIDES, "side_winner", "side_loser") if key in pairs]
            voters = [key for key in voters if key not in ("data", "task", "fewshot", "metric")]
            judged = []
            for _, texts in pairs.groupby(voters, dropna=False, sort=False) if len(pairs) else ():
                judged += _judged(texts, theirs, claim, of_tokens)
            known = {"claim": name, "statement": claim.statement, "model": model}
            if not judged and model in evaluated:
                # with what was published nearest to the model and to 50 %
                distance = 1000 * (theirs["model"] != model) + (theirs["sparsity_pct"].fillna(50) - 50).abs()
                judged = [_nearest(theirs.loc[distance.idxmin()].to_dict()) | {"verdict": "not attempted"}]
            rows += [known | row for row in judged]
    return rows


def _judged(texts: pd.DataFrame, theirs: pd.DataFrame, claim: Claim, of_tokens: set[str]) -> list[dict[str, Any]]:
    """A pair of ours, a row a text, and the nearest published pair; none where none published has its NAMED values.

    of_tokens: names of the predictors that learned from single tokens.
    """
    ours = texts.iloc[0]
    for key in NAMED:
        if key in ours and key in theirs and pd.notna(ours[key]):
            theirs = theirs[theirs[key].isna() | (theirs[key] == ours[key])]
    if theirs.empty:
        return []
    setting = [key for key in SETTING if key in theirs]
    nearest = max(theirs.to_dict("records"), key=lambda one: [one[key] == ours.get(key) for key in setting])
    others = [key for key in setting if pd.notna(nearest[key]) and nearest[key] != ours.get(key)]
    if claim.published:
        others.append("design and criterion changed together")
    votes = ["as claimed" if low > 0 else "opposite" if high < 0 else "undecided"
             for low, high in zip(texts["low"], texts["high"], strict=True)]  # fmt: skip
    of_token = ours.get("protocol") == "lookahead" and ours["predictor"] in of_tokens
    verdict, reason = _verdict(texts, votes, nearest, others, claim, of_token)
    rows = []
    for vote, row in zip(votes, texts.to_dict("records"), strict=True):
        row = {key: None if pd.isna(value) else value for key, value in row.items() if key in TABLE.columns}
        rows.append(row | _nearest(nearest) | {"vote": vote, "verdict": verdict, "reason": reason})
    return rows


def _verdict(
    texts: pd.DataFrame, votes: list[str], nearest: Mapping[str, Any], others: list[str], claim: Claim, of_token: bool
) -> tuple[str, str | None]:
    """The verdict of all texts, and its reason.

    others: what differs from the published setting; of_token: one mask of a whole input is by a predictor of tokens.
    """
    if of_token:
        learned = "its predictor learned from single tokens; the published ones learn one mask of a whole input"
        return "not comparable", learned
    if claim.opponent and texts["method_loser"].iloc[0] != claim.opponent:
        return "not comparable", f"the published opponent is {claim.opponent}, which reads its own layer's attention"
    if claim.quantity == "rank_correlation" and texts["metric"].iloc[0] != nearest["metric"]:
        return "not comparable", "published: over all layers and units, by example; ours: within a layer, by token"
    setting = f"another setting than published: {', '.join(others)}" if others else None
    if len(set(votes)) > 1:
        return "undecided", "texts disagree: " + ", ".join(map(" ".join, zip(texts["data"], votes, strict=True)))
    if votes[0] == "undecided":
        return "undecided", "the interval holds effects of both signs"
    if others:
        return "transfers" if votes[0] == "as claimed" else "does not transfer", setting
    if votes[0] == "opposite":
        return "contradicted", None
    enough = (texts["effect"] >= HALF * nearest["effect"]).all()
    return ("reproduced", None) if enough else ("direction only", "less than half of the published effect")


def _nearest(theirs: Mapping[str, Any]) -> dict[str, Any]:
    names = ["model", "units", "sparsity_pct", "value_winner", "value_loser", "effect"]
    found = {f"published_{name}": theirs[name] for name in names} | {"source": theirs["source"]}
    return {name: None if pd.isna(value) else value for name, value in found.items()}
