"""Tables of times as Markdown: per token, by variant and setting, one predictor against one per layer, and thresholds.

python benchmarks/thresholds.py results/reference/gpu-h100/tables/latency.parquet
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from itertools import starmap
from pathlib import Path

import pandas as pd
from markdown_tables import markdown

from shadowcore.models.published import PUBLISHED as SIZES
from shadowcore.report import PUBLISHED
from shadowcore.report.figures.scaling import DENSE, WIDTHS, alike, layerwise_over_shadow, published_ratios, timed

OTHER = [mode for mode in DENSE if mode != "dense"]
BEST, MOST = (operator.ge, ">="), (operator.le, "<=")
# goals by model and sparsity (0: dense): shares of the memory's limit, and speed-ups over the fastest dense
SHARES = {
    "opt-1.3b": {0: 0.86, 50: 0.8, 90: 0.75},
    "opt-6.7b": {0: 0.85, 50: 0.92, 90: 0.88},
    "llama-2-7b": {50: 0.93, 90: 0.88},
    "opt-30b": {0: 0.92},
}
GAINS = {
    "opt-1.3b": {50: 1.45},
    "opt-6.7b": {50: 1.55, 70: 2.05, 90: 2.95},
    "llama-2-7b": {50: 1.45},
    "opt-30b": {50: 1.55, 70: 2.1, 90: 3.0},
}
WORDS = {
    "given": "given units, nothing predicted", "static": "kept units cut out", "dense": "dense, ours",
    "cublas": "dense, cuBLAS", "compiled": "dense, torch.compile", "relu": "ReLU's zeros, one neuron in ten active",
}  # fmt: skip
Goal = tuple[str, tuple[Callable, str], list[float], list[float]]


def sparse(rows: pd.DataFrame, mode: str = "shadow") -> pd.DataFrame:
    """Dense (at 0 %) and a mode with predictors of one size, by model and sparsity, with more columns.

    `gain`: over the fastest dense decoder. `allowed`: the gain that the bytes of weights allow. `share`: time of the
    step's bytes at the memory's limit, of its time. Microseconds: `extra_us` a layer that the step takes longer,
    `selection_us` of all searches for the largest scores, `search_us` of those of a layer, `scores_us` of its scores.
    """
    found = pd.concat([alike(rows, name) for name in ("dense", mode)])
    dense = found["model"].map(rows[rows["mode"] == "dense"].set_index("model")["gb_per_token"])
    fastest = found["model"].map(rows[rows["mode"].isin(DENSE)].groupby("model")["ms_per_token"].min())
    layers = found["model"].map(lambda model: SIZES[model].dimensions.layers)
    times, roofs = found["ms_per_token"], found["roof_ms"]
    gains = {"gain": fastest / times, "allowed": dense / found["gb_per_token"], "share": roofs / times}
    search = found["selection_ms"] * 1e3
    parts = {"selection_us": search, "search_us": search / (layers - 1)}
    parts["scores_us"] = (found["predictor_ms"] * 1e3 - search) / (layers - 1)
    found = found.assign(**gains, **parts, extra_us=(times - roofs) / layers * 1e3)
    return found.set_index(["model", "sparsity_pct"])


def over_others(rows: pd.DataFrame) -> float:
    """Time of our dense decoder over the fastest other dense decoder's, for the worst model and batch."""
    modes = rows.pivot_table(index=["model", "batch"], columns="mode", values="ms_per_token").reindex(columns=DENSE)
    return (modes["dense"] / modes[OTHER].min(axis=1)).max()


