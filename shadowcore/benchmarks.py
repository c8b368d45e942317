"""The benchmarks of the literature: where their documents come from, and lm-eval's stock tasks over them.

Documents are read once, from the hub or from a folder of Parquet files, and cut to a seeded subset; those of all
benchmarks are gathered in one file, on which every condition of a study is measured. Prompts, choices and metrics
are those of the task files that the released lm-eval ships: only the data set is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from shadowcore import artifacts, tabular
from shadowcore.errors import ArtifactError, ConfigError, SourceError, one_of

FEWSHOT_SEED = 1234  # lm-eval's own default: which examples a prompt shows
SCHEMA = "benchmark/1"
GATHERED = "benchmarks/1"
SPLIT, MARK = "_split", "_mark"  # our columns beside the data set's
Document = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One stock task: its file in lm-eval, the hub's data set, the columns its prompts read, the split evaluated."""

    file: str
    hub: tuple[str, str | None]
    columns: tuple[str, ...]
    split: str
    chance: float | None = None  # accuracy of guessing; None where the metric is a perplexity
    train: str | None = "train"
    rolling: bool = False  # perplexity of whole documents, window after window


SUPER_GLUE = "aps/super_glue"
BENCHMARKS = {
    "piqa": Benchmark("piqa/piqa.yaml", ("baber/piqa", None), ("goal", "sol1", "sol2", "label"), "validation", 1 / 2),
    "copa": Benchmark(
        "super_glue/copa/default.yaml", (SUPER_GLUE, "copa"),
        ("premise", "question", "choice1", "choice2", "label"), "validation", 1 / 2,
    ),
    "openbookqa": Benchmark(
        "openbookqa/openbookqa.yaml", ("allenai/openbookqa", "main"),
        ("question_stem", "choices", "answerKey"), "test", 1 / 4,
    ),
    "winogrande": Benchmark(
        "winogrande/default.yaml", ("allenai/winogrande", "winogrande_xl"),
        ("sentence", "option1", "option2", "answer"), "validation", 1 / 2,
    ),
    "rte": Benchmark(
        "glue/rte/default.yaml", ("nyu-mll/glue", "rte"), ("sentence1", "sentence2", "label"), "validation", 1 / 2
    ),
    "hellaswag": Benchmark(
        "hellaswag/hellaswag.yaml", ("Rowan/hellaswag", None),
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"), "validation", 1 / 4,
    ),
    "arc_easy": Benchmark(
        "arc/arc_easy.yaml", ("allenai/ai2_arc", "ARC-Easy"), ("question", "choices", "answerKey"), "test", 1 / 4
    ),
    "wikitext": Benchmark(
        "wikitext/wikitext.yaml", ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"),
        ("page",), "test", rolling=True,
    ),
    "lambada_openai": Benchmark(
        "lambada/lambada_openai.yaml", ("EleutherAI/lambada_openai", "default"), ("text",), "test", train=None
    ),
    "boolq": Benchmark(
        "super_glue/boolq/default.yaml", (SUPER_GLUE, "boolq"), ("passage", "question", "label"), "validation", 1 / 2
    ),
}  # fmt: skip


def read(name: str, split: str, offline_dir: str | None) -> tuple[list[Document], str | None, str]:
    """The documents of one split with the columns the task reads, their licence if named, and where they are from.

    From `<offline_dir>/<name>/<split>.parquet`, or from the hub at its newest commit where no folder is given.
    Raises SourceError or ConfigError, in one sentence, for a missing folder, split or column, or no documents.
    """
    one = BENCHMARKS[name]
    if offline_dir is None:
        dataset, config = one.hub
        commit = tabular.commit_of(dataset)
        found, licence = tabular.of_hub(dataset, config, split, commit, one.columns, f"columns of {name}")
        origin = f"Hugging Face hub, {dataset} at {commit}"
    else:
        folder = Path(offline_dir).expanduser()
        if not folder.is_dir():
            raise SourceError(
                f"evaluation.offline_dir: '{offline_dir}' is not a folder; one with <task>/<split>.parquet would fit, "
                "such as `shadowcore fetch` makes"
            )
        found = tabular.of_file(folder / name / f"{split}.parquet", one.columns, f"columns of {name}")
        licence, origin = None, f"local folder {folder.name}"
    if not found:
        raise SourceError(f"{name}: its {split} split from {origin} has no documents")
    return found, licence, origin


