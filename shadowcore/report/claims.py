"""The published claims beside our own numbers, and what became of each.

Every claim is one row of CLAIMS: a winner and a loser, described by keys that both the published values
(published.csv) and our tables have. Both sides are paired in the same way, so a verdict is a comparison of two
effects: the logarithm of how many times better the winner is, or a difference of correlations.

    reproduced       the published model and kind of unit, 95 % interval above zero, half the published effect or more
    direction only   interval above zero, but another model, other units, or a smaller effect
    not reproduced   the interval reaches zero, or lies below it
    not attempted    the study has no two rows to compare

A published value may name more than its model and sparsity: its criterion, or the ranks of the predictors. Only our
rows that agree in these are compared with it. So the claim of speed needs rank 2048 in both designs, timed in one run;
other ranks are another comparison, and no verdict is given for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from shadowcore.errors import ArtifactError
from shadowcore.report.tables import Tables
from shadowcore.schemas import MEASURED_TABLES

PUBLISHED = Path(__file__).with_name("published.csv")
PUBLISHED_COLUMNS = {  # that a table of published values must have
    "quantity", "model", "method", "criterion", "policy", "units", "sparsity_pct", "task", "metric", "value", "source",
}  # fmt: skip
Side = Mapping[str, str | tuple[str, ...]]
LAYERWISE = ("layerwise", "layerwise_own")
SHADOW = {"method": "shadow", "criterion": "plainact"}


class Claim(NamedTuple):
    """What is said to be better than what, by a quantity; `margin`, added to the effect: how much worse is no worse."""

    statement: str
    quantity: str
    winner: Side
    loser: Side
    margin: float = 0.0


CLAIMS = {
    "shadow_over_magnitude": Claim(
        "One predictor of plainact keeps perplexity lower than predictors of magnitude, one per layer.",
        "perplexity", SHADOW, {"method": LAYERWISE, "criterion": "l2_norm"},
    ),
    "global_over_per_layer": Claim(
        "Ranking the units of all layers together keeps perplexity lower than a fixed share of each layer.",
        "perplexity", SHADOW | {"policy": "global"}, SHADOW | {"policy": "per_layer"},
    ),
    "plainact_over_magnitude": Claim(
        "Without a predictor too, plainact keeps perplexity lower than magnitude.",
        "perplexity", {"method": "static", "criterion": "plainact"}, {"method": "static", "criterion": "l2_norm"},
    ),
    "context_over_static": Claim(
        "Units chosen for the input keep perplexity lower than the same units for every input.",
        "perplexity", SHADOW, {"method": "static", "criterion": "plainact"},
    ),
    "more_accurate": Claim(
        "One predictor of plainact is more accurate on the tasks than predictors of magnitude, one per layer.",
        "accuracy", SHADOW, {"method": LAYERWISE, "criterion": "l2_norm"},
    ),
    "one_ranks_as_well": Claim(
        "One predictor ranks units as well as one per layer, up to 0.02 of rank correlation.",
        "rank_correlation", {"method": "shadow"}, {"method": LAYERWISE}, margin=0.02,
    ),
    "magnitude_is_easier": Claim(
        "Magnitude is easier to predict than plainact.",
        "rank_correlation", {"method": "shadow", "criterion": "l2_norm"}, SHADOW,
    ),
    "faster_than_layerwise": Claim(
        "One predictor decodes faster than one per layer, both as wide as in the published benchmark (rank 2048).",
        "latency", {"method": "shadow"}, {"method": LAYERWISE},
    ),
}  # fmt: skip


# ---- our measurements: a row a condition, its value, and the standard error of the value's logarithm or of itself


def _against_dense(tables: Tables, name: str, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Values of a table with the paired standard error of their difference to dense: what documents share is out."""
    compared = tables["comparisons"]
    compared = compared[(compared["reference"] == "dense") & compared["metric"].isin(list(metrics))]
    compared = compared.assign(metric=compared["metric"].map(metrics))
    not_keys = ("stderr", "low", "high", "n", "seeds", "seed_deviation")
    keys = [key for key in compared if key in tables[name] and key not in not_keys]
    return compared[[*keys, "stderr"]].merge(tables[name][[*keys, "value"]], on=keys)


def _perplexities(tables: Tables) -> pd.DataFrame:
    """Word perplexity of WikiText-2, as published, or token perplexity of text windows where a model has no other."""
    rows = _against_dense(
        tables, "perplexity", {"log_word_perplexity": "word_perplexity", "log_perplexity": "token_perplexity"}
    )
    words = (rows["metric"] == "word_perplexity") & (rows["task"] == "wikitext")
    windows = rows["task"] == "perplexity"
    return _over_seeds(rows[words | (windows & ~rows["model"].isin(rows.loc[words, "model"]))])