def wanted(rows: pd.DataFrame, others: pd.DataFrame) -> list[Goal]:
    """Each threshold: what, in which direction, the numbers wanted and found (NaN: not measured); others: settings."""
    shadow, opts = sparse(rows), ["opt-6.7b", "opt-13b", "opt-30b"]
    modes = rows.pivot_table(index="model", columns="mode", values="ms_per_token", aggfunc="first")
    half = shadow.reindex([(model, 50) for model in opts])
    dense = rows[(rows["mode"] == "dense") | rows["predictor_mb"].notna()]
    most = dense["peak_gb"] - dense["predictor_mb"].fillna(0) / 1e3 - (dense["model_gb"] + dense["cache_gb"])
    spare = (most / (dense["peak_gb"] - most)).max()
    names = {"share": "share of the memory's limit", "gain": "speed-up over the fastest dense"}
    at_sizes = [
        (f"{model}, {' / '.join(map(str, goals))} % removed: {names[column]}", BEST, [*goals.values()],
         [shadow[column].get((model, pct), math.nan) for pct in goals])
        for column, table in (("share", SHARES), ("gain", GAINS))
        for model, goals in table.items()
    ]  # fmt: skip
    choosing = (half["predictor_ms"] / half["ms_per_token"]).tolist()
    shuffled = (modes["gather_ordered"] / modes["gather_shuffled"]).get("opt-30b", math.nan)
    return [
        *at_sizes,
        ("our dense over the fastest other, worst size", MOST, [1.05], [over_others(rows)]),
        ("the same in batches, worst one", MOST, [1.05], [over_others(others[others["batch"] > 1])]),
        (f"predictor and selection of the token, 50 %: {' / '.join(opts)}", MOST, [0.05] * 3, choosing),
        ("one selection for all layers, opt-30b, us", MOST, [30.0], [half["selection_ms"].iloc[-1] * 1e3]),
        ("gather in random order against in order, opt-30b", BEST, [0.95], [shuffled]),
        ("memory beyond weights, cache, predictor, worst mode", MOST, [0.05], [spare]),
    ]


def by_size(rows: pd.DataFrame) -> list[str]:
    """The models, the one whose dense step reads least first."""
    return rows.groupby("model")["gb_per_token"].max().sort_values().index.tolist()


def times(rows: pd.DataFrame) -> list[str]:
    """Milliseconds a token of every model: dense, and predictors of equal sizes with their gains."""
    fastest = rows[rows["mode"].isin(OTHER)].groupby("model")["ms_per_token"].min()
    shadow, layerwise = sparse(rows), sparse(rows, "layerwise")
    lines = []
    for model in by_size(rows):
        dense, *others = (shadow.loc[(model, pct)] for pct in (0, 50, 70, 90))
        others.append(layerwise.loc[(model, 50)])
        cells = [f"{row['ms_per_token']:.2f} ({row['gain']:.2f})" for row in others]
        lines.append([model, *map(two_decimals, (dense["ms_per_token"], fastest[model])), *cells])
    names = ["ms a token", "dense, ours", "fastest other dense", "shadow 50 %", "70 %", "90 %", "layerwise 50 %"]
    return markdown(names, lines)


def shares(rows: pd.DataFrame) -> list[str]:
    """Share of the memory's limit that a step reaches: dense, and predictors of equal sizes."""
    shadow, layerwise = (sparse(rows, mode)["share"].unstack() for mode in ("shadow", "layerwise"))
    both = pd.concat([shadow[[0, 50, 70, 90]], layerwise[[50, 70, 90]]], axis=1).loc[by_size(rows)]
    lines = [[model, *map(two_decimals, row)] for model, row in zip(both.index, both.to_numpy(), strict=True)]
    names = ["of the memory's limit", "dense, ours", "shadow 50 %", "70 %", "90 %", "layerwise 50 %", "70 %", "90 %"]
    return markdown(names, lines)


def two_decimals(value: float | None) -> str:
    """A number as a table shows it; nothing for none."""
    return "" if pd.isna(value) else f"{value:.2f}"


