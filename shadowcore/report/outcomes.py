"""Documents of many outcome files, by condition, task and metric.

The paper's grid comes to sixty million documents. What they share, keys, names and weights, is held once; a document
of its own costs the eight bytes of its value.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from shadowcore.errors import ArtifactError
from shadowcore.schemas import CONDITION, MEASURED, OUTCOMES

Row = dict[str, Any]

CONDITION_COLUMNS = [*CONDITION, *MEASURED]
TASK_KEYS = ["task", "fewshot", "metric"]
KEYS = [*CONDITION_COLUMNS, *TASK_KEYS]
ACCURACY_METRICS = ("acc", "acc_norm")
PERPLEXITIES = {"nll": "token_perplexity", "word_nll": "word_perplexity", "byte_nll": "byte_perplexity"}


@dataclass(frozen=True, eq=False)
class Documents:
    """One condition, task and metric; arrays (n,), ordered by the documents' names, which are numbered in `names`.

    articles: numbers of what the documents are from; a document that names no article is one itself.
    """

    keys: Row
    names: np.ndarray
    articles: np.ndarray
    value: np.ndarray
    weight: np.ndarray


def grouped(parts: Iterable[pa.Table | pd.DataFrame], numbers: dict[str, int] | None = None) -> list[Documents]:
    """The documents in tables of schema OUTCOMES, of the metrics here; ArtifactError for a table with other columns.

    numbers: of the documents' names; shared by calls whose documents are compared with each other.
    """
    numbers = {} if numbers is None else numbers
    shared: dict[bytes, np.ndarray] = {}
    found: dict[tuple, list[tuple[np.ndarray, ...]]] = {}

    def once(array: np.ndarray) -> np.ndarray:
        return shared.setdefault(array.tobytes(), array)

    for part in parts:
        for keys, names, articles, value, weight in _split(_table(part), numbers):
            found.setdefault(keys, []).append((once(names), once(articles), value, once(weight)))
    texts = np.array(list(numbers), dtype=object)
    groups = []
    for keys, pieces in found.items():
        arrays = pieces[0]
        if len(pieces) > 1:  # one condition in several tables
            arrays = [np.concatenate(columns) for columns in zip(*pieces, strict=True)]
            order = np.lexsort((arrays[2], texts[arrays[0]].astype(str)))
            arrays = [array[order] for array in arrays]
        groups.append(Documents(dict(zip(KEYS, keys, strict=True)), *arrays))
    return groups


def main_calibration(texts: Iterable[str | None]) -> str | None:
    """The calibration text of most conditions, the first by name of several: other draws of it have fewer."""
    known = Counter(sorted(text for text in texts if text is not None))
    return known.most_common(1)[0][0] if known else None


def _table(part: pa.Table | pd.DataFrame) -> pa.Table:
    """Rows of known metrics, in the schema's columns and types."""
    table = pa.Table.from_pandas(part, preserve_index=False) if isinstance(part, pd.DataFrame) else part
    if missing := set(OUTCOMES.columns) - set(table.column_names):
        raise ArtifactError(
            f"outcomes: no column {sorted(missing)}; it must have the columns of schema '{OUTCOMES.schema}'"
        )
    try:
        table = table.select(list(OUTCOMES.columns)).cast(OUTCOMES.arrow)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ArtifactError(
            f"outcomes: {str(error).splitlines()[0]}; types must be those of schema '{OUTCOMES.schema}'"
        ) from None
    known = pa.array([*ACCURACY_METRICS, *PERPLEXITIES])
    table = table.filter(pc.is_in(table["metric"], known))
    if table["document"].null_count:
        raise ArtifactError("outcomes: a document has no name; rows of different conditions are paired by it")
    return table


def _split(table: pa.Table, numbers: dict[str, int]) -> Iterator[tuple[tuple, *tuple[np.ndarray, ...]]]:
    """Keys, names, articles, values and weights of every group of a table; new names are numbered in `numbers`."""
    codes, choices = zip(*(_coded(table[name]) for name in KEYS), strict=True)
    group = np.zeros(len(table), np.int64)
    for column, known in zip(codes, choices, strict=True):
        if len(known) > 1:
            group = np.unique(group * len(known) + column, return_inverse=True)[1]
    document, names = _coded(table["document"])
    article, articles = _coded(pc.coalesce(table["article"], table["document"]))
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    number, article_number = (
        np.array([numbers.setdefault(name, len(numbers)) for name in known], np.int32) for known in (names, articles)
    )
    value, weight = (table[name].to_numpy() for name in ("value", "weight"))
    order = np.lexsort((value, rank[document], group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else ():
        keys = tuple(known[column[rows[0]]] for column, known in zip(codes, choices, strict=True))
        yield keys, number[document[rows]], article_number[article[rows]], value[rows], weight[rows]


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """A column as places (n,) in the list of its distinct values, None among them."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
