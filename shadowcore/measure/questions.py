"""Tasks of lm-eval, our own among them, and the outcome of each of their documents under every condition."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import datasets
import lm_eval.utils
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from shadowcore.measure.group import Group
from shadowcore.measure.harness import SparseLM, Tick
from shadowcore.stock_tasks import BENCHMARKS

datasets.disable_progress_bars()
# it compiles a task's templates anew for every document, which takes longer than small models do to answer
lm_eval.utils.env.from_string = cache(lm_eval.utils.env.from_string)


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


class Questions:
    """Tasks of lm-eval that are asked together, with their requests made once for all conditions."""

    def __init__(self, model, tokenizer, tasks: Sequence[ConfigurableTask], batch_tokens: int, max_length: int):
        self.lm, self.tasks = SparseLM(model, tokenizer, batch_tokens, max_length), tasks
        for task in tasks:
            task.build_all_requests()
            # `evaluate` would build them anew, prompt by prompt, for every condition
            task.build_all_requests = lambda **_: None
        self.requests = [request for task in tasks for request in task.instances]

    def __len__(self) -> int:
        return len(self.requests)

    def outcomes(self, group: Group, tick: Tick = lambda share: None) -> dict[str, list[dict[str, Any]]]:
        """Rows of every condition by its name, one per document and metric of each task, see `_rows`."""
        self.lm.answer(group, self.requests, tick)
        tokens = cache(lambda text: len(self.lm.tok_encode(text)))
        found = group.run(lambda name, sparse: self._rows(name, tokens))
        self.lm.answers.clear()
        return found

    def _rows(self, name: str, tokens: Callable[[str], int]) -> list[dict[str, Any]]:
        """Rows of OUTCOMES, without the condition: what lm-eval makes of its answers, by document and metric."""
        self.lm.turn = name
        for request in self.requests:
            request.resps, request.filtered_resps = [], {}
        # not simple_evaluate: it can cache answers, asks the hub about the model, and describes the machine for seconds
        results = evaluate(
            self.lm, {"tasks": {task.config.task: task for task in self.tasks}}, log_samples=True, bootstrap_iters=0
        )
        shots = {task.config.task: task.config.num_fewshot or 0 for task in self.tasks}
        shared = {name: {"task": name, "fewshot": shots[name]} for name in shots}
        shared |= {name: row | {"data": name} for name, row in shared.items() if name in BENCHMARKS}
        return [
            shared[name] | _document(name, sample) | {"metric": metric, "value": value, "weight": weight}
            for name, samples in results["samples"].items()
            for sample in samples
            for metric, value, weight in _values(sample, tokens)
        ]


def _document(task: str, sample: dict[str, Any]) -> dict[str, str | None]:
    """Its name, the first digits of its hash, and the article of a question of ours, which begins the question's id."""
    article = sample["doc"]["id"].rpartition(":")[0] if task == "true_continuation" else None
    return {"document": sample["doc_hash"][:16], "article": article}


def _values(sample: dict[str, Any], tokens: Callable[[str], int]) -> Iterator[tuple[str, float, int]]:
    """Metric, value and weight of one document; a perplexity is kept as what it is made of, nats and a count."""
    for metric in sample["metrics"]:
        value = sample[metric]
        if metric in ("word_perplexity", "byte_perplexity"):
            yield metric.replace("perplexity", "nll"), -value[0], value[1]
        elif metric == "bits_per_byte":  # byte perplexity on another scale; its likelihood is every rolling metric's
            yield "nll", -value[0], tokens(sample["target"])
        elif metric == "perplexity":  # of one last word
            yield "word_nll", -value, 1
        else:
            yield metric, float(value), 1
