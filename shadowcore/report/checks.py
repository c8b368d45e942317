"""Checks of the final tables: values that no measurement can have."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.errors import ArtifactError
from shadowcore.report.tables import SAME_DOCUMENTS, frame, row_name
from shadowcore.schemas import CONDITION

VALUE = {"accuracy": "value", "perplexity": "value", "comparisons": "difference", "latency": "ms_per_token"}
# accuracy of guessing; a task that is not listed is not compared with it
CHANCE = {"true_continuation": 1 / 4} | {name: one.chance for name, one in BENCHMARKS.items() if one.chance}


def check(tables: Mapping[str, pa.Table | pd.DataFrame]) -> list[str]:
    """Refuse final tables whose values no measurement can attain; return warnings as sentences.

    Raises ArtifactError, naming table and row, for a missing or non-finite value, an accuracy that is
    not k/n, a perplexity below 1, perplexities over tokens, words and bytes of one text that are not of one
    likelihood, or conditions of a task that were measured on different numbers of documents. A dense accuracy
    more than two standard errors below chance is only a warning: a small model may know nothing.
    """
    warnings = []
    for name, column in VALUE.items():
        if name not in tables or len(tables[name]) == 0:
            continue
        rows = frame(tables[name])
        value = rows[column].astype(float)
        _refuse(name, rows, ~np.isfinite(value), column, "a finite number belongs there")
        if name == "accuracy":
            correct = value * rows["n"]
            attainable = value.between(0, 1) & ((correct - correct.round()).abs() < 1e-6 * rows["n"])
            _refuse(name, rows, ~attainable, column, "an accuracy is k/n for a whole k, n being the row's documents")
            noise = 2 * rows["stderr"].astype(float).fillna(0)
            for index in rows.index[(rows["method"] == "dense") & (value < rows["task"].map(CHANCE) - noise)]:
                warnings.append(f"{_place(name, rows, index)}: accuracy {value[index]:.3f} is below chance")
        if name == "perplexity":
            _refuse(name, rows, value < 1, column, "a perplexity is at least 1")
            nats = np.log(value) * rows["counted"]
            text = [*CONDITION, "task", "fewshot"]
            first = nats.groupby([rows[key] for key in text], dropna=False).transform("first")
            unlike = (nats - first).abs() > 1e-9 * first.abs()
            _refuse(name, rows, unlike, column, "perplexities of one text, over its tokens, words or bytes, must agree")
        if "n" in rows:
            first = rows.groupby(SAME_DOCUMENTS, dropna=False)["n"].transform("first")
            _refuse(name, rows, rows["n"] != first, "n", "all conditions of a task are measured on the same documents")
    return warnings


def _refuse(name: str, rows: pd.DataFrame, bad: pd.Series, column: str, fitting: str) -> None:
    if bad.any():
        index = bad.idxmax()
        raise ArtifactError(f"{_place(name, rows, index)}: {column} is {rows[column][index]}; {fitting}")


def _place(name: str, rows: pd.DataFrame, index: int) -> str:
    return f"table '{name}', row {index} ({row_name(rows.loc[index])})"