def gather(files: Sequence[Path]) -> pa.Table:
    """One row with a column per benchmark: the rows of the files that `prepare-benchmark` wrote, <task>.parquet.

    Raises ArtifactError if one is another benchmark's.
    """
    columns = {}
    for path in files:
        table = artifacts.read_table(path, SCHEMA)
        needed = [*BENCHMARKS[one_of(path.stem, BENCHMARKS, str(path))].columns, SPLIT]
        if missing := [name for name in needed if name not in table.column_names]:
            raise ArtifactError(f"{path}: no column '{missing[0]}'; delete the file and run the study again")
        rows = table.to_struct_array().combine_chunks()
        columns[path.stem] = pa.ListArray.from_arrays([0, len(rows)], rows)
    return pa.table(columns)


def gathered(path: Path) -> dict[str, list[Document]]:
    """The rows of every benchmark in the file that `gather-benchmarks` wrote."""
    table = artifacts.read_table(path, GATHERED)
    return {name: table[name][0].as_py() for name in table.column_names}


def subset(documents: Sequence[Document], limit: int | None, seed: int) -> list[Document]:
    """`limit` documents, chosen by a hash of seed and content: a larger limit keeps those of a smaller one."""
    if limit is None:
        return list(documents)
    if limit > len(documents):
        raise ConfigError(f"evaluation.limit: {limit} is more than the {len(documents)} documents there are")
    return sorted(documents, key=lambda one: hashlib.sha256(f"{seed} {json.dumps(one)}".encode()).digest())[:limit]


def task(name: str, documents: Sequence[Document], pool: Sequence[Document] = (), shots: int = 0):
    """lm-eval's stock task (a ConfigurableTask) over these documents, with `shots` examples from `pool` in prompts."""
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml  # what `include:` in a task file goes through

    if len(pool) <= shots and shots:  # lm-eval draws one more, should the evaluated document be among them
        raise ConfigError(f"evaluation.fewshot: {shots} examples of {name} need {shots + 1} documents to draw from")
    one = BENCHMARKS[name]
    splits = {one.split: datasets.Dataset.from_list(list(documents))}
    if pool:
        splits["train"] = datasets.Dataset.from_list(list(pool))
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / one.file) | {
        "custom_dataset": lambda **kwargs: splits,
        "training_split": "train" if pool else None,
        "validation_split": "validation" if one.split == "validation" else None,
        "test_split": "test" if one.split == "test" else None,
        "num_fewshot": shots,
    }
    made = ConfigurableTask(config=config)
    made.set_fewshot_seed(FEWSHOT_SEED)
    return made


def examples(name: str, documents: Sequence[Document]) -> list[str]:
    """Each document as text: its prompt and the right answer, as they stand in a few-shot prompt."""
    for number, document in enumerate(documents):
        if empty := [column for column, value in document.items() if value is None]:
            raise SourceError(f"{name}, document {number}: nothing in column '{empty[0]}'; every document needs it")
    try:
        made = task(name, documents)
        return [_example(made, document) for document in made.eval_docs]
    except (LookupError, TypeError, ValueError) as error:
        raise SourceError(f"{name}: a document is not one that its prompts can be made of ({error})") from None


def _example(made, document: Document) -> str:
    prompt, target = made.doc_to_text(document), made.doc_to_target(document)
    choices = made.doc_to_choice(document) if made.config.doc_to_choice is not None else None
    if isinstance(prompt, int):  # the choices are beginnings, and all end alike
        prompt = choices[prompt]
    elif choices is not None and isinstance(target, int):
        target = choices[target]
    elif choices is not None and target not in choices:
        raise ValueError(f"'{target}' is none of the choices {choices}")
    return f"{prompt}{made.config.target_delimiter}{target}".strip()


@dataclass(frozen=True)
class BenchmarkText:
    """A text made of a benchmark's training split, `together` examples a document: in-task calibration."""

    KIND: ClassVar[str] = "benchmark"
    task: str
    offline_dir: str | None = None
    together: int = 16

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        one = BENCHMARKS[one_of(self.task, BENCHMARKS, "source.task")]
        if one.train is None:
            raise ConfigError(f"source.task: {self.task} has no training split; another task would fit")
        if self.together < 1:
            raise ConfigError(f"source.together: {self.together} found; 1 or more would fit")
        documents, licence, origin = read(self.task, one.train, self.offline_dir)
        # one example is one paragraph, so that `check-disjoint` finds it again
        texts = ["\n".join(filter(None, example.split("\n"))) for example in examples(self.task, documents)]
        parts = [texts[start : start + self.together] for start in range(0, len(texts), self.together)]
        titles = (f"{self.task} {one.train}, from example {number * self.together}" for number in range(len(parts)))
        return list(zip(titles, map("\n\n".join, parts), strict=True)), licence, origin


def mark(text: str) -> str:
    """What a text is recognised by: the hash of its words, whatever white space is between them."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
