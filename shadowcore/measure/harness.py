"""Everything that touches lm-eval: a sparse model as an lm-eval model, and tasks on our own data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import datasets
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from shadowcore.errors import ConfigError
from shadowcore.measure.sparsity import Context, SparseModel, no_context
from shadowcore.models.prefixes import Prefixes

Request = tuple[tuple[str, str], list[int], list[int]]  # (texts, context ids, continuation ids)
Row = tuple[list[int], list[int]]  # context and continuation ids

datasets.disable_progress_bars()
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about defaults we rely on


class SparseLM(HFLM):
    """A `SparseModel` behind lm-eval's interface: HFLM's tokenisation, our own batches.

    HFLM pads on the right and passes no lengths on, so "the last token" of a row may be padding; here
    every row's context and continuation are known, and masks apply where continuation tokens are
    predicted, or at all positions of the row under a protocol that masks prompts.
    """

    def __init__(self, sparse: SparseModel, tokenizer, batch: int, max_length: int):
        super().__init__(pretrained=sparse.model, tokenizer=tokenizer, batch_size=batch, max_length=max_length)
        self.sparse = sparse

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused: lm-eval's `use_cache` looks answers up by prompt, and gives one model's answers for another's."""
        raise ConfigError("use_cache: lm-eval's cache ignores the weights and the masks; leave it out")

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is it what greedy decoding says) of each request's continuation.

        Requests with one context, as the choices of a question are, run it once where it is dense.
        """
        questions: dict[tuple[int, ...], list[int]] = {}
        for i, request in enumerate(requests):
            questions.setdefault(tuple(self._fitted(request)[0]), []).append(i)
        sharing = questions.items() if self.sparse.dense_prompt else ()
        shared = [chosen for context, chosen in sharing if len(context) > 1 and len(chosen) > 1]
        alone = [[i] for i in sorted(set(range(len(requests))) - set(chain.from_iterable(shared)))]
        answers: list[Any] = [None] * len(requests)
        for groups, score in ((shared, self._score_shared), (alone, self._score)):
            for chosen in self._batches(groups, lambda i: sum(map(len, self._fitted(requests[i])))):
                rows = [self._fitted(requests[i]) for i in chosen]
                for i, answer in zip(chosen, score(rows), strict=True):
                    answers[i] = answer
        return answers

    def _fitted(self, request: Request) -> Row:
        """Context and continuation as long as the model allows; what goes is the context's beginning."""
        _, context, continuation = request
        room = self.max_length + 1 - len(continuation)
        return context[max(0, len(context) - room) :], continuation

    def _batches(self, groups: list[list[int]], length: Callable[[int], int]) -> Iterator[list[int]]:
        """Whole groups, as many as a batch holds (at least one), the longest first: what does not fit fails at once."""
        batch: list[int] = []
        for group in sorted(groups, key=lambda group: -max(map(length, group))):
            if batch and len(batch) + len(group) > self.batch_size:
                yield batch
                batch = []
            batch += group
        if batch:
            yield batch

    def _score_shared(self, rows: Sequence[Row]) -> Iterator[tuple[float, bool]]:
        """As `_score`, every different context run once. Masks apply from its last token on, so that stays a row's."""
        contexts = sorted({tuple(context) for context, _ in rows})
        prefixes = Prefixes(self.sparse.model, [context[:-1] for context in contexts])
        which = torch.tensor([contexts.index(tuple(context)) for context, _ in rows], device=self.device)
        tails = [(context[-1:], continuation) for context, continuation in rows]
        length = max(len(continuation) for _, continuation in rows)
        return self._score(tails, lambda: prefixes.continued(which, length))

    def _score(self, rows: Sequence[Row], context: Context = no_context) -> Iterator[tuple[float, bool]]:
        firsts = [len(before) for before, _ in rows]
        tokens = [torch.tensor(before + continuation) for before, continuation in rows]
        ids = pad_sequence(tokens, batch_first=True).to(self.device)
        positions = torch.arange(ids.shape[1])
        spans = zip(firsts, tokens, strict=True)
        scored = torch.stack([(positions >= first) & (positions < len(row)) for first, row in spans])
        earliest = min(firsts) - 1
        logits = self.sparse.logits(ids, scored.to(self.device), earliest, context)
        for first, row, row_logits in zip(firsts, tokens, logits, strict=True):
            continuation = row[first:].to(self.device)
            predictions = functional.log_softmax(row_logits[first - 1 - earliest : len(row) - 1 - earliest].float(), -1)
            likelihood = predictions.gather(1, continuation[:, None]).double().sum()
            yield likelihood.item(), bool((predictions.argmax(-1) == continuation).all())


def true_continuation(documents: Sequence[dict]) -> ConfigurableTask:
    """Our own task: which of four continuations follows the context? Three are from other articles."""
    return ConfigurableTask(
        config={
            "task": "true_continuation",
            "custom_dataset": lambda **kwargs: {"test": datasets.Dataset.from_list(list(documents))},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_target": "label",
            "doc_to_choice": "choices",
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            "metadata": {"version": 1},
        }
    )


def outcomes(
    sparse: SparseModel, tokenizer, tasks: Sequence[ConfigurableTask], batch: int, max_length: int
) -> list[dict[str, Any]]:
    """One row per document and metric of each task: task, fewshot, document (hash), metric, value, weight."""
    model = SparseLM(sparse, tokenizer, batch, max_length)
    # not simple_evaluate: it can cache answers, asks the hub about the model, and reports on the machine for seconds
    results = evaluate(
        model, {"tasks": {task.config.task: task for task in tasks}}, log_samples=True, bootstrap_iters=0
    )
    shots = {task.config.task: task.config.num_fewshot or 0 for task in tasks}
    return [
        {"task": name, "fewshot": shots[name], "document": sample["doc_hash"]}
        | {"metric": metric, "value": value, "weight": weight}
        for name, samples in results["samples"].items()
        for sample in samples
        for metric, value, weight in _values(model, sample)
    ]


def _values(model: SparseLM, sample: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Metric, value and weight of one document; a perplexity is kept as what it is made of, nats and a count."""
    for metric in sample["metrics"]:
        value = sample[metric]
        if metric in ("word_perplexity", "byte_perplexity"):
            yield metric.replace("perplexity", "nll"), -value[0], value[1]
        elif metric == "bits_per_byte":  # byte perplexity on another scale; its likelihood is every rolling metric's
            yield "nll", -value[0], len(model.tok_encode(sample["target"]))
        elif metric == "perplexity":  # of one last word
            yield "word_nll", -value, 1
        else:
            yield metric, float(value), 1
