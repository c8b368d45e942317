"""Tables of docs/quick.md, from results/reference/quick."""

from __future__ import annotations

import pandas as pd
from accuracy_tables import REFERENCE, interval


def table(of: str) -> pd.DataFrame:
    """A table of the quick study, its missing keys as empty text."""
    found = pd.read_parquet(REFERENCE / "quick" / "tables" / f"{of}.parquet")
    return found.fillna(dict.fromkeys({"criterion", "predictor", "policy", "units", "protocol"} & set(found), ""))


def perplexity(policy: str, units: str) -> list[str]:
    """Perplexities of the quick study under one policy, with some units removed."""
    found = table("perplexity").query("task == 'perplexity' and policy == @policy and units == @units")
    sparsities = sorted(found["sparsity_pct"].unique())
    lines = [f"| method | criterion | predictor | {' | '.join(f'{pct} %' for pct in sparsities)} |"]
    lines.append("|---" * (3 + len(sparsities)) + "|")
    for key, part in found.groupby(["method", "criterion", "predictor"]):
        cells = {row["sparsity_pct"]: interval(row) for _, row in part.iterrows()}
        lines.append(f"| {' | '.join([*key, *(cells.get(pct, '') for pct in sparsities)])} |")
    return lines


def dense() -> str:
    return interval(table("perplexity").query("method == 'dense' and task == 'perplexity'").iloc[0])


def half() -> list[str]:
    """At 50 %: accuracy of the quick study's questions, and recall of the kept neurons on held-out tokens."""
    keys = ["criterion", "method", "predictor"]
    alike = "policy == 'per_layer' and sparsity_pct == 50"
    right = table("accuracy").query(f"metric == 'acc' and units == 'neurons' and {alike}").set_index(keys)
    recall = (
        table("quality").query(f"metric == 'recall' and kind == 'neurons' and {alike}").groupby(keys)["value"].mean()
    )
    lines = ["| criterion | method | predictor | accuracy | recall |", "|---" * 5 + "|"]
    for key, row in right.sort_index().iterrows():
        found = f"{recall[key]:.3f}" if key in recall else ""
        lines.append(f"| {' | '.join(key)} | {row['value']:.2f} ± {row['stderr']:.2f} | {found} |")
    return lines


def times() -> list[str]:
    """Median times of the quick study, 10th to 90th percentile in brackets."""
    timed = table("latency")
    sparsities = sorted(timed["sparsity_pct"].unique())
    names = ["dense" if pct == 0 else f"{pct} %" for pct in sparsities]
    lines = [f"| mode | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for mode, part in timed.groupby("mode", sort=False):
        cells = {
            row["sparsity_pct"]: f"{row['ms_per_token']:.1f} ({row['ms_p10']:.1f} to {row['ms_p90']:.1f})"
            for _, row in part.iterrows()
        }
        lines.append(f"| {mode} | {' | '.join(cells.get(pct, '') for pct in sparsities)} |")
    return lines
