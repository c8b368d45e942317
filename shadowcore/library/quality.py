"""Measure the quality of a model or its sparse view: perplexity of texts, and benchmarks through lm-eval.

The computation is that of a study's stage `evaluate` under protocol `token`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from shadowcore import benchmarks
from shadowcore.errors import ConfigError, one_of
from shadowcore.library.checks import at_least, documents_of, fitted, require_model, window_length
from shadowcore.library.sparse import SparseCausalLM
from shadowcore.measure import statistics
from shadowcore.measure.group import Group
from shadowcore.measure.perplexity import document_losses
from shadowcore.measure.sparsity import SparseModel
from shadowcore.report.outcomes import ACCURACY_METRICS, PERPLEXITIES
from shadowcore.stock_tasks import BENCHMARKS
from shadowcore.texts import cutting

Result = dict[str, Any]  # value, stderr, low, high, n
ROLLING_TOKENS = 2048  # longest window of a task that is the perplexity of whole documents
BATCHED = 256  # tokens that a request is taken to have, for the size of a batch
SEED = 0  # of the order of windows and of a benchmark's subset


def perplexity(
    model: torch.nn.Module | SparseCausalLM, tokenizer, texts: Iterable[str], window_tokens: int | None = None,
    batch: int = 4,
) -> Result:  # fmt: skip
    """Measure the perplexity of texts under a transformers model (dense) or its sparse view.

    Each text is cut into windows of `window_tokens` tokens (by default 128, or the model's positions if they are
    fewer); tokens after the last full window do not count. The first token of a window is not predicted. batch: windows
    in one pass.

    Returns value, stderr, the 95 % interval (low, high; over texts), and n, the number of texts with a window. stderr,
    low and high are None for one text. Raises ConfigError if no text is long enough for a window.
    """
    sparse = _harness_model(model)
    at_least(1, batch=batch)
    length, tokenizer = window_length(sparse.sizes, window_tokens), fitted(tokenizer, sparse.sizes)
    documents = documents_of(texts)
    windows = cutting.windows(documents, tokenizer, length, None, SEED)
    if not windows:
        raise ConfigError(
            f"texts: none of {len(documents)} texts has window_tokens ({length}) tokens; use longer texts, or fewer "
            "window_tokens"
        )
    rows = _alone(sparse, lambda group: document_losses(group, windows, batch))
    rows.sort(key=lambda row: row["document"])
    return statistics.perplexity(*_columns(rows))._asdict()


def evaluate(
    model: torch.nn.Module | SparseCausalLM, tokenizer, tasks: Sequence[str], fewshot: int = 0,
    limit: int | None = None, offline_dir: str | None = None, batch: int = 16,
) -> dict[str, dict[str, Result]]:  # fmt: skip
    """Measure benchmarks of a transformers model (dense) or its sparse view, through lm-eval's tasks.

    tasks: names from `shadowcore.stock_tasks.BENCHMARKS`, such as ["piqa", "wikitext"]. fewshot: examples per prompt.
    limit: most documents of each task, a seeded subset; all by default. offline_dir: a folder with
    <task>/<split>.parquet, as `shadowcore fetch` makes it; by default the Hugging Face hub. batch: requests in one
    pass.

    Returns, for each task and metric, value, stderr, the 95 % interval (low, high) and n, the number of documents.
    """
    sparse = _harness_model(model)
    at_least(1, batch=batch, **({} if limit is None else {"limit": limit}))
    at_least(0, fewshot=fewshot)
    if isinstance(tasks, str) or not tasks:
        raise ConfigError(f'tasks: {tasks!r} is not allowed; it must be a list of names, such as ["piqa"]')
    for name in tasks:
        benchmark = BENCHMARKS[one_of(name, BENCHMARKS, "tasks")]
        if fewshot and (benchmark.rolling or benchmark.train is None):
            raise ConfigError(f"fewshot: {fewshot} is not allowed for {name}, which has no examples; it must be 0")
    from shadowcore.measure.questions import Questions  # imported here, because lm-eval takes seconds to import

    tokenizer, results = fitted(tokenizer, sparse.sizes), {}
    for name in dict.fromkeys(tasks):
        task, positions = _task(name, fewshot, limit, offline_dir), sparse.sizes.positions
        longest = min(ROLLING_TOKENS, positions) if BENCHMARKS[name].rolling else positions
        questions = Questions(sparse.model, tokenizer, [task], batch * min(longest, BATCHED), longest)
        results[name] = _estimates(_alone(sparse, questions.outcomes))
    return results


def _task(name: str, fewshot: int, limit: int | None, offline_dir: str | None):
    """lm-eval's task over the documents of a benchmark."""
    one = BENCHMARKS[name]
    documents = benchmarks.read(name, one.split, offline_dir, "offline_dir")[0]
    chosen = benchmarks.subset(name, documents, None if limit is None else min(limit, len(documents)), SEED)
    pool = benchmarks.read(name, one.train, offline_dir, "offline_dir")[0] if fewshot else []
    return benchmarks.task(name, list(chosen.values()), pool, fewshot)


def _alone(sparse: SparseModel, measure: Callable[[Group], dict[str, Any]]) -> Any:
    """The result of a measurement for a single condition; its error is raised."""
    group = Group({"": sparse})
    found = measure(group)
    for error in group.failed.values():
        raise error
    return found[""]


def _estimates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Result]:
    """Metric by metric, the estimate over documents."""
    found = {}
    for metric in dict.fromkeys(row["metric"] for row in rows):
        values, weights = _columns([row for row in rows if row["metric"] == metric])
        if metric in ACCURACY_METRICS:
            found[metric] = statistics.accuracy(values)._asdict()
        elif metric in PERPLEXITIES:
            found[PERPLEXITIES[metric]] = statistics.perplexity(values, weights)._asdict()
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights (n,) of outcomes."""
    return tuple(np.array([row[name] for row in rows], float) for name in ("value", "weight"))


def _harness_model(model: torch.nn.Module | SparseCausalLM) -> SparseModel:
    """A model as the evaluation harness runs it: masked under protocol `token`, or dense."""
    if not isinstance(model, SparseCausalLM):
        require_model(model)
        return SparseModel(model, None)
    model.require_open()
    return SparseModel(model.model, model.masks)
