"""From documents to the final tables: group, estimate, and compare with dense and with each other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from shadowcore.errors import ArtifactError
from shadowcore.measure import statistics
from shadowcore.report.outcomes import ACCURACY_METRICS, KEYS, PERPLEXITIES, TASK_KEYS, Documents, Row, grouped
from shadowcore.schemas import CONDITION, FINAL_TABLES

Tables = Mapping[str, pd.DataFrame]
Outcomes = Sequence[Documents] | pa.Table | pd.DataFrame

SAME_DOCUMENTS = ["model", "data", *TASK_KEYS]  # rows that agree here were measured on the same documents
SAME_PLACE = ["policy", "protocol", "units", "sparsity_pct"]  # methods that agree here are compared,
MADE_OF = ["calibration", "criterion", "predictor"]  # ... if they agree in those of these that both have
TRAINED = ["model", "method", "predictor"]
REFERENCE = ["reference", "reference_criterion", "reference_predictor"]  # what a row of COMPARISONS is compared with
FAMILY = ("model", "seed", "metric", "reference")  # of comparisons whose p-values are corrected together
# a method's are those before it
REFERENCES = ("random", "static", "threshold", "griffin", "shadow", "layerwise", "segments", "oracle")
LOG_PERPLEXITIES = {"nll": "log_perplexity", "word_nll": "log_word_perplexity", "byte_nll": "log_byte_perplexity"}


def accuracy(outcomes: Outcomes) -> list[Row]:
    """Rows of ACCURACY: one per condition, task and metric of the documents in `outcomes`."""
    return _estimates(
        outcomes, ACCURACY_METRICS, lambda group: statistics.accuracy(group.value, group.articles)._asdict()
    )


def perplexity(outcomes: Outcomes) -> list[Row]:
    """Rows of PERPLEXITY: one per condition and text of the windows in `outcomes`."""

    def estimate(group: Documents) -> Row:
        measured = statistics.perplexity(group.value, group.weight)
        return measured._asdict() | {"metric": PERPLEXITIES[group.keys["metric"]], "counted": int(group.weight.sum())}

    return _estimates(outcomes, tuple(PERPLEXITIES), estimate)


def comparisons(outcomes: Outcomes, predictors: Iterable[Row] = ()) -> list[Row]:
    """Rows of COMPARISONS: every sparse condition against dense, and against other methods, on the same documents.

    Two methods are compared under equal policy, protocol, units and sparsity, and equal calibration, criterion and
    predictor where both have one; what the compared condition lacks of these the row takes from the reference.
    Two criteria are compared where the method is the same, or both methods are predictors of one name.
    Two predictors of other names are compared, too, if both were retrained equally often and both tuned or neither
    (`predictors`, rows of PREDICTORS), and so are those that they began with.
    What is trained with several seeds is compared with what is not trained seed by seed. A model or text without
    a dense condition has no rows against it. Where dense was run under several seeds, those of several studies,
    conditions are compared with others of their own seed only. Raises ArtifactError if documents differ.
    """
    groups = _documents(outcomes)
    dense, placed, rows = {}, {}, []
    for one in groups:
        if one.keys["method"] != "dense":
            placed.setdefault(_values(one.keys, [*SAME_DOCUMENTS, *SAME_PLACE]), []).append(one)
            continue
        seeds, seed = dense.setdefault(_values(one.keys, SAME_DOCUMENTS), {}), one.keys["seed"]
        if seed in seeds:
            raise ArtifactError(f"{row_name(one.keys)}: two dense conditions with seed {seed}; there must be one")
        seeds[seed] = one
    for one in groups:
        keys, seeds = one.keys, dense.get(_values(one.keys, SAME_DOCUMENTS), {})
        if keys["method"] == "dense" or not seeds:
            continue
        if len(seeds) > 1 and keys["seed"] not in seeds:
            raise ArtifactError(
                f"{row_name(keys)}: its seed is {keys['seed']}, where dense was run with {sorted(seeds)}"
            )
        reference = seeds[keys["seed"]] if len(seeds) > 1 else next(iter(seeds.values()))
        rows.append(compared(keys | dict.fromkeys(REFERENCE) | {"reference": "dense"}, one, reference))
    training = _training(groups, predictors)
    for alike in placed.values():
        for one, other in product(alike, repeat=2):
            keys, others = one.keys, other.keys
            several = len(dense.get(_values(keys, SAME_DOCUMENTS), {})) > 1
            if (
                _rank(others) < _rank(keys)
                and (_agree(keys, others, "criterion") or _of_one_kind(keys, others))
                and (_agree(keys, others, "predictor") or _counterparts(keys, others, training))
                and same_run(keys, others)
                and (keys["seed"] == others["seed"] or not several)
            ):
                made_of = {name: _made_of(keys, name) or _made_of(others, name) for name in MADE_OF}
                values = (others["method"], _made_of(others, "criterion"), others["predictor"])
                reference = dict(zip(REFERENCE, values, strict=True))
                seed = (others if _trained(others) else keys)["seed"]
                rows.append(compared(keys | made_of | reference | {"seed": seed}, one, other))
    return _sorted(_over_seeds(corrected(rows), "difference"))


def same_run(keys: Row, others: Row) -> bool:
    """Whether two conditions have the same calibration text, if both have one, and seed, if both were trained."""
    same_seed = keys["seed"] == others["seed"] or _trained(keys) != _trained(others)
    return same_seed and _agree(keys, others, "calibration")


def _over_seeds(rows: list[Row], column: str) -> list[Row]:
    """Rows with `seeds`, how many their condition was trained with, and the deviation of a column over them."""
    alike = {}
    for row in rows:
        keys = [name for name in (*CONDITION, *TASK_KEYS, *REFERENCE) if name != "seed" or not _trained(row)]
        alike.setdefault(tuple(row.get(name) for name in keys), []).append(row)
    for same in alike.values():
        deviation = float(np.std([row[column] for row in same], ddof=1)) if len(same) > 1 else None
        for row in same:
            row |= {"seeds": len(same), "seed_deviation": deviation}
    return rows


def _trained(keys: Row) -> bool:
    return keys["predictor"] is not None


def _rank(keys: Row) -> tuple[int, str, str]:
    """The reference of a pair is the one of the lower rank: by method, then by the criterion's name."""
    method = keys["method"]
    place = REFERENCES.index(method) if method in REFERENCES else len(REFERENCES)
    return place, method, _made_of(keys, "criterion") or ""