def _accuracies(tables: Tables) -> pd.DataFrame:
    """Zero-shot accuracy, mean over tasks; a mean names them, so that it is never compared with one over others."""
    rows = _against_dense(tables, "accuracy", {"acc": "acc"})
    asked = rows["data"] + "/" + rows["task"]
    rows = rows[rows["fewshot"] == 0].assign(variance=rows["stderr"] ** 2, metric="mean acc", count=1, tasks=asked)
    keys = [*(key for key in PLACE if key in rows and key != "data"), "method", "predictor", "seed"]
    together = {"value": "sum", "variance": "sum", "count": "sum", "tasks": lambda names: " ".join(sorted(names))}
    sums = rows.groupby(list(dict.fromkeys(keys)), dropna=False, as_index=False).agg(together)
    means = sums.assign(value=sums["value"] / sums["count"], stderr=sums["variance"] ** 0.5 / sums["value"])
    return _over_seeds(means.drop(columns=["variance", "count"]))


def _rank_correlations(tables: Tables) -> pd.DataFrame:
    """Spearman of held-out tokens, mean over layers; layers share tokens, so their errors are not independent.

    Of the dense model's scores alone: retrained predictors are held against those of a sparse model.
    """
    rows = tables["quality"].rename(columns={"kind": "units"}).query("metric == 'spearman' and method != 'static'")
    identity = ["model", "calibration", "method", "criterion", "predictor"]
    rounds = tables["predictors"][[*identity, "rounds"]].drop_duplicates()
    rows = rows.merge(rounds, on=identity).query("rounds == 0").drop(columns="rounds")
    keys = [*(key for key in PLACE if key in rows), "method", "predictor", "seed"]
    return _over_seeds(rows.groupby(keys, dropna=False, as_index=False)[["value", "stderr"]].mean(), relative=False)


def _over_seeds(rows: pd.DataFrame, relative: bool = True) -> pd.DataFrame:
    """One row for all seeds that something was trained with: the mean, its error that of documents and of seeds."""
    keys = [key for key in rows if key not in ("seed", "value", "stderr")]
    found = rows.assign(spread=rows["value"], variance=rows["stderr"] ** 2).groupby(keys, dropna=False, as_index=False)
    found = found.agg({"value": "mean", "spread": "sem", "variance": "mean"})
    spread = found.pop("spread").fillna(0) / (found["value"] if relative else 1)
    return found.assign(stderr=np.hypot(found.pop("variance") ** 0.5, spread))


def _latencies(tables: Tables) -> pd.DataFrame:
    """Median time per token, batch 1; the spread of repeats stands for the error of their median."""
    rows = tables["latency"].rename(columns={"mode": "method", "ms_per_token": "value"}).query("batch == 1")
    spread = np.log(rows["ms_p90"] / rows["ms_p10"]) / 2.563  # 10th to 90th percentile of a normal, in deviations
    return rows.assign(stderr=spread, metric="ms_per_token")


class Quantity(NamedTuple):
    """How a quantity is read from our tables, and how two values of it make an effect: larger = the winner's better."""

    measured: Callable[[Tables], pd.DataFrame]
    effect: Callable[[pd.Series, pd.Series], pd.Series]


def _times_more(winner: pd.Series, loser: pd.Series) -> pd.Series:
    return np.log(winner / loser)


def _times_less(winner: pd.Series, loser: pd.Series) -> pd.Series:
    return np.log(loser / winner)


QUANTITIES = {
    "perplexity": Quantity(_perplexities, _times_less),
    "accuracy": Quantity(_accuracies, _times_more),
    "rank_correlation": Quantity(_rank_correlations, lambda winner, loser: winner - loser),
    "latency": Quantity(_latencies, _times_less),
}
# both sides of a claim agree in these, those apart that the claim itself names
PLACE = ["model", "data", "calibration", "criterion", "policy", "protocol", "units", "sparsity_pct", "metric"]
PLACE += ["device", "dtype", "prompt_tokens", "new_tokens", "predictor_rank", "predictor_bits"]
# and in these, which the table of claims does not have; a run measures its ceiling once, so equal ceilings are one run
SAME_RUN = ["predictor_rank_heads", "ceiling_gb_s"]
# a published value that names one of these is compared with ours of the same value alone
NAMED = ("sparsity_pct", "criterion", "predictor_rank", "predictor_rank_heads")
WORDS = ["method", "criterion", "predictor", "policy"]  # a side is called by
PAIR = ["side_winner", "side_loser", "value_winner", "value_loser", "effect"]


# ---- both sides of a claim, paired: the same for what was published and for what we measured


