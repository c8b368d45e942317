"""The benchmarks' tasks in lm-eval: their files, their data sets on the hub, and the allowed values of each column."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from shadowcore.paragraphs import visible
from shadowcore.table_reading import Column

Document = dict[str, Any]
Wrong = tuple[str, str]  # a column, and what is allowed in it


def _are_words(value: Any) -> bool:
    return isinstance(value, str) and visible(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_are_words, value))


def _are_choices(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    texts, labels = value.get("text"), value.get("label")
    return _are_texts(texts) and _are_texts(labels) and 2 <= len(texts) == len(labels) == len(set(labels))


TEXT = Column("text", lambda value: isinstance(value, str))  # may be empty, as in some prompts
WORDS = Column("text that is not empty", _are_words)  # an empty choice would always win
ENDINGS = Column("a list of four texts that are not empty", lambda value: _are_texts(value) and len(value) == 4)
CHOICES = Column(
    "an object of two lists, `text` and `label`, equally long, without empty texts and without equal labels",
    _are_choices,
)
# True is 1 to Python
NUMBER = Column("the integer 0 or 1", lambda value: type(value) is int and value in (0, 1))


def _one_of(*words: str) -> Column:
    return Column(f"one of the texts {', '.join(map(repr, words))}", lambda value: value in words)


def _key_is_a_label(document: Document, stripped: bool) -> Wrong | None:
    key, labels = document["answerKey"], document["choices"]["label"]
    if (key.lstrip() if stripped else key) in labels:
        return None
    return "answerKey", f"one of the labels of its choices, {', '.join(map(repr, labels))}"


def _has_a_blank(document: Document) -> Wrong | None:
    _, blank, rest = document["sentence"].partition("_")
    return None if blank and visible(rest) else ("sentence", "text with a blank, `_`, and more text after it")


@dataclass(frozen=True)
class Benchmark:
    """A task of lm-eval: its file, its data set on the hub, the columns that its prompts read, the evaluated split."""

    file: str
    hub: tuple[str, str | None]
    columns: Mapping[str, Column]
    split: str
    chance: float | None = None  # accuracy of guessing; None where the metric is a perplexity
    train: str | None = "train"
    rolling: bool = False  # perplexity of whole documents, window after window
    wrong: Callable[[Document], Wrong | None] = lambda document: None  # checks several columns together


SUPER_GLUE = "aps/super_glue"
QUESTION = {"choices": CHOICES, "answerKey": TEXT}
BENCHMARKS = {
    "piqa": Benchmark(
        "piqa/piqa.yaml", ("baber/piqa", None),
        {"goal": TEXT, "sol1": WORDS, "sol2": WORDS, "label": NUMBER}, "validation", 1 / 2,
    ),
    "copa": Benchmark(
        "super_glue/copa/default.yaml", (SUPER_GLUE, "copa"),
        {"premise": TEXT, "question": _one_of("cause", "effect"), "choice1": WORDS, "choice2": WORDS, "label": NUMBER},
        "validation", 1 / 2,
    ),
    "openbookqa": Benchmark(
        "openbookqa/openbookqa.yaml", ("allenai/openbookqa", "main"), {"question_stem": TEXT, **QUESTION}, "test",
        1 / 4, wrong=partial(_key_is_a_label, stripped=True),  # as the task's file does
    ),
    "winogrande": Benchmark(
        "winogrande/default.yaml", ("allenai/winogrande", "winogrande_xl"),
        {"sentence": TEXT, "option1": WORDS, "option2": WORDS, "answer": _one_of("1", "2")}, "validation", 1 / 2,
        wrong=_has_a_blank,
    ),
    "rte": Benchmark(
        "glue/rte/default.yaml", ("nyu-mll/glue", "rte"),
        {"sentence1": TEXT, "sentence2": TEXT, "label": NUMBER}, "validation", 1 / 2,
    ),
    "hellaswag": Benchmark(
        "hellaswag/hellaswag.yaml", ("Rowan/hellaswag", None),
        {"activity_label": TEXT, "ctx_a": TEXT, "ctx_b": TEXT, "endings": ENDINGS, "label": _one_of(*"0123")},
        "validation", 1 / 4,
    ),
    "arc_easy": Benchmark(
        "arc/arc_easy.yaml", ("allenai/ai2_arc", "ARC-Easy"), {"question": TEXT, **QUESTION}, "test", 1 / 4,
        wrong=partial(_key_is_a_label, stripped=False),
    ),
    "wikitext": Benchmark(
        "wikitext/wikitext.yaml", ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"),
        {"page": WORDS}, "test", rolling=True,
    ),
    "lambada_openai": Benchmark(
        "lambada/lambada_openai.yaml", ("EleutherAI/lambada_openai", "default"), {"text": WORDS}, "test", train=None
    ),
    "boolq": Benchmark(
        "super_glue/boolq/default.yaml", (SUPER_GLUE, "boolq"),
        {"passage": TEXT, "question": TEXT, "label": NUMBER}, "validation", 1 / 2,
    ),
}  # fmt: skip
