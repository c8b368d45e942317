"""The best method at each budget of bytes as a block for a terminal or a page."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from shadowcore.report.answer import change, p_value
from shadowcore.report.blocks import Block, method_name, number, timed
from shadowcore.report.figures.scaling import DENSE
from shadowcore.report.select import by_task, where
from shadowcore.report.tables import Tables


def at_bytes(found: Tables, everything: bool = False) -> Iterator[Block]:
    """The best method at budgets of bytes, of each model: by perplexity on whole texts; or on everything."""
    rows = by_task(found["best_at_bytes"])
    rows = rows if everything else rows[(rows["metric"] == "log_perplexity") & (rows["task"] != "second_half")]
    for (model, metric), alike in rows.groupby(["model", "metric"], sort=False):
        log = metric == "log_perplexity"
        words = ["text" if log else "task", "% of bytes", "best", "units", "% removed"]
        numbers = ["% bytes read", "against dense" + ("" if log else ", points"), "next best", "ms (dense)"]
        lines = []
        for row in alike.to_dict("records"):
            place = [row["data"] if log else row["task_label"], f"at most {row['budget_pct']}"]
            if row["verdict"] == "none":
                lines.append([*place, "no condition reads as little", *[""] * 2, *["-"] * 4])
                continue
            sure = p_value(row["p_holm"]) if row["verdict"] == "significant" else row["verdict"]
            following = f"{method_name({name: row[f'next_{name}'] for name in ('method', 'predictor')})} {sure}"
            if row["next_pairs"] > 1:
                following += f", better in {row['next_pairs_won']:.0f} of {row['next_pairs']:.0f} draws and seeds"
            against_dense = row | {"p_holm": None} if pd.notna(row["difference"]) else None
            lines.append([
                *place, method_name(row), row["units"], f"{row['sparsity_pct']:g}", number(100 * row["read_share"]),
                change(against_dense, log).strip(), following.strip(), _milliseconds(found, row),
            ])  # fmt: skip
        note = "[95 % interval, paired]; next best: of another method, undecided unless p < .05 (Holm)"
        title = f"{model}: best method at shares of the dense model's bytes, by {'perplexity' if log else metric}"
        yield Block(title, note, words, numbers, lines)


def _milliseconds(found: Tables, row: Mapping[str, Any]) -> str:
    """Time per token of this condition and of the fastest dense decoder in the same setting; "-" where not timed."""
    modes = where(timed(found), weights="pretrained", batch=1)
    for name in ("model", "method", "predictor", "units", "policy", "protocol", "sparsity_pct"):
        modes = modes[modes[name] == row[name]] if pd.notna(row[name]) else modes
    if modes.empty:
        return "-"
    setting = ["model", "device", "backend", "weights", "dtype", "batch", "prompt_tokens", "new_tokens"]
    dense = found["latency"].merge(modes.head(1)[setting])
    dense = dense.loc[dense["mode"].isin(DENSE), "ms_per_token"].min()
    return f"{number(modes['ms_per_token'].iloc[0])} ({number(dense)})"
