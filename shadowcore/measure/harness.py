"""Sparse models behind lm-eval's interface of a model."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from shadowcore.errors import ConfigError, SourceError
from shadowcore.measure.group import Group
from shadowcore.measure.sparsity import Context, SparseModel, no_context
from shadowcore.models.prefixes import continuing

Request = tuple[tuple[str, str], list[int], list[int]]  # (texts, context ids, continuation ids)
Row = tuple[list[int], list[int]]  # context and continuation ids
Answer = tuple[float, bool]
Tick = Callable[[float], None]
SHOWN = 40  # characters of a text in a message

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about defaults we rely on


class SparseLM(HFLM):
    """A model under a group of conditions, behind lm-eval's interface of one model.

    `answer` computes the answers of all conditions. lm-eval then reads those of the condition `turn`.

    Two things differ from HFLM. HFLM encodes texts with the special tokens that a tokenizer adds: an EOS after a
    context shifts the beginning of the continuation, and the BOS of a whole document is predicted after another BOS.
    Here texts are encoded without special tokens. One BOS is put before them if the tokenizer adds one, or if there is
    no context. HFLM pads rows on the right without passing on their lengths. Here the context and the continuation of
    every row are known, so masks apply where continuation tokens are predicted, or at all positions of the row under a
    protocol that masks prompts. Windows of a whole document have no prompt. Their first tokens, which repeat the
    window before and which lm-eval calls context, are masked, too.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, batch_tokens: int, max_length: int):
        super().__init__(pretrained=model, tokenizer=tokenizer, max_length=max_length)
        self.batch_tokens = batch_tokens
        self.answers: dict[str, dict[int, Any]] = {}  # by condition and id() of the request
        self.turn = ""

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused: lm-eval's `use_cache` looks answers up by prompt, and gives one model's answers for another's."""
        raise ConfigError("use_cache: lm-eval's cache ignores the weights and the masks; leave it out")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The tokens of the text, without special tokens; lm-eval's argument for these is ignored."""
        return self.tokenizer.encode(string, add_special_tokens=False)

    @cached_property
    def added_bos(self) -> list[int]:
        """The special token that the tokenizer puts before a text: a list of one token or none."""
        probe = "a"
        first = self.tokenizer.encode(probe)[:1]
        return first if first != self.tok_encode(probe)[:1] else []

    @property
    def start(self) -> list[int]:
        """The token before the first token of a text: the BOS that the tokenizer adds, or else BOS, or else EOS."""
        return self.added_bos or [self.prefix_token_id]

    def answer(self, group: Group, requests: Sequence[Instance], tick: Tick = lambda share: None) -> None:
        """Answer requests under every condition of a group, batch by batch.

        Raises SourceError, naming task and document, for a continuation or a text without tokens, or for a continuation
        longer than the model. tick: called after each batch with its share, 1 for all requests under one condition.
        """
        self.answers = {name: {} for name in group.alive}
        for kind, likelihoods in (("loglikelihood", self._choices), ("loglikelihood_rolling", self._texts)):
            wanted = [request for request in requests if request.request_type == kind]
            share = len(wanted) / max(1, len(requests))
            found = likelihoods(group, wanted, lambda part, share=share: tick(share * part)) if wanted else {}
            for name, answers in found.items():
                self.answers[name] |= {id(request): one for request, one in zip(wanted, answers, strict=True)}

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[Any]:
        """(log-likelihood in nats, is it what greedy decoding says) of each request's continuation of its context.

        Of a rolling request, the log-likelihood of its text: every token once, in windows as long as the model allows.
        """
        return [self.answers[self.turn][id(request)] for request in requests]

    loglikelihood_rolling = loglikelihood

    def _choices(self, group: Group, requests: Sequence[Instance], tick: Tick) -> dict[str, list[Answer]]:
        return self._likelihoods(group, [(request.args, *self._row(request)) for request in requests], tick)

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

    def _texts(self, group: Group, requests: Sequence[Instance], tick: Tick) -> dict[str, list[float]]:
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            if not ids:
                raise SourceError(f"{_place(request)}: the text has no tokens; at least one is needed")
            pairs = get_rolling_token_windows(ids, *self.start, self.max_length, context_len=1)
            new = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += new
            owners += [number] * len(new)
        totals = {}
        for name, answers in self._likelihoods(group, windows, tick).items():
            totals[name] = [0.0] * len(requests)
            for number, (likelihood, _) in zip(owners, answers, strict=True):
                totals[name][number] += likelihood
        return totals

    def _likelihoods(
        self, group: Group, requests: Sequence[Request], tick: Tick = lambda share: None
    ) -> dict[str, list[Answer]]:
        """(log-likelihood in nats, is it what greedy decoding says) of each request, by condition.

        Contexts run first where they may, densely, once for all conditions; requests with one context, as a question's
        choices are, run it once. A condition's batches are the same whichever others are in the group.
        """
        rows = list(map(self._fitted, requests))
        windows: list[list[int]] = []
        questions: dict[tuple[int, ...], list[int]] = {}
        for i, (request, (context, _)) in enumerate(zip(requests, rows, strict=True)):
            if request[0] is None:  # lm-eval has texts of questions alone
                windows.append([i])
            else:
                questions.setdefault(tuple(context), []).append(i)
        shared = [chosen for context, chosen in questions.items() if len(context) > 1]
        answers: dict[str, list[Any]] = {name: [None] * len(requests) for name in group.alive}
        for part, prompted in (
            (group.where(lambda sparse: sparse.prompts_may_run_first), shared),
            (group.where(lambda sparse: not sparse.prompts_may_run_first), []),
        ):
            beginning = [[i] for i in sorted(set(range(len(requests))) - set(chain.from_iterable(prompted + windows)))]
            for groups, score in (
                (prompted, self._score_continuations), (beginning, self._score),
                (windows, partial(self._score, prompted=False)),
            ):  # fmt: skip
                for chosen in self._batches(groups, rows):
                    if not part.alive:
                        break
                    found = score(part, [rows[i] for i in chosen])
                    for name, likelihoods in found.items():
                        for i, answer in zip(chosen, likelihoods, strict=True):
                            answers[name][i] = answer
                    tick(len(found) * len(chosen) / len(requests))
        return {name: answers[name] for name in group.alive}

    def _fitted(self, request: Request) -> Row:
        """Context and continuation, without the beginning of the context if they are longer than the model allows."""
        _, context, continuation = request
        room = self.max_length + 1 - len(continuation)
        return context[max(0, len(context) - room) :], continuation

    def _batches(self, groups: list[list[int]], rows: Sequence[Row]) -> Iterator[list[int]]:
        """Whole groups, as many as a batch holds (at least one).

        A batch holds `batch_tokens` tokens, counting every row as long as its longest. Continuations are padded to the
        longest of their batch under every condition, so those of a batch are about equally long. The longest come
        first, because what does not fit into memory should fail early.
        """

        def lengths(group: list[int]) -> tuple[int, int]:
            own = max(len(rows[i][1]) for i in group)
            return _two_digits(own), max(sum(map(len, rows[i])) for i in group)

        batch: list[int] = []
        own = longest = 0
        sized = [(lengths(group), group) for group in groups]
        for (own_here, longest_here), group in sorted(sized, key=itemgetter(0), reverse=True):
            if batch and (own_here != own or (len(batch) + len(group)) * longest > self.batch_tokens):
                yield batch
                batch = []
            own, longest = own_here, longest if batch else longest_here
            batch += group
        if batch:
            yield batch

    def _score_continuations(self, group: Group, rows: Sequence[Row]) -> dict[str, list[Answer]]:
        """As `_score`, every different context run once. Masks apply from its last token on, so that stays a row's."""
        contexts = sorted({tuple(context) for context, _ in rows})
        place = {context: index for index, context in enumerate(contexts)}
        which = torch.tensor([place[tuple(context)] for context, _ in rows], device=self.device)
        length = max(len(continuation) for _, continuation in rows)
        context = continuing(self.model, [context[:-1] for context in contexts], which, length)
        return self._score(group, [(context[-1:], continuation) for context, continuation in rows], context)

    def _score(
        self, group: Group, rows: Sequence[Row], context: Context = no_context, prompted: bool = True
    ) -> dict[str, list[Answer]]:
        firsts = torch.tensor([len(before) for before, _ in rows])[:, None]
        ends = torch.tensor([len(before) + len(continuation) for before, continuation in rows])[:, None]
        ids = pad_sequence([torch.tensor(before + continuation) for before, continuation in rows], batch_first=True)
        positions = torch.arange(ids.shape[1])
        scored = ((positions >= firsts) & (positions < ends)).to(self.device)
        masked = scored if prompted else ((positions > 0) & (positions < ends)).to(self.device)
        ids, earliest = ids.to(self.device), int(firsts.min())
        targets, wanted = ids[:, earliest:], scored[:, earliest:]

        def answers(name: str, sparse: SparseModel) -> list[Answer]:
            logits = sparse.logits(ids, masked, earliest - 1, context)  # that predict the tokens from `earliest` on
            predictions = functional.log_softmax(logits.float(), -1)
            likelihoods = predictions.gather(-1, targets[..., None]).squeeze(-1).double().where(wanted, 0).sum(-1)
            greedy = ((predictions.argmax(-1) == targets) | ~wanted).all(-1)
            return list(zip(likelihoods.tolist(), greedy.tolist(), strict=True))

        return group.run(answers)


def _two_digits(number: int) -> int:
    """A number rounded down to its first two binary digits: 1, 2, 3, 4, 6, 8, 12, 16 ..."""
    places = max(0, number.bit_length() - 2)
    return number >> places << places


def _place(request: Instance) -> str:
    """Task and document of a request, for messages."""
    return f"{request.task_name}, document {request.doc_id}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