def _of_one_kind(keys: Row, others: Row) -> bool:
    """Whether two criteria are compared: their method is the same, or both have predictors of one name."""
    if keys["method"] == others["method"] or (_trained(keys) and _trained(others)):
        return keys["predictor"] == others["predictor"]
    return False


def _made_of(keys: Row, name: str) -> Any:
    """A key, None where it says nothing: random is a criterion of its own."""
    return None if keys["method"] == "random" else keys[name]


def _agree(keys: Row, other: Row, name: str) -> bool:
    return None in (_made_of(keys, name), _made_of(other, name)) or keys[name] == other[name]


# how a predictor was trained on the sparse model: rounds, and whether it was tuned; (0, False): it was not
Training = tuple[int, bool]


def _training(groups: Sequence[Documents], predictors: Iterable[Row]) -> dict[tuple, tuple[Training, set[Training]]]:
    """By model, method and name of each predictor measured: its training, and all those measured of its base."""
    made = {_values(row, TRAINED): (row["base"], (row["rounds"], row["tuned"])) for row in predictors}
    measured = {key: made[key] for one in groups if (key := _values(one.keys, TRAINED)) in made}
    alike: dict[tuple, set[Training]] = {}
    for (model, method, _), (base, training) in measured.items():
        alike.setdefault((model, method, base), set()).add(training)
    return {key: (training, alike[*key[:2], base]) for key, (base, training) in measured.items()}


def _counterparts(keys: Row, others: Row, training: Mapping[tuple, tuple[Training, set[Training]]]) -> bool:
    """Whether two predictors were trained alike, and those of their bases at least once so on the sparse model."""
    pair = [training.get(_values(row, TRAINED)) for row in (keys, others)]
    if None in pair:
        return False
    (mine, of_mine), (other, of_other) = pair
    return mine == other and bool((of_mine & of_other) - {(0, False)})


