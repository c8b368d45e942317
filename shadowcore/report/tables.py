"""From documents to the final tables: group, estimate, compare with dense, and refuse impossible values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from shadowcore import artifacts
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.errors import ArtifactError
from shadowcore.measure import statistics
from shadowcore.schemas import CONDITION, FINAL_TABLES, MEASURED, OUTCOMES

Row = dict[str, Any]
Tables = Mapping[str, pd.DataFrame]

CONDITION_COLUMNS = [*CONDITION, *MEASURED]
ASKED = ["task", "fewshot", "metric"]
SAME_DOCUMENTS = ["model", "data", *ASKED]  # rows that agree here were measured on the same documents
SAME_PLACE = ["policy", "protocol", "units", "sparsity_pct"]  # methods that agree here are compared,
MADE_OF = ["calibration", "criterion", "predictor"]  # ... if they agree in those of these that both have
FAMILY = ("model", "seed", "metric", "reference")  # of comparisons whose p-values are corrected together
# a method's are those before it
REFERENCES = ("random", "static", "threshold", "griffin", "shadow", "layerwise", "segments", "oracle")
VALUE = {"accuracy": "value", "perplexity": "value", "comparisons": "difference", "latency": "ms_per_token"}
ACCURACY_METRICS = ("acc", "acc_norm")
PERPLEXITIES = {"nll": "token_perplexity", "word_nll": "word_perplexity", "byte_nll": "byte_perplexity"}
LOG_PERPLEXITIES = {"nll": "log_perplexity", "word_nll": "log_word_perplexity", "byte_nll": "log_byte_perplexity"}
# accuracy of guessing; a task that is not listed is not compared with it
CHANCE = {"true_continuation": 1 / 4} | {name: one.chance for name, one in BENCHMARKS.items() if one.chance}


def accuracy(outcomes: pa.Table | pd.DataFrame) -> list[Row]:
    """Rows of ACCURACY: one per condition, task and metric of the documents in `outcomes`."""
    return _estimates(outcomes, ACCURACY_METRICS, lambda group: statistics.accuracy(group["value"])._asdict())


def perplexity(outcomes: pa.Table | pd.DataFrame) -> list[Row]:
    """Rows of PERPLEXITY: one per condition and text of the windows in `outcomes`."""

    def estimate(group: pd.DataFrame) -> Row:
        measured = statistics.perplexity(group["value"], group["weight"])
        metric = PERPLEXITIES[group["metric"].iloc[0]]
        return measured._asdict() | {"metric": metric, "counted": int(group["weight"].sum())}

    return _estimates(outcomes, tuple(PERPLEXITIES), estimate)


def comparisons(outcomes: pa.Table | pd.DataFrame) -> list[Row]:
    """Rows of COMPARISONS: every sparse condition against dense, and against other methods, on the same documents.

    Two methods are compared under equal policy, protocol, units and sparsity, and equal calibration, criterion and
    predictor where both have one; what the compared condition lacks of these the row takes from the reference.
    What is trained with several seeds is compared with what is not trained seed by seed. A model or text without
    a dense condition has no rows against it. Where dense was run under several seeds, those of several studies,
    conditions are compared with others of their own seed only. Raises ArtifactError if documents differ.
    """
    groups = list(_groups(outcomes, (*ACCURACY_METRICS, *PERPLEXITIES)))
    dense, placed = {}, {}
    for keys, group in groups:
        if keys["method"] == "dense":
            seeds = dense.setdefault(tuple(keys[name] for name in SAME_DOCUMENTS), {})
            if keys["seed"] in seeds:
                raise ArtifactError(f"{_name(keys)}: found twice with seed {keys['seed']}; dense has one condition")
            seeds[keys["seed"]] = group
        else:
            place = tuple(keys[name] for name in (*SAME_DOCUMENTS, *SAME_PLACE))
            placed.setdefault(place, []).append((keys, group))
    rows = []
    for keys, group in groups:
        seeds = dense.get(tuple(keys[name] for name in SAME_DOCUMENTS), {})
        if keys["method"] == "dense" or not seeds:
            continue
        if len(seeds) > 1 and keys["seed"] not in seeds:
            raise ArtifactError(f"{_name(keys)}: its seed is {keys['seed']}, where dense was run with {sorted(seeds)}")
        reference = seeds[keys["seed"]] if len(seeds) > 1 else next(iter(seeds.values()))
        rows.append(keys | {"reference": "dense"} | _difference(group, reference, _name(keys)))
    for alike in placed.values():
        for (keys, group), (other, reference) in product(alike, repeat=2):
            several = len(dense.get(tuple(keys[name] for name in SAME_DOCUMENTS), {})) > 1
            if (
                _rank(other["method"]) < _rank(keys["method"])
                and all(_agree(keys, other, name) for name in MADE_OF)
                and (keys["seed"] == other["seed"] or (_trained(keys) != _trained(other) and not several))
            ):
                made_of = {name: _made_of(keys, name) or _made_of(other, name) for name in MADE_OF}
                seed = (other if _trained(other) else keys)["seed"]
                named = keys | made_of | {"reference": other["method"], "seed": seed}
                rows.append(named | _difference(group, reference, _name(named)))
    return _sorted(_over_seeds(_corrected(rows), "difference"))


def _over_seeds(rows: list[Row], column: str) -> list[Row]:
    """Rows with `seeds`, how many their condition was trained with, and the deviation of a column over them."""
    alike = {}
    for row in rows:
        keys = [name for name in (*CONDITION, *ASKED, "reference") if name != "seed" or not _trained(row)]
        alike.setdefault(tuple(row.get(name) for name in keys), []).append(row)
    for same in alike.values():
        deviation = float(np.std([row[column] for row in same], ddof=1)) if len(same) > 1 else None
        for row in same:
            row |= {"seeds": len(same), "seed_deviation": deviation}
    return rows


def _trained(keys: Row) -> bool:
    return keys["predictor"] is not None


def _rank(method: str) -> tuple[int, str]:
    return (REFERENCES.index(method) if method in REFERENCES else len(REFERENCES)), method


def _made_of(keys: Row, name: str) -> Any:
    """A key, None where it says nothing: random is a criterion of its own."""
    return None if keys["method"] == "random" else keys[name]


def _agree(keys: Row, other: Row, name: str) -> bool:
    return None in (_made_of(keys, name), _made_of(other, name)) or keys[name] == other[name]


def _corrected(rows: list[Row]) -> list[Row]:
    """Rows with `p_holm`, over each FAMILY."""
    families = {}
    for row in rows:
        row["p_holm"] = None
        if row["p_value"] is not None:
            families.setdefault(tuple(row[name] for name in FAMILY), []).append(row)
    for family in families.values():
        for row, p_value in zip(family, statistics.holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = float(p_value)
    return rows


def _difference(group: pd.DataFrame, reference: pd.DataFrame, where: str) -> Row:
    order, reference_order = statistics.paired_order(group["document"], reference["document"], where)
    group, reference = group.iloc[order], reference.iloc[reference_order]
    metric, value, other = group["metric"].iloc[0], group["value"].to_numpy(), reference["value"].to_numpy()
    if metric in ACCURACY_METRICS:
        estimate, p_value = statistics.accuracy_difference(value, other)
        named = {"p_value": p_value}
    else:
        if (group["weight"].to_numpy() != reference["weight"].to_numpy()).any():
            raise ArtifactError(f"{where}: its windows have other token counts than dense; score the same tokens")
        estimate = statistics.log_perplexity_difference(value, other, group["weight"])
        named = {"metric": LOG_PERPLEXITIES[metric], "p_value": None}
    return {("difference" if name == "value" else name): number for name, number in estimate._asdict().items()} | named


def check(tables: Mapping[str, pa.Table | pd.DataFrame]) -> list[str]:
    """Refuse final tables whose values no measurement can attain; return warnings as sentences.

    Raises ArtifactError, naming table and row, for a missing or non-finite value, an accuracy that is
    not k/n, a perplexity below 1, perplexities over tokens, words and bytes of one text that are not of one
    likelihood, or conditions of a task that were measured on different numbers of documents. A dense accuracy
    more than two standard errors below chance is only a warning: a small model may know nothing.
    """
    warnings = []
    for name, column in VALUE.items():
        if name not in tables:
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
    return f"table '{name}', row {index} ({_name(rows.loc[index])})"


def read(directory: Path) -> dict[str, pd.DataFrame]:
    """The final tables in a directory, by name; one that was not written is empty."""
    return {
        name: frame(artifacts.read_table(path, table.schema) if path.is_file() else table.build([]))
        for name, table in FINAL_TABLES.items()
        for path in [Path(directory) / f"{name}.parquet"]
    }


def of_study(results: Path) -> dict[str, pd.DataFrame]:
    """The final tables of a study's results folder, such as results/quick; ArtifactError if it has none."""
    folder = Path(results) / "tables"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; a study's results folder, such as results/quick, would fit")
    return read(folder)


