"""The benchmarks of the literature: read their documents, and make lm-eval's tasks of them.

Documents are read once, from the hub or from a folder of Parquet files, and cut to a seeded subset, on which every
condition of a study is measured. Prompts, choices and metrics come from
the task files of the released lm-eval; only the data set is replaced.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from shadowcore import artifacts, table_reading
from shadowcore.errors import ArtifactError, ConfigError, SourceError, one_of
from shadowcore.paragraphs import one_paragraph, visible
from shadowcore.stock_tasks import BENCHMARKS, Document

FEWSHOT_SEED = 1234  # lm-eval's own default: which examples a prompt shows
SCHEMA = "benchmark/1"
SPLIT, MARK = "_split", "_mark"  # columns that we add to those of the data set
OFFLINE_DIR = "evaluation.offline_dir"  # the key of the configuration that names the folder


def check(name: str, offline_dir: str | None, fewshot: int = 0, limit: int | None = None) -> None:
    """Raise SourceError or ConfigError unless a folder has the splits of a benchmark with enough documents.

    The evaluated split needs `limit` documents; prompts with `fewshot` examples need more than that in the training
    split. Only footers are read, and the hub is not accessed.
    """
    benchmark = BENCHMARKS[one_of(name, BENCHMARKS, "evaluation.tasks")]
    if offline_dir is None:
        return
    _require_limit(name, limit, _check_split(name, benchmark.split, offline_dir, OFFLINE_DIR))
    if fewshot and benchmark.train is not None and not benchmark.rolling:
        require_pool(name, fewshot, _check_split(name, benchmark.train, offline_dir, OFFLINE_DIR))


def read(
    name: str, split: str, offline_dir: str | None, where: str = OFFLINE_DIR
) -> tuple[list[Document], str | None, str]:
    """The documents of one split with the columns that the task reads, their licence if known, and their origin.

    They come from `<offline_dir>/<name>/<split>.parquet`, or without a folder from the hub at its newest commit.
    Raises SourceError or ConfigError if the folder (its key is `where`), the split or a column is missing, if there are
    no documents, or if the task cannot use a value.
    """
    benchmark = BENCHMARKS[name]
    place = f"{name}, split {split}"
    if offline_dir is None:
        dataset, config = benchmark.hub
        commit = table_reading.commit_of(dataset)
        documents, licence = table_reading.of_hub(dataset, config, split, commit, benchmark.columns, place)
        origin = f"Hugging Face hub, {dataset} at {commit}"
    else:
        path = _file(name, split, offline_dir, where)
        documents = table_reading.of_file(path, benchmark.columns, place)
        licence, origin = None, f"local folder {Path(offline_dir).expanduser().name}"
    _require_documents(name, split, origin, len(documents))
    for number, document in enumerate(documents):
        if wrong := benchmark.wrong(document):
            column, allowed = wrong
            value = table_reading.shown(document[column])
            raise SourceError(f"{place}, row {number}: column '{column}' holds {value}; it must hold {allowed}")
    return documents, licence, origin


def _file(name: str, split: str, offline_dir: str, key: str) -> Path:
    folder = Path(offline_dir).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"{key}: '{offline_dir}' is not a folder; it must be a folder with <task>/<split>.parquet, as "
            "`shadowcore fetch` makes it"
        )
    return folder / name / f"{split}.parquet"


def _check_split(name: str, split: str, offline_dir: str, key: str) -> int:
    """The number of documents of a split in a folder; raises an error unless it has the task's columns."""
    path = _file(name, split, offline_dir, key)
    count = table_reading.check_file(path, BENCHMARKS[name].columns, f"{name}, split {split}")
    _require_documents(name, split, str(path), count)
    return count


def _require_documents(name: str, split: str, origin: str, count: int) -> None:
    if not count:
        raise SourceError(f"{name}: the split {split} from {origin} has no documents")


def _require_limit(name: str, limit: int | None, count: int) -> None:
    if limit is not None and limit > count:
        raise ConfigError(f"evaluation.limit.{name}: {limit} is too large; there are {count} documents")


def require_pool(name: str, shots: int, count: int) -> None:
    """Raise ConfigError if a training split has too few documents for prompts with `shots` examples."""
    if shots and count <= shots:  # lm-eval draws one more, in case the evaluated document is among them
        raise ConfigError(
            f"evaluation.fewshot: {shots} examples of {name} need {shots + 1} training documents, and there are {count}"
        )


def prepared(path: Path) -> list[Document]:
    """The rows of a benchmark's file by `prepare-benchmark`; ArtifactError if it lacks a column."""
    table = artifacts.read_table(path, SCHEMA)
    needed = [*BENCHMARKS[one_of(path.stem, BENCHMARKS, str(path))].columns, SPLIT]
    if missing := [name for name in needed if name not in table.column_names]:
        raise ArtifactError(f"{path}: no column '{missing[0]}'; delete the file and run the study again")
    return table.to_pylist()


