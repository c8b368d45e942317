"""Tables of docs/quick.md, from results/reference/quick."""

from __future__ import annotations

import accuracy_tables
import pandas as pd
from accuracy_tables import interval
from markdown_tables import markdown


def table(of: str) -> pd.DataFrame:
    """A table of the quick study, its missing keys as empty text."""
    found = accuracy_tables.table(of, "quick")
    return found.fillna(dict.fromkeys({"criterion", "predictor", "policy", "units", "protocol"} & set(found), ""))


def perplexity(policy: str, units: str) -> list[str]:
    """Perplexities of the quick study under one policy, with some units removed."""
    found = table("perplexity").query("task == 'perplexity' and policy == @policy and units == @units")
    sparsities = sorted(found["sparsity_pct"].unique())
    rows = []
    for key, part in found.groupby(["method", "criterion", "predictor"]):
        cells = {row["sparsity_pct"]: interval(row) for _, row in part.iterrows()}
        rows.append([*key, *(cells.get(pct, "") for pct in sparsities)])
    return markdown(["method", "criterion", "predictor", *(f"{pct} %" for pct in sparsities)], rows)


def dense() -> str:
    return interval(table("perplexity").query("method == 'dense' and task == 'perplexity'").iloc[0])


def of_dense(method: str, what: str, predictor: str = "") -> str:
    """Of a method of plainact, or without a criterion, at 50 %: perplexity (value), its increase, or the share read."""
    found = table("perplexity").query("policy == 'per_layer' and units == 'neurons' and sparsity_pct == 50")
    found = found[(found["method"] == method) & found["criterion"].isin(["", "plainact"])]
    row = found[found["predictor"] == predictor].squeeze()
    dense = table("perplexity").query("method == 'dense'")["value"].item()
    words = {"value": f"{row['value']:.1f}", "increase": f"{(row['value'] / dense - 1) * 100:.0f} %"}
    return (words | {"share": f"{100 * row['read_share']:.0f} %"})[what]


def half() -> list[str]:
    """At 50 %: accuracy of the quick study's questions, and recall of the kept neurons on held-out tokens."""
    keys = ["criterion", "method", "predictor"]
    alike = "policy == 'per_layer' and sparsity_pct == 50"
    right = table("accuracy").query(f"metric == 'acc' and units == 'neurons' and {alike}").set_index(keys)
    recall = (
        table("quality").query(f"metric == 'recall' and kind == 'neurons' and {alike}").groupby(keys)["value"].mean()
    )
    rows = [
        [*key, f"{row['value']:.2f} ± {row['stderr']:.2f}", f"{recall[key]:.3f}" if key in recall else ""]
        for key, row in right.sort_index().iterrows()
    ]
    return markdown(["criterion", "method", "predictor", "accuracy", "recall"], rows)


def times() -> list[str]:
    """Median times of the quick study, 10th to 90th percentile in brackets."""
    timed = table("latency")
    sparsities = sorted(timed["sparsity_pct"].unique())
    rows = []
    for mode, part in timed.groupby("mode", sort=False):
        cells = {
            row["sparsity_pct"]: f"{row['ms_per_token']:.1f} ({row['ms_p10']:.1f} to {row['ms_p90']:.1f})"
            for _, row in part.iterrows()
        }
        rows.append([mode, *(cells.get(pct, "") for pct in sparsities)])
    return markdown(["mode", *("dense" if pct == 0 else f"{pct} %" for pct in sparsities)], rows)
