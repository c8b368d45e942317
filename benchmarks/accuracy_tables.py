"""Tables and numbers of docs/findings.md at equal sparsity, from results/reference/smollm2."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
from markdown_tables import markdown

REFERENCE = Path(__file__).parent.parent / "results" / "reference"
TEXTS, SPARSITIES = ("wikipedia", "c4"), (30, 50, 70)
CALIBRATION = "wikipedia"  # other calibration texts are other draws of its documents
SPARSE = "trained on the sparse model"
# rows of `perplexity` and `accuracy`: a name, its words, and method, criterion and predictor
METHODS = {
    "dense": ("nothing is removed (dense)", "dense", None, None),
    "static": ("the same neurons for every token (static)", "static", "plainact", None),
    "static_l2_norm": ("the same neurons for every token, by l2_norm (static)", "static", "l2_norm", None),
    "shadow": ("one predictor, published recipe (shadow)", "shadow", "plainact", "published"),
    "one": ("one predictor, our recipe (segments)", "segments", "plainact", "wide"),
    "one_sparse": (f"one predictor, {SPARSE} (segments)", "segments", "plainact", "wide_1"),
    "one_tuned": (f"one predictor, {SPARSE} and tuned (segments)", "segments", "plainact", "wide_1_tuned"),
    "six": ("six predictors, our recipe (segments)", "segments", "plainact", "six"),
    "six_sparse": (f"six predictors, {SPARSE} (segments)", "segments", "plainact", "six_1"),
    "six_tuned": (f"six predictors, {SPARSE} and tuned (segments)", "segments", "plainact", "six_1_tuned"),
    "layerwise": ("one predictor per layer, published recipe (layerwise)", "layerwise", "plainact", "published"),
    "each": ("one predictor per layer, our recipe (layerwise)", "layerwise", "plainact", "each"),
    "each_sparse": (f"one predictor per layer, {SPARSE} (layerwise)", "layerwise", "plainact", "each_1"),
    "each_tuned": (f"one predictor per layer, {SPARSE} and tuned (layerwise)", "layerwise", "plainact", "each_1_tuned"),
    "oracle": ("by their true scores (oracle)", "oracle", "plainact", None),
    "oracle_l2_norm": ("by their true scores of l2_norm (oracle)", "oracle", "l2_norm", None),
    "threshold": ("by their activations (threshold)", "threshold", None, None),
    "rank256": ("rank 256", "segments", "plainact", "rank256"),
    "rank256_8bit": ("rank 256, 8-bit weights", "segments", "plainact", "rank256_8bit"),
    "rank64": ("rank 64", "segments", "plainact", "rank64"),
    "rank256_block16": ("rank 256, blocks of 16 neurons", "segments", "plainact", "rank256_block16"),
    **{
        f"static_{name}": (name, "static", name, None)
        for name in ("snip", "output_norm", "fisher", "jacov", "grasp", "epenas", "nwot", "grad_norm")
    },
}  # fmt: skip
NAMES = list(METHODS)
ALL = NAMES[: NAMES.index("rank256")]
SMALL = ("one", *NAMES[NAMES.index("rank256") : NAMES.index("static_snip")])
CRITERIA = ("static", "static_l2_norm", *NAMES[NAMES.index("static_snip") :])
METHODS |= {
    "one_twice": ("one predictor, trained on the sparse model twice (segments)", "segments", "plainact", "wide_2"),
    "six_twice": ("six predictors, trained on the sparse model twice (segments)", "segments", "plainact", "six_2"),
}
TUNED = ("one_tuned", "six_tuned", "each_tuned")


@cache
def table(name: str, folder: str = "smollm2") -> pd.DataFrame:
    return pd.read_parquet(REFERENCE / folder / "tables" / f"{name}.parquet")


def rows(name: str, of: str, calibration: str = CALIBRATION, **keys: object) -> pd.DataFrame:
    """Rows of a table for one of METHODS, a row a seed; keys: other columns and their values."""
    _, method, criterion, predictor = METHODS[name]
    keys = {"method": method, "criterion": criterion, "predictor": predictor} | keys
    if method != "dense":
        keys |= {"policy": "per_layer", "protocol": "token", "units": "neurons"}
    found = table(of)
    found = found[found["calibration"].isna() | (found["calibration"] == calibration)]
    for key, value in keys.items():
        found = found[found[key].isna() if value is None else found[key] == value]
    return found.set_index("seed").sort_index()


def windows(name: str, pct: int | str, data: str = "wikipedia") -> pd.DataFrame:
    return rows(name, "perplexity", data=data, task="perplexity", sparsity_pct=0 if name == "dense" else int(pct))


def interval(row: pd.Series) -> str:
    digits = ",.1f" if row["value"] < 1000 else ",.0f"
    return f"{row['value']:{digits}} [{row['low']:{digits}}, {row['high']:{digits}}]"


def perplexity(name: str, pct: int | str, data: str = "wikipedia") -> str:
    """An estimate with its interval; nothing where it was not measured."""
    found = windows(name, pct, data)
    return "" if found.empty else interval(found.iloc[0])


def value(name: str, pct: str) -> str:
    """An estimate without its interval."""
    return perplexity(name, pct).split(" ")[0]


def tasks(name: str) -> str:
    """Mean accuracy of the benchmarks at 50 %, with its standard error over documents."""
    found = rows(name, "accuracy", metric="acc", sparsity_pct=0 if name == "dense" else 50)
    found = found[(found.index == 0) & ~found["data"].isin(TEXTS)]
    return f"{found['value'].mean():.3f} ± {(found['stderr'] ** 2).sum() ** 0.5 / len(found):.3f}" if len(found) else ""


def all_accuracy() -> list[str]:
    """Every method of the findings."""
    rows = [
        [METHODS[name][0], *(perplexity(name, pct) for pct in SPARSITIES), perplexity(name, 50, "c4"), tasks(name)]
        for name in ALL
    ]
    names = ["how neurons are chosen", "30 % removed", "50 %", "70 %", "C4, 50 %", "accuracy, 50 %"]
    return markdown(names, rows)


def half(head: str, column: int, *names: str) -> list[str]:
    """Some methods at 50 %, by rising perplexity, called by one of the columns of METHODS."""
    names = sorted(names, key=lambda name: windows(name, 50)["value"].iloc[0])
    rows = [(METHODS[name][column], perplexity(name, 50), perplexity(name, 50, "c4")) for name in names]
    return markdown([head, "Wikipedia, 50 %", "C4, 50 %"], rows)


def worse(name: str, reference: str) -> str:
    """By how many percent perplexities are higher than another method's: both texts, all sparsities and seeds."""
    cells = [(windows(name, pct, data), windows(reference, pct, data)) for data in TEXTS for pct in SPARSITIES]
    ratios = pd.concat([(above["value"] / below["value"] - 1) * 100 for above, below in cells]).dropna()
    return f"{round(ratios.min())} to {round(ratios.max())} %"