class Asked(Mapping):
    """Tables that remember the names they were asked for."""

    def __init__(self, found: Tables):
        self._found, self.names = found, set()

    def __getitem__(self, name: str) -> pd.DataFrame:
        self.names.add(name)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def frame(table: pa.Table | pd.DataFrame) -> pd.DataFrame:
    """The table as a DataFrame with rows numbered from 0."""
    table = table.to_pandas() if isinstance(table, pa.Table) else table
    return table.reset_index(drop=True)


def _estimates(
    outcomes: pa.Table | pd.DataFrame, metrics: tuple[str, ...], estimate: Callable[[pd.DataFrame], Row]
) -> list[Row]:
    rows = []
    for keys, group in _groups(outcomes, metrics):
        try:
            rows.append(keys | estimate(group))
        except ArtifactError as error:
            raise ArtifactError(f"{_name(keys)}: {error}") from None
    return _sorted(_over_seeds(rows, "value"))


def _groups(outcomes: pa.Table | pd.DataFrame, metrics: tuple[str, ...]) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Keys and documents of every condition, task and metric; documents in an order of their own."""
    documents = frame(outcomes)
    if missing := set(OUTCOMES.columns) - set(documents):
        raise ArtifactError(f"outcomes: no column {sorted(missing)}; columns of schema '{OUTCOMES.schema}' are read")
    columns = [*CONDITION_COLUMNS, *ASKED]
    documents = documents[documents["metric"].isin(metrics)].sort_values(["document", "value"], kind="stable")
    # dropna=False: keys that do not apply are null, and their rows must not vanish
    for keys, group in documents.groupby(columns, dropna=False, sort=False):
        yield {name: _plain(key, name) for name, key in zip(columns, keys, strict=True)}, group


def _plain(value: Any, column: str) -> Any:
    """A key as Python has it: None for null, whole numbers where pandas made floats of them."""
    if pd.isna(value):
        return None
    if column in ("sparsity_pct", "seed", "fewshot"):
        return int(value)
    return value.item() if isinstance(value, np.generic) else value


def _name(row: Mapping[str, Any]) -> str:
    """What a row is about, in words, for messages."""
    columns = ["model", "data", "method", "mode", "criterion", "policy", "protocol", "units", "sparsity_pct"]
    columns += ["reference", "task", "fewshot", "metric"]
    return " ".join(str(row[name]) for name in columns if name in row and not pd.isna(row[name]))


def _sorted(rows: list[Row]) -> list[Row]:
    """Rows in the order of their keys, nulls first."""
    keys = [*CONDITION_COLUMNS, *ASKED, "reference"]
    return sorted(rows, key=lambda row: [(row.get(name) is not None, row.get(name)) for name in keys])
