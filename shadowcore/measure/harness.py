"""Everything that touches lm-eval: a sparse model as an lm-eval model, and tasks on our own data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from itertools import chain
from typing import Any

import datasets
import lm_eval.utils
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from shadowcore.errors import ConfigError, SourceError
from shadowcore.measure.sparsity import Context, SparseModel, no_context
from shadowcore.models.prefixes import Prefixes

Request = tuple[tuple[str, str], list[int], list[int]]  # (texts, context ids, continuation ids)
Row = tuple[list[int], list[int]]  # context and continuation ids
SHOWN = 40  # characters of a text in a message

datasets.disable_progress_bars()
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about defaults we rely on
# it compiles a task's templates anew for every document, which takes longer than small models do to answer
lm_eval.utils.env.from_string = cache(lm_eval.utils.env.from_string)


class SparseLM(HFLM):
    """A `SparseModel` behind lm-eval's interface: our own batches, and HFLM's tokens where those are a text's own.

    HFLM encodes with the special tokens that a tokenizer adds: an EOS at the end of a context shifts where the
    continuation begins, and the BOS of a whole document is predicted after another one. Here texts are encoded
    without special tokens, and BOS goes in front, once, if the tokenizer adds it or nothing else is there.

    HFLM pads on the right and passes no lengths on, so "the last token" of a row may be padding; here
    every row's context and continuation are known, and masks apply where continuation tokens are
    predicted, or at all positions of the row under a protocol that masks prompts. Windows of a whole document have no
    prompt: what they repeat of the window before, which lm-eval calls their context, is masked like the rest.
    """

    def __init__(self, sparse: SparseModel, tokenizer, batch: int, max_length: int):
        super().__init__(pretrained=sparse.model, tokenizer=tokenizer, batch_size=batch, max_length=max_length)
        self.sparse = sparse

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused: lm-eval's `use_cache` looks answers up by prompt, and gives one model's answers for another's."""
        raise ConfigError("use_cache: lm-eval's cache ignores the weights and the masks; leave it out")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The tokens of the text itself, without special ones, whatever lm-eval asks for."""
        return self.tokenizer.encode(string, add_special_tokens=False)

    @cached_property
    def added_bos(self) -> list[int]:
        """The token that the tokenizer puts in front of a text, if it does: none or one."""
        probe = "a"
        first = self.tokenizer.encode(probe)[:1]
        return first if first != self.tok_encode(probe)[:1] else []

    @property
    def start(self) -> list[int]:
        """What the first token of a text is predicted from: the BOS that is added, or else BOS, or else EOS."""
        return self.added_bos or [self.prefix_token_id]

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is it what greedy decoding says) of each request's continuation of its context.

        Raises SourceError, naming task and document, for a continuation without tokens or longer than the model.
        """
        return self._loglikelihood_tokens([(request.args, *self._row(request)) for request in requests])

    def _row(self, request: Instance) -> Row:
        """Tokens of context and continuation, split as lm-eval does: spaces between them go with the continuation."""
        context, continuation = request.args
        stripped = context.rstrip()
        whole, before = self.tok_encode(context + continuation), self.tok_encode(stripped)
        start = self.added_bos if before else self.start
        before, whole = (ids if ids[: len(start)] == start else start + ids for ids in (before, whole))
        own = whole[len(before) :]
        if not own:
            raise SourceError(
                f"{_place(request)}: the continuation {_shown(continuation)} has no tokens of its own after "
                f"{_shown(context[-SHOWN:])}, so it would always win; at least one token is needed"
            )
        if len(own) > self.max_length:
            raise SourceError(
                f"{_place(request)}: the continuation {_shown(continuation)} has {len(own)} tokens, which is too long; "
                f"the model's positions allow {self.max_length}"
            )
        return before, own

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each request's text: every token once, in windows as long as the model allows.

        Raises SourceError, naming task and document, for a text without tokens.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            if not ids:
                raise SourceError(f"{_place(request)}: the text has no tokens; at least one is needed")
            pairs = get_rolling_token_windows(ids, *self.start, self.max_length, context_len=1)
            new = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += new
            owners += [number] * len(new)
        totals = [0.0] * len(requests)
        for number, (likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += likelihood
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is it what greedy decoding says) of each request's continuation.

        Contexts run first where they may, densely; requests with one context, as a question's choices are, run it once.
        """
        windows: list[list[int]] = []
        questions: dict[tuple[int, ...], list[int]] = {}
        for i, request in enumerate(requests):
            if request[0] is None:  # lm-eval has texts of questions alone
                windows.append([i])
            else:
                questions.setdefault(tuple(self._fitted(request)[0]), []).append(i)
        prompted = questions.items() if self.sparse.prompts_may_run_first else ()
        continuing = [chosen for context, chosen in prompted if len(context) > 1]
        beginning = [[i] for i in sorted(set(range(len(requests))) - set(chain.from_iterable(continuing + windows)))]
        answers: list[Any] = [None] * len(requests)
        for groups, score in (
            (continuing, self._score_continuations), (beginning, self._score), (windows, self._score_windows)
        ):  # fmt: skip
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

    def _score_continuations(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """As `_score`, every different context run once. Masks apply from its last token on, so that stays a row's."""
        contexts = sorted({tuple(context) for context, _ in rows})
        prefixes = Prefixes(self.sparse.model, [context[:-1] for context in contexts])
        place = {context: index for index, context in enumerate(contexts)}
        which = torch.tensor([place[tuple(context)] for context, _ in rows], device=self.device)
        tails = [(context[-1:], continuation) for context, continuation in rows]
        length = max(len(continuation) for _, continuation in rows)
        return self._score(tails, lambda: prefixes.continued(which, length))

    def _score_windows(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        return self._score(rows, prompted=False)

    def _score(
        self, rows: Sequence[Row], context: Context = no_context, prompted: bool = True
    ) -> list[tuple[float, bool]]:
        firsts = torch.tensor([len(before) for before, _ in rows])[:, None]
        ends = torch.tensor([len(before) + len(continuation) for before, continuation in rows])[:, None]
        ids = pad_sequence([torch.tensor(before + continuation) for before, continuation in rows], batch_first=True)
        positions = torch.arange(ids.shape[1])
        scored = ((positions >= firsts) & (positions < ends)).to(self.device)
        masked = scored if prompted else ((positions > 0) & (positions < ends)).to(self.device)
        ids, earliest = ids.to(self.device), int(firsts.min())
        logits = self.sparse.logits(ids, masked, earliest - 1, context)  # that predict the tokens from `earliest` on
        targets, wanted = ids[:, earliest:], scored[:, earliest:]
        predictions = functional.log_softmax(logits.float(), -1)
        likelihoods = predictions.gather(-1, targets[..., None]).squeeze(-1).double().where(wanted, 0).sum(-1)
        greedy = ((predictions.argmax(-1) == targets) | ~wanted).all(-1)
        return list(zip(likelihoods.tolist(), greedy.tolist(), strict=True))


def _place(request: Instance) -> str:
    """Task and document of a request, for messages."""
    return f"{request.task_name}, document {request.doc_id}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


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
