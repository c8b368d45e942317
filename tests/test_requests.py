"""What of a request is scored: the text's own tokens after one BOS, whatever special tokens a tokenizer adds."""

import pytest
import torch
from conftest import family_model, refused
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from shadowcore import benchmarks
from shadowcore.measure import harness
from shadowcore.measure.group import Group
from shadowcore.measure.questions import Questions, true_continuation
from shadowcore.measure.sparsity import SparseModel
from shadowcore.models.tokenizers import byte_tokenizer

LONGEST = 64
TEMPLATES = {"nothing": "$A", "bos": "<s> $A", "bos twice": "<s> <s> $A", "eos": "$A </s>", "both": "<s> $A </s>"}
PAIRS = [("a context", " and its end"), ("", "alone"), ("  ", "after blanks"), ("x\n ", " y"), ("c" * 90, " cut")]
PAGES = ["One window of a page.", "Several windows of a page. " * 6]


def tokenizer_of(template):
    """A byte tokenizer with BOS and EOS, which puts special tokens around a text as the template says."""
    made = byte_tokenizer()
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    special = [("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
    made._tokenizer.post_processor = TemplateProcessing(single=TEMPLATES[template], special_tokens=special)
    return made


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return family_model("llama", num_hidden_layers=3, vocab_size=260)


def dense(model):
    return Group({"": SparseModel(model, None)})


def answers(model, tokenizer, requests):
    """Of the dense model, by our harness."""
    lm = harness.SparseLM(model, tokenizer, 3 * LONGEST, LONGEST)
    lm.answer(dense(model), requests)
    return getattr(lm, requests[0].request_type)(requests)


def rows_of(model, tokenizer, task):
    return Questions(model, tokenizer, [task], 2 * LONGEST, LONGEST).outcomes(dense(model))[""]


def instances(kind, texts):
    return [Instance(kind, {}, one, 0, ("piqa", number, 1)) for number, one in enumerate(texts)]


def by_hand(model, tokenizer, context, continuation):
    """Nats of the continuation's tokens, of Hugging Face's logits, after BOS, if the tokenizer adds it, and context."""
    bos = [tokenizer.bos_token_id]
    before = tokenizer.encode(context.rstrip(), add_special_tokens=False)
    ids = tokenizer.encode(context + continuation, add_special_tokens=False)
    own = len(ids) - len(before)
    if tokenizer.encode("a")[:1] == bos or not before:
        ids = bos + ids
    ids = torch.tensor([ids[-LONGEST - 1 :]])
    with torch.no_grad():
        predicted = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
    return predicted[0, -own:].sum().item()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_continuation_is_scored_as_its_own_tokens(model, template):
    tokenizer = tokenizer_of(template)
    found = answers(model, tokenizer, instances("loglikelihood", PAIRS))
    for (context, continuation), (likelihood, _) in zip(PAIRS, found, strict=True):
        assert likelihood == pytest.approx(by_hand(model, tokenizer, context, continuation), rel=1e-5)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_page_is_scored_as_its_own_tokens_after_one_bos(model, template):
    pages, tokenizer = [{"page": page} for page in PAGES], tokenizer_of(template)
    task = benchmarks.task("wikitext", pages)
    rows = rows_of(model, tokenizer, task)
    found = [row for row in rows if row["metric"] == "nll"]
    assert [row["weight"] for row in found] == [len(page) for page in PAGES]  # a byte, a token
    assert found[0]["value"] == pytest.approx(-by_hand(model, tokenizer, "", PAGES[0]), rel=1e-5)
    plain = rows_of(model, tokenizer_of("nothing"), task)
    assert [row["value"] for row in found] == [row["value"] for row in plain if row["metric"] == "nll"]


@pytest.mark.parametrize("template", ["nothing", "bos"])
def test_a_tokenizer_without_surprises_gives_the_values_of_lm_eval(model, template):
    tokenizer = tokenizer_of(template)
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=LONGEST)
    longest = [("q", "x" * LONGEST), ("<s>begins with BOS", " itself"), ("", "<s>and so"), ("b" * 63, "d" * 63)]
    asked = instances("loglikelihood", [pair for pair in [*PAIRS, *longest] if template == "bos" or pair[0] != "  "])
    for found, expected in zip(answers(model, tokenizer, asked), stock.loglikelihood(asked), strict=True):
        assert found[0] == pytest.approx(expected[0], rel=1e-5) and found[1] == expected[1]
    if template == "nothing":  # with "bos" lm-eval predicts BOS after BOS
        asked = instances("loglikelihood_rolling", [(page,) for page in PAGES])
        assert answers(model, tokenizer, asked) == pytest.approx(stock.loglikelihood_rolling(asked), rel=1e-5)


@pytest.mark.parametrize("template", ["nothing", "both"])
@pytest.mark.parametrize(("pair", "message"), [
    (("a context", ""), "no tokens of its own"), (("", ""), "no tokens of its own"),
    (("a context", "\u200b"), "no tokens of its own"),
    (("a context", "x" * (LONGEST + 1)), "has 65 tokens, which is too long; the model's positions allow 64"),
])  # fmt: skip
def test_a_continuation_of_no_tokens_or_too_many_is_refused_by_task_and_document(model, template, pair, message):
    tokenizer = tokenizer_of(template)
    tokenizer._tokenizer.normalizer = normalizers.Replace("\u200b", "")  # as many tokenizers do
    refused(f"piqa, document 1: .*{message}", answers, model, tokenizer, instances("loglikelihood", [PAIRS[0], pair]))


def test_a_page_without_tokens_is_refused_by_task_and_document(model):
    tokenizer = tokenizer_of("both")
    tokenizer._tokenizer.normalizer = normalizers.Replace("\u00b7", "")
    for page in ("", "\u00b7"):
        asked = instances("loglikelihood_rolling", [("a",), (page,)])
        refused("piqa, document 1: the text has no tokens", answers, model, tokenizer, asked)


def test_a_choice_of_our_own_task_longer_than_the_model_is_refused(model):
    rows = [{"context": "one two", "choices": ["a", "b", "c", "d" * 70], "label": 0}]
    refused("true_continuation, document 0: .*too long", rows_of, model, byte_tokenizer(), true_continuation(rows))