def variants(rows: pd.DataFrame) -> list[str]:
    """Milliseconds a token of every decoder: dense ones, and the others at 50 %; a column a model."""
    found = rows[rows["mode"].isin([*DENSE, "relu"]) | (rows["sparsity_pct"] == 50)].copy()
    found["mode"] = found["mode"].replace(WORDS)
    ranks = found["predictor_rank_heads"].fillna(found["predictor_rank"]).map("{:.0f}".format)
    ranks = (ranks + "/" + found["predictor_rank"].map("{:.0f}".format)).where(found["predictor_rank"].notna(), "")
    bits = found["predictor_bits"].map({8: ", 8 bits"}).fillna("")
    found["name"] = (found["mode"] + " " + ranks + bits).str.strip()
    found = found.pivot_table(index="name", columns="model", values="ms_per_token", sort=False)[by_size(rows)]
    lines = [[name, *map(two_decimals, row)] for name, row in zip(found.index, found.to_numpy(), strict=True)]
    return markdown(["ms a token, 50 % removed (ranks: heads/neurons)", *found.columns], lines)


def settings(rows: pd.DataFrame, batches: bool) -> list[str]:
    """Dense times, and speed-ups of shadow over the fastest (and those that the bytes allow), in other settings."""
    rows, lines = rows[(rows["batch"] > 1) == batches], []
    sparsities, peers = sorted({*rows["sparsity_pct"]} - {0}), ["dense", "cublas"]
    for keys, found in rows.groupby(["model", "batch", "prompt_tokens", "new_tokens"]):
        dense = found[found["mode"].isin(DENSE)].set_index("mode")
        shadow = alike(found, "shadow").set_index("sparsity_pct").loc[sparsities]
        gains = dense["ms_per_token"].min() / shadow["ms_per_token"]
        pairs = zip(gains, dense.loc["dense", "roof_ms"] / shadow["roof_ms"], strict=True)
        cells = [f"{gain:.2f} ({allowed:.2f})" for gain, allowed in pairs]
        lines.append([*keys, *map(two_decimals, dense["ms_per_token"].reindex(peers)), *cells])
    names = ["model", "sequences", "prompt", "new tokens", *(WORDS[mode] for mode in peers)]
    return markdown([*names, *(f"{pct} %" for pct in sparsities)], lines)


def widths(*runs: pd.DataFrame) -> list[str]:
    """Time of layerwise over shadow at 50 % and three widths, a number a run; published ratios with their GPUs."""
    gpus = pd.read_csv(PUBLISHED).query("quantity == 'latency'").groupby("model")["gpus"].first()
    theirs = published_ratios()
    ratios = [[layerwise_over_shadow(rows, ranks) for rows in runs] for ranks in WIDTHS.values()]
    wide = pd.concat(ratios[0]).index
    lines = []
    for model in (model for model in by_size(pd.concat(runs)) if model in wide):
        cells = [f"{theirs[model]:.3f} ({gpus[model]:.0f} A100)" if model in theirs else ""]
        for of_runs in ratios:
            found = (of_run.get(model, math.nan) for of_run in of_runs)
            cells.append(" / ".join("-" if pd.isna(ratio) else f"{ratio:.3f}" for ratio in found))
        lines.append([model, *cells])
    return markdown(["model", "published", *WIDTHS], lines)


def goals(*runs: tuple[pd.DataFrame, pd.DataFrame]) -> list[str]:
    """Each threshold with what was measured in every run, (rows of the main setting, others); a miss is bold."""

    def shown(holds: Callable, number: float, value: float) -> str:
        text = "not measured" if pd.isna(value) else f"{value:.3g}"
        return text if pd.isna(value) or holds(value, number) else f"**{text}**"

    lines = []
    for found in zip(*starmap(wanted, runs), strict=True):
        what, (holds, sign), numbers, _ = found[0]
        cells = [" / ".join(map(shown, [holds] * len(numbers), numbers, values)) for *_, values in found]
        lines.append([what, f"{sign} {' / '.join(f'{number:g}' for number in dict.fromkeys(numbers))}", *cells])
    return markdown(["goal, set for an H100", "wanted", *(rows["device"].iloc[0] for rows, _ in runs)], lines)


def main(path: Path) -> None:
    both = timed({"latency": pd.read_parquet(path)})
    rows, others = both[both["main"]], both[~both["main"]]
    print(f"{rows['device'].iloc[0]}, reads {rows['ceiling_gb_s'].max():.0f} GB/s at best")
    for table in (times(rows), shares(rows), widths(rows), goals((rows, others))):
        print("", *table, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
