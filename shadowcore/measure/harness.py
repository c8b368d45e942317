"""Everything that touches lm-eval: a sparse model as an lm-eval model, and tasks on our own data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from shadowcore.errors import ConfigError
from shadowcore.measure.sparsity import SparseModel

Request = tuple[tuple[str, str], list[int], list[int]]  # (texts, context ids, continuation ids)

datasets.disable_progress_bars()
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about defaults we rely on


class SparseLM(HFLM):
    """A `SparseModel` behind lm-eval's interface: HFLM's tokenisation, our own batches.

    HFLM pads on the right and passes no lengths on, so "the last token" of a row may be padding; here
    every row's context and continuation are known, and masks apply where continuation tokens are
    predicted.
    """

    def __init__(self, sparse: SparseModel, tokenizer, batch: int, max_length: int):
        super().__init__(pretrained=sparse.model, tokenizer=tokenizer, batch_size=batch, max_length=max_length)
        self.sparse = sparse

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused: lm-eval's `use_cache` looks answers up by prompt, and gives one model's answers for another's."""
        raise ConfigError("use_cache: lm-eval's cache ignores the weights and the masks; leave it out")

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is it what greedy decoding says) of each request's continuation."""
        # longest first: a batch that does not fit fails at once, and rows of a batch are alike in length
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        answers: list[Any] = [None] * len(requests)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, answer in zip(chosen, self._score([requests[i] for i in chosen]), strict=True):
                answers[i] = answer
        return answers

    def _score(self, requests: Sequence[Request]) -> Iterator[tuple[float, bool]]:
        rows, firsts = [], []
        for _, context, continuation in requests:
            row = (context + continuation)[-(self.max_length + 1) :]
            rows.append(torch.tensor(row))
            firsts.append(len(row) - len(continuation))
        ids = pad_sequence(rows, batch_first=True).to(self.device)
        positions = torch.arange(ids.shape[1])
        spans = zip(firsts, rows, strict=True)
        scored = torch.stack([(positions >= first) & (positions < len(row)) for first, row in spans])
        earliest = min(firsts) - 1
        logits = self.sparse.logits(ids, scored.to(self.device), first_kept=earliest)
        for row, first, row_logits in zip(rows, firsts, logits, strict=True):
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
