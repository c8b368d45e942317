"""Tables and numbers of what kept units have in common (benchmarks/kept_units.py), for docs/speed.md."""

from __future__ import annotations

import pandas as pd
from accuracy_tables import REFERENCE
from markdown_tables import markdown

from shadowcore.models.families import FAMILIES
from shadowcore.models.published import PUBLISHED

MODEL, PREDICTOR = "smollm2-135m", "shadow small"


def kept_units(units: str, pct: str, choice: str = "own", model: str = MODEL) -> pd.DataFrame:
    """What benchmarks/kept_units.py counted, by method and predictor, without those of l2_norm."""
    found = pd.read_parquet(REFERENCE / "kept-units" / f"{model}.parquet")
    found = found[(found["units"] == units) & (found["sparsity_pct"] == int(pct)) & (found["criterion"] != "l2_norm")]
    found = found[found["choice"] == choice].fillna({"predictor": ""})
    return found.set_index((found["method"] + " " + found["predictor"]).str.strip()).sort_values("union_4")


def kept_unit(column: str, units: str, pct: str, choice: str, model: str = MODEL, of: str = PREDICTOR) -> str:
    """A number of a method, by default the predictor `shadow small`: a length of runs, or a share in percent."""
    value = kept_units(units, pct, choice, model).loc[of, column]
    return f"{value:.2f}" if column == "run_units" else f"{100 * value:.0f} %"


def in_common(*sparsities: str) -> list[str]:
    """Neurons: what batches need, what the token before kept, and the share of weights that batches read."""
    rows = []
    for pct in sparsities:
        random = kept_units("neurons", pct, "uniform").iloc[:1].set_axis(["random"])
        for name, row in pd.concat([kept_units("neurons", pct), random]).iterrows():
            unions = [row[f"union_{count}"] for count in (2, 4, 8, 16)]
            weights = [1 - row["weight_share"] * (1 - union) for union in unions[1::2]]
            shares = (f"{100 * share:.0f} %" for share in (*unions, row["kept_before"], *weights))
            rows.append([name, f"{pct} %", *shares])
    names = ["neurons kept by", "removed", "needed by 2", "by 4", "by 8", "by 16", "kept before"]
    return markdown([*names, "weights read by 4", "by 16"], rows)


def batch_gain(model: str, sequences: str, pct: str, choice: str) -> str:
    """A published model's weights over those that a batch would read if it needed the share of `shadow small`."""
    size, sizes = PUBLISHED[model], PUBLISHED[model].dimensions
    ffn = (sizes.layers - 1) * (1 + len(FAMILIES[size.family].ffn_in)) * sizes.width * sizes.neurons / size.multiplied
    needed = kept_units("neurons", pct, choice).loc[PREDICTOR, f"union_{sequences}"]
    return f"{1 / (1 - ffn * (1 - needed)):.2f}"