def effects(rows: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """Pairs of winner and loser that agree in everything else, with their effect and its standard error.

    Of several predictors that fit one side, the best in its place stands for it.
    """
    keys = [key for key in (*PLACE, *SAME_RUN, "tasks") if key in rows and key not in claim.winner]
    pairs = _best(rows, claim, claim.winner, keys).merge(
        _best(rows, claim, claim.loser, keys), on=keys, suffixes=("_winner", "_loser")
    )
    effect = QUANTITIES[claim.quantity].effect(pairs["value_winner"], pairs["value_loser"]) + claim.margin
    return pairs.assign(effect=effect, stderr=np.hypot(pairs["stderr_winner"], pairs["stderr_loser"]))


def _best(rows: pd.DataFrame, claim: Claim, side: Side, keys: list[str]) -> pd.DataFrame:
    for key, fitting in side.items():
        rows = rows[rows[key].isin([fitting] if isinstance(fitting, str) else fitting)]
    gain = QUANTITIES[claim.quantity].effect(rows["value"], pd.Series(1.0, rows.index))
    rows = rows.assign(gain=gain).sort_values("gain", ascending=False, kind="stable").drop_duplicates(keys).sort_index()
    words = [name for name in WORDS if name in rows and name not in keys]
    named = [" ".join(str(word) for word in row if pd.notna(word)) for row in rows[words].itertuples(index=False)]
    return rows.assign(side=named)[[*keys, "side", "value", "stderr"]]


def published(path: Path, claim: Claim) -> pd.DataFrame:
    """Published effects of a claim, in the order of the file; a published ratio has an effect but no two values.

    Raises ArtifactError if the file is not such a table.
    """
    rows = _read_published(path)
    rows = rows[rows["quantity"] == claim.quantity].assign(stderr=0.0)
    ratios = rows[rows["metric"] == "ratio"]
    if len(ratios):
        return ratios.assign(effect=np.log(ratios["value"]), value_winner=np.nan, value_loser=np.nan)
    return effects(rows, claim).merge(rows.drop_duplicates("model")[["model", "source"]], on="model")


def _read_published(path: Path) -> pd.DataFrame:
    fitting = f"a table such as shadowcore/report/{PUBLISHED.name} would fit"
    try:
        rows = pd.read_csv(path, dtype={"value": float, "sparsity_pct": float})
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; {fitting}") from None
    except ValueError as error:  # no CSV, not UTF-8, or words where numbers belong
        raise ArtifactError(f"{path}: {' '.join(str(error).split())}; {fitting}") from None
    if missing := sorted(PUBLISHED_COLUMNS - set(rows)):
        raise ArtifactError(f"{path}: no column {', '.join(missing)}; {fitting}")
    return rows


def judge(tables: Tables, path: Path = PUBLISHED) -> list[dict[str, Any]]:
    """Rows of CLAIMS for every model of the tables and every claim; `path`: the published values."""
    models = sorted(set().union(*(tables[name]["model"] for name in MEASURED_TABLES)))
    evaluated = set(tables["perplexity"]["model"]) | set(tables["accuracy"]["model"])  # others were only timed
    rows = []
    for name, claim in CLAIMS.items():
        theirs = published(path, claim)
        ours = effects(QUANTITIES[claim.quantity].measured(tables), claim)
        for model in models:
            judged = [_judged(one, theirs) for one in ours[ours["model"] == model].to_dict("records")]
            known = {"claim": name, "statement": claim.statement, "model": model}
            rows += [known | one for one in judged if one]
            if not any(judged) and model in evaluated:
                rows.append(known | _not_attempted(model, theirs))
    return rows


def _judged(ours: dict[str, Any], theirs: pd.DataFrame) -> dict[str, Any] | None:
    """A pair of ours beside the published pair nearest to it, None where no published pair has its NAMED values."""
    beside = theirs
    for key in NAMED:
        if key in ours and key in theirs and theirs[key].notna().any() and pd.notna(ours[key]):
            beside = beside[beside[key] == ours[key]]
    if beside.empty:
        return None
    alike = {key: (beside[key] == ours[key]).to_numpy() for key in ("model", "units")}
    nearest = beside.iloc[int(np.argmax(2 * alike["model"] + alike["units"]))]
    same = nearest["model"] == ours["model"] and nearest["units"] == ours["units"]
    low, high = (ours["effect"] + sign * 1.96 * ours["stderr"] for sign in (-1, 1))
    if not low > 0:
        verdict = "not reproduced"
    elif same and ours["effect"] >= nearest["effect"] / 2:
        verdict = "reproduced"
    else:
        verdict = "direction only"
    place = {key: None if pd.isna(value) else value for key, value in ours.items() if key in (*PLACE, *PAIR)}
    return place | {"low": low, "high": high} | _beside(nearest) | {"verdict": verdict}


def _not_attempted(model: str, theirs: pd.DataFrame) -> dict[str, Any]:
    """A claim that a model has no rows for, with what was published nearest to it and to 50 %."""
    distance = 1000 * (theirs["model"] != model) + (theirs["sparsity_pct"].fillna(50) - 50).abs()
    return _beside(theirs.loc[distance.idxmin()]) | {"verdict": "not attempted"}


def _beside(theirs: pd.Series) -> dict[str, Any]:
    names = ["model", "units", "sparsity_pct", "value_winner", "value_loser", "effect"]
    found = {f"published_{name}": theirs[name] for name in names} | {"source": theirs["source"]}
    return {name: None if pd.isna(value) else value for name, value in found.items()}