def subset(name: str, documents: Sequence[Document], limit: int | None, seed: int) -> dict[int, Document]:
    """`limit` documents by their row numbers, in the order of a hash of seed and content; all in their order for None.

    The documents of a smaller limit are the first of a larger one.
    """
    numbered = enumerate(documents)
    if limit is None:
        return dict(numbered)
    _require_limit(name, limit, len(documents))
    return dict(
        sorted(numbered, key=lambda item: hashlib.sha256(f"{seed} {json.dumps(item[1])}".encode()).digest())[:limit]
    )


def task(name: str, documents: Sequence[Document], pool: Sequence[Document] = (), shots: int = 0):
    """lm-eval's task (a ConfigurableTask) over these documents, with `shots` examples from `pool` in prompts."""
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml  # also reads `include:` of a task file

    require_pool(name, shots, len(pool))
    benchmark = BENCHMARKS[name]
    splits = {benchmark.split: datasets.Dataset.from_list(list(documents))}
    if pool:
        splits["train"] = datasets.Dataset.from_list(list(pool))
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / benchmark.file) | {
        "custom_dataset": lambda **kwargs: splits,
        "training_split": "train" if pool else None,
        "validation_split": "validation" if benchmark.split == "validation" else None,
        "test_split": "test" if benchmark.split == "test" else None,
        "num_fewshot": shots,
    }
    lm_eval_task = ConfigurableTask(config=config)
    lm_eval_task.set_fewshot_seed(FEWSHOT_SEED)
    return lm_eval_task


def examples(name: str, split: str, documents: Sequence[Document], rows: Iterable[int] | None = None) -> list[str]:
    """Each document as text: its prompt and the right answer, as in a few-shot prompt.

    rows: row number of each document in its split, for messages; counted from 0 by default. Raises SourceError for a
    document that the task cannot make a prompt of, and for a choice or an answer without a visible character.
    """
    places = list(range(len(documents)) if rows is None else rows)
    texts: list[str] = []
    try:
        lm_eval_task = task(name, documents)  # already fails for a wrong first document
        for document in lm_eval_task.eval_docs:
            texts.append(_example(lm_eval_task, document))
    except (LookupError, TypeError, ValueError) as error:
        place = f"{name}, split {split}, row {places[len(texts)]}"
        raise SourceError(f"{place}: the task cannot make a prompt of this document ({error})") from None
    return texts


def _example(lm_eval_task, document: Document) -> str:
    prompt, target = lm_eval_task.doc_to_text(document), lm_eval_task.doc_to_target(document)
    choices = lm_eval_task.doc_to_choice(document) if lm_eval_task.config.doc_to_choice is not None else None
    if isinstance(prompt, int):  # as in winogrande: the choices are beginnings with a common end
        prompt = choices[prompt]
    elif choices is not None and isinstance(target, int):
        target = choices[target]
    elif choices is not None and target not in choices:
        raise ValueError(f"'{target}' is not among the choices {choices}")
    for number, choice in enumerate(choices or []):
        if not visible(choice):
            raise ValueError(f"choice {number} is {choice!r}; a choice must not be empty, because it would always win")
    if not visible(target):
        raise ValueError(f"the answer is {target!r}; an answer must not be empty")
    return f"{prompt}{lm_eval_task.config.target_delimiter}{target}".strip()


@dataclass(frozen=True)
class BenchmarkText:
    """A text for in-task calibration: a benchmark's training split, with `together` examples per document."""

    KIND: ClassVar[str] = "benchmark"
    task: str
    offline_dir: str | None = None
    together: int = 16

    def check(self) -> None:
        """Raise ConfigError or SourceError unless the task has a training split, also in the folder if one is given."""
        train = BENCHMARKS[one_of(self.task, BENCHMARKS, "source.task")].train
        if train is None:
            allowed = ", ".join(sorted(name for name, benchmark in BENCHMARKS.items() if benchmark.train))
            raise ConfigError(f"source.task: {self.task} has no training split; allowed tasks are {allowed}")
        if self.together < 1:
            raise ConfigError(f"source.together: {self.together} is too small; it must be 1 or more")
        if self.offline_dir is not None:
            _check_split(self.task, train, self.offline_dir, "source.offline_dir")

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        self.check()
        train = BENCHMARKS[self.task].train
        documents, licence, origin = read(self.task, train, self.offline_dir, "source.offline_dir")
        # each example is one paragraph, the unit that `check-disjoint` compares
        texts = [one_paragraph(example) for example in examples(self.task, train, documents)]
        parts = [texts[start : start + self.together] for start in range(0, len(texts), self.together)]
        titles = (f"{self.task} {train}, from example {number * self.together}" for number in range(len(parts)))
        return list(zip(titles, map("\n\n".join, parts), strict=True)), licence, origin
