"""Tables of times as Markdown: per token, by variant and setting, one predictor against one per layer, and thresholds.

python benchmarks/thresholds.py results/reference/gpu-h100/tables/latency.parquet
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from markdown_tables import markdown

from shadowcore.report import PUBLISHED
from shadowcore.report.figures.scaling import BITS, DENSE, WIDTHS, alike, layerwise_over_shadow, published_ratios, timed

OTHER = [mode for mode in DENSE if mode != "dense"]
BEST, MOST = (operator.ge, ">="), (operator.le, "<=")
# models, sparsities, and the speed-ups wanted there
GAINS = (
    ("OPT-30B", (50, 70, 90), [1.55, 2.1, 3.0]),
    ("OPT-6.7B", (50,), [1.45]),
    ("Llama-2-7B", (50,), [1.45]),
)


def wanted(rows: pd.DataFrame) -> list[tuple[str, tuple[Callable, str], list[float], list[float]]]:
    """Each threshold: what, in which direction, the numbers wanted and found (NaN: not measured)."""

    def one(model: str, mode: str, pct: int, column: str = "ms_per_token", bits: int = BITS) -> float:
        found = alike(rows[rows["model"] == model], mode, bits=bits)
        return found.loc[found["sparsity_pct"] == pct, column].dropna().head(1).max()

    def fastest(model: str, modes: Sequence[str] = DENSE) -> float:
        return rows.loc[(rows["model"] == model) & rows["mode"].isin(modes), "ms_per_token"].min()

    def gains(model: str, sparsities: Sequence[int], bits: int) -> list[float]:
        return [fastest(model) / one(model, "shadow", pct, bits=bits) for pct in sparsities]

    opts = [model for model in ("opt-6.7b", "opt-13b", "opt-30b") if model in set(rows["model"])]
    dense = rows[(rows["mode"] == "dense") | rows["predictor_mb"].notna()]
    most = dense["peak_gb"] - dense["predictor_mb"].fillna(0) / 1e3 - (dense["model_gb"] + dense["cache_gb"])
    spare = (most / (dense["peak_gb"] - most)).max()
    worst = pd.Series([one(model, "dense", 0) / fastest(model, OTHER) for model in sorted(set(rows["model"]))]).max()
    of_roof = [one(model, "dense", 0, "gb_per_s") / rows["ceiling_gb_s"].max() for model in ("opt-6.7b", "opt-30b")]
    choosing = [one(model, "shadow", 50, "predictor_ms") / one(model, "shadow", 50) for model in opts]
    shuffled = one("opt-30b", "gather_ordered", 0) / one("opt-30b", "gather_shuffled", 0)
    selection = one("opt-30b", "shadow", 50, "selection_ms") * 1e3
    names = " / ".join(opts)
    return [
        ("dense step, OPT-6.7B, of the read ceiling", BEST, [0.85], of_roof[:1]),
        ("dense step, OPT-30B, of the read ceiling", BEST, [0.92], of_roof[1:]),
        ("our dense over the fastest other, worst size", MOST, [1.05], [worst]),
        *(
            (
                f"{name} shadow{with_bits}, {' / '.join(map(str, at))} %, over the fastest dense",
                BEST,
                goals,
                gains(name.lower(), at, bits),
            )
            for name, at, goals in GAINS
            for bits, with_bits in ((BITS, ""), (8, " (8-bit predictor)"))
        ),
        (f"predictor and selection of the token, 50 %: {names}", MOST, [0.05] * len(opts), choosing),
        ("one selection for all layers, OPT-30B, us", MOST, [30.0], [selection]),
        ("gather in random order against in order, OPT-30B", BEST, [0.95], [shuffled]),
        ("memory beyond weights, cache, predictor, worst mode", MOST, [0.05], [spare]),
    ]


def times(rows: pd.DataFrame) -> list[str]:
    """Milliseconds a token of every model: dense, and predictors of equal sizes."""
    lines = []
    for model, found in sorted(rows.groupby("model"), key=lambda item: item[1]["gb_per_token"].max()):
        others = found.loc[found["mode"].isin(OTHER), "ms_per_token"]
        shadow, layerwise = (
            alike(found, mode).set_index("sparsity_pct")["ms_per_token"] for mode in ("shadow", "layerwise")
        )
        values = [found.loc[found["mode"] == "dense", "ms_per_token"].iloc[0], others.min()]
        values += [shadow.get(50), shadow.get(70), shadow.get(90), layerwise.get(50)]
        lines.append([model, *map(two_decimals, values)])
    names = ["ms a token", "dense, ours", "fastest other dense", "shadow 50 %", "70 %", "90 %", "layerwise 50 %"]
    return markdown(names, lines)


def two_decimals(value: float | None) -> str:
    """A number as a table shows it; nothing for none."""
    return "" if pd.isna(value) else f"{value:.2f}"


def variants(rows: pd.DataFrame) -> list[str]:
    """Milliseconds a token of every variant at 50 %, a column a model."""
    half = rows[rows["sparsity_pct"] == 50].copy()
    half["mode"] = half["mode"].replace({"given": "given units, nothing predicted", "static": "kept units cut out"})
    ranks = half["predictor_rank_heads"].fillna(half["predictor_rank"]).map("{:.0f}".format)
    ranks = (ranks + "/" + half["predictor_rank"].map("{:.0f}".format)).where(half["predictor_rank"].notna(), "")
    bits = half["predictor_bits"].map({8: ", 8 bits"}).fillna("")
    half["name"] = (half["mode"] + " " + ranks + bits).str.strip()
    found = half.pivot_table(index="name", columns="model", values="ms_per_token", sort=False)
    found = found[rows.groupby("model")["gb_per_token"].max().sort_values().index]
    lines = [[name, *map(two_decimals, row)] for name, row in zip(found.index, found.to_numpy(), strict=True)]
    return markdown(["ms a token, 50 % removed (ranks: heads/neurons)", *found.columns], lines)


def settings(rows: pd.DataFrame) -> list[str]:
    """Speed-ups of shadow over the fastest dense decoder with several sequences, other prompts and other lengths."""
    lines = []
    for keys, found in rows.groupby(["model", "batch", "prompt_tokens", "new_tokens"]):
        dense = found.loc[found["mode"].isin(DENSE), "ms_per_token"].min()
        gains = dense / alike(found, "shadow").set_index("sparsity_pct")["ms_per_token"]
        lines.append([*keys, *map(two_decimals, (dense, *map(gains.get, (50, 70, 90))))])
    names = ["model", "sequences", "tokens of the prompt", "new tokens", "dense, ms", "50 %", "70 %", "90 %"]
    return markdown(names, lines)


def widths(rows: pd.DataFrame) -> list[str]:
    """Time of layerwise over shadow at 50 % and three widths; published ratios with their number of GPUs."""
    gpus = pd.read_csv(PUBLISHED).query("quantity == 'latency'").groupby("model")["gpus"].first()
    theirs, ours = published_ratios(), {name: layerwise_over_shadow(rows, ranks) for name, ranks in WIDTHS.items()}
    lines = []
    for model in rows.groupby("model")["gb_per_token"].max().sort_values().index:
        cells = [f"{theirs[model]:.3f} ({gpus[model]:.0f} A100)" if model in theirs else ""]
        cells += [f"{found[model]:.3f}" if model in found else "" for found in ours.values()]
        lines.append([model, *cells])
    return markdown(["model", "published", *ours], lines)


def goals(rows: pd.DataFrame) -> list[str]:
    """Each threshold with what was measured."""
    lines = []
    for what, (holds, sign), numbers, found in wanted(rows):
        values = " / ".join("not measured" if pd.isna(value) else f"{value:.3g}" for value in found)
        goal = " / ".join(f"{number:g}" for number in dict.fromkeys(numbers))
        reached = "yes" if all(map(holds, found, numbers)) else "**no**"
        reached = "" if pd.isna(found).any() else reached
        lines.append([what, f"{sign} {goal}", values, reached])
    return markdown(["threshold (set for an H100)", "wanted", rows["device"].iloc[0], "reached"], lines)


def main(path: Path) -> None:
    rows = timed({"latency": pd.read_parquet(path)}).query("main")
    print(f"{rows['device'].iloc[0]}, reads {rows['ceiling_gb_s'].max():.0f} GB/s at best\n")
    print(*times(rows), "", "Time of layerwise over shadow at 50 %, by the predictors' ranks:\n", sep="\n")
    print(*widths(rows), "", *goals(rows), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