def corrected(rows: list[Row], family_of: Sequence[str] = FAMILY) -> list[Row]:
    """Rows with `p_holm`; p-values of rows that agree in the columns `family_of` are corrected together."""
    families = {}
    for row in rows:
        row["p_holm"] = None
        if row["p_value"] is not None:
            families.setdefault(_values(row, family_of), []).append(row)
    for family in families.values():
        for row, p_value in zip(family, statistics.holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = float(p_value)
    return rows


def compared(row: Row, group: Documents, reference: Documents) -> Row:
    """`row` with the difference of two groups of the same documents; ArtifactError if they are not the same."""
    statistics.require_paired(group.names, reference.names, lambda: row_name(row))
    metric = row["metric"]
    if metric in ACCURACY_METRICS:
        estimate, p_value = statistics.accuracy_difference(group.value, reference.value, group.articles)
    else:
        if (group.weight != reference.weight).any():
            raise ArtifactError(f"{row_name(row)}: its windows have other token counts than dense; score the same ones")
        estimate, p_value = statistics.paired_difference(group.value, reference.value, group.weight)
    numbers = estimate._asdict() | {"metric": LOG_PERPLEXITIES.get(metric, metric), "p_value": p_value}
    return row | {"difference": numbers.pop("value")} | numbers


def read(directory: Path) -> dict[str, pd.DataFrame]:
    """The final tables in a directory, by name; one that was not written is empty."""
    return read_files(Path(directory).glob("*.parquet"))


def read_files(paths: Iterable[Path]) -> dict[str, pd.DataFrame]:
    """The final tables by name, those among `paths` from their files; the others are empty."""
    files = {path.stem: path for path in paths if path.is_file()}
    return {
        name: frame(table.read(files[name]) if name in files else table.build([]))
        for name, table in FINAL_TABLES.items()
    }


def of_study(results: Path) -> dict[str, pd.DataFrame]:
    """The final tables of a study's results folder, such as results/quick; ArtifactError if it has none."""
    folder = Path(results) / "tables"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; give a study's results folder, such as results/quick")
    return read(folder)


class RecordingTables(dict):
    """Tables by name, with the set `names` of those that were read by `[name]`."""

    def __init__(self, found: Tables):
        super().__init__(found)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> pd.DataFrame:
        self.names.add(name)
        return super().__getitem__(name)


def frame(table: pa.Table | pd.DataFrame) -> pd.DataFrame:
    """The table as a DataFrame with rows numbered from 0."""
    table = table.to_pandas() if isinstance(table, pa.Table) else table
    return table.reset_index(drop=True)


def _documents(outcomes: Outcomes) -> Sequence[Documents]:
    return grouped([outcomes]) if isinstance(outcomes, (pa.Table, pd.DataFrame)) else outcomes


def _estimates(outcomes: Outcomes, metrics: tuple[str, ...], estimate: Callable[[Documents], Row]) -> list[Row]:
    rows = []
    for group in _documents(outcomes):
        if group.keys["metric"] not in metrics:
            continue
        try:
            rows.append(group.keys | estimate(group))
        except ArtifactError as error:
            raise ArtifactError(f"{row_name(group.keys)}: {error}") from None
    return _sorted(_over_seeds(rows, "value"))


def _values(keys: Row, names: Sequence[str]) -> tuple:
    return tuple(keys[name] for name in names)


def order(row: Row, names: Sequence[str]) -> list[tuple]:
    """What sorts rows by these keys, nulls first."""
    return [(row.get(name) is not None, row.get(name)) for name in names]


def row_name(row: Mapping[str, Any]) -> str:
    """What a row is about, in words, for messages."""
    columns = ["model", "data", "method", "mode", "criterion", "policy", "protocol", "units", "sparsity_pct"]
    columns += [*REFERENCE, "task", "fewshot", "metric"]
    return " ".join(str(row[name]) for name in columns if name in row and not pd.isna(row[name]))


def _sorted(rows: list[Row]) -> list[Row]:
    """Rows in the order of their keys, nulls first."""
    return sorted(rows, key=lambda row: order(row, [*KEYS, *REFERENCE]))