def difference(name: str, reference: str, pct: str, data: str = "wikipedia") -> str:
    """The paired difference of two methods in nats a token."""
    _, method, _, predictor = METHODS[reference]
    keys = {"data": data, "task": "perplexity", "sparsity_pct": int(pct)}
    # a method without a predictor has the other's in a pair
    keys |= {"predictor": METHODS[name][3] or predictor, "reference": method, "reference_predictor": predictor}
    row = rows(name, "comparisons", **keys).loc[0]
    return f"{row['difference']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def draws(name: str) -> str:
    """By how many percent perplexities differ from those with the other draws of the calibration text."""

    def drawn(calibration: str) -> pd.Series:
        return (
            rows(name, "perplexity", calibration, task="perplexity").loc[0].set_index(["data", "sparsity_pct"])["value"]
        )

    changes = pd.concat([(drawn(f"{CALIBRATION}_{n}") / drawn(CALIBRATION) - 1) * 100 for n in (1, 2)])
    return f"{changes.min():+.0f} to {changes.max():+.0f} %"


def seeds() -> str:
    """The largest difference between seeds of a tuned predictor at 50 %, percent of its perplexity."""
    found = [windows(name, 50, data)["value"] for name in TUNED for data in TEXTS]
    return f"{max((values.max() / values.min() - 1) * 100 for values in found):.1f} %"
