"""The benchmarks of the literature: where their documents come from, and lm-eval's stock tasks over them.

Documents are read once, from the hub or from a folder of Parquet files, and cut to a seeded subset; those of all
benchmarks are gathered in one file, on which every condition of a study is measured. Prompts, choices and metrics
are those of the task files that the released lm-eval ships: only the data set is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from shadowcore import artifacts, table_reading
from shadowcore.errors import ArtifactError, ConfigError, SourceError, one_of
from shadowcore.paragraphs import one_paragraph, visible
from shadowcore.stock_tasks import BENCHMARKS, Document

FEWSHOT_SEED = 1234  # lm-eval's own default: which examples a prompt shows
SCHEMA = "benchmark/1"
GATHERED = "benchmarks/1"
SPLIT, MARK = "_split", "_mark"  # our columns beside the data set's
OFFLINE_DIR = "evaluation.offline_dir"  # the key of the configuration that names the folder


def check(name: str, offline_dir: str | None, fewshot: int = 0, limit: int | None = None) -> None:
    """Raise SourceError or ConfigError, in one sentence, unless a folder holds what a benchmark needs.

    Reads footers alone: the evaluated split, with at least `limit` documents; where prompts show `fewshot` examples
    also the training split, with more than that. Of the hub nothing is asked.
    """
    one = BENCHMARKS[one_of(name, BENCHMARKS, "evaluation.tasks")]
    if offline_dir is None:
        return
    _require_limit(name, limit, _check_split(name, one.split, offline_dir, OFFLINE_DIR))
    if fewshot and one.train is not None and not one.rolling:
        require_pool(name, fewshot, _check_split(name, one.train, offline_dir, OFFLINE_DIR))


def read(
    name: str, split: str, offline_dir: str | None, key: str = OFFLINE_DIR
) -> tuple[list[Document], str | None, str]:
    """The documents of one split with the columns the task reads, their licence if named, and where they are from.

    From `<offline_dir>/<name>/<split>.parquet`, or from the hub at its newest commit where no folder is given.
    Raises SourceError or ConfigError, in one sentence, for a missing folder (named by `key`), split or column, no
    documents, or a value that the task has no use for.
    """
    one = BENCHMARKS[name]
    if offline_dir is None:
        dataset, config = one.hub
        commit = table_reading.commit_of(dataset)
        documents, licence = table_reading.of_hub(dataset, config, split, commit, one.columns, f"columns of {name}")
        origin = f"Hugging Face hub, {dataset} at {commit}"
    else:
        path = _file(name, split, offline_dir, key)
        documents = table_reading.of_file(path, one.columns, f"columns of {name}")
        licence, origin = None, f"local folder {Path(offline_dir).expanduser().name}"
    _require_documents(name, split, origin, len(documents))
    table_reading.check_rows(documents, one.columns, f"{name}, split {split}")
    for number, document in enumerate(documents):
        if wrong := one.wrong(document):
            column, allowed = wrong
            raise SourceError(
                table_reading.refusal(f"{name}, split {split}", number, column, document[column], allowed)
            )
    return documents, licence, origin


def _file(name: str, split: str, offline_dir: str, key: str) -> Path:
    folder = Path(offline_dir).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"{key}: '{offline_dir}' is not a folder; it must be a folder with <task>/<split>.parquet, such as "
            "`shadowcore fetch` makes"
        )
    return folder / name / f"{split}.parquet"


def _check_split(name: str, split: str, offline_dir: str, key: str) -> int:
    """The number of documents of a split in a folder whose columns are those of the task."""
    path = _file(name, split, offline_dir, key)
    count = table_reading.check_file(path, BENCHMARKS[name].columns, f"columns of {name}")
    _require_documents(name, split, str(path), count)
    return count


def _require_documents(name: str, split: str, origin: str, count: int) -> None:
    if not count:
        raise SourceError(f"{name}: its {split} split from {origin} has no documents")


def _require_limit(name: str, limit: int | None, count: int) -> None:
    if limit is not None and limit > count:
        raise ConfigError(f"evaluation.limit.{name}: {limit} is more than the {count} documents there are")


def require_pool(name: str, shots: int, count: int) -> None:
    """Raise ConfigError if a training split has too few documents to show `shots` of them in a prompt."""
    if shots and count <= shots:  # lm-eval draws one more, should the evaluated document be among them
        raise ConfigError(
            f"evaluation.fewshot: {shots} examples of {name} need {shots + 1} documents to draw from, and there are "
            f"{count}"
        )


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


def subset(name: str, documents: Sequence[Document], limit: int | None, seed: int) -> dict[int, Document]:
    """`limit` documents by their row numbers, in the order of a hash of seed and content; all, as they come, for None.

    A larger limit keeps those of a smaller one.
    """
    numbered = enumerate(documents)
    if limit is None:
        return dict(numbered)
    _require_limit(name, limit, len(documents))
    return dict(
        sorted(numbered, key=lambda one: hashlib.sha256(f"{seed} {json.dumps(one[1])}".encode()).digest())[:limit]
    )


def task(name: str, documents: Sequence[Document], pool: Sequence[Document] = (), shots: int = 0):
    """lm-eval's stock task (a ConfigurableTask) over these documents, with `shots` examples from `pool` in prompts."""
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml  # what `include:` in a task file goes through

    require_pool(name, shots, len(pool))
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


def examples(name: str, split: str, documents: Sequence[Document], rows: Iterable[int] | None = None) -> list[str]:
    """Each document as text: its prompt and the right answer, as they stand in a few-shot prompt.

    rows: where each document stands in its split, for messages; counted from 0 unless given. Raises SourceError for a
    document that the task makes no prompt of, or a choice or an answer without anything visible in it.
    """
    places = list(range(len(documents)) if rows is None else rows)
    texts: list[str] = []
    try:
        made = task(name, documents)  # which tries the first
        for document in made.eval_docs:
            texts.append(_example(made, document))
    except (LookupError, TypeError, ValueError) as error:
        place = f"{name}, split {split}, row {places[len(texts)]}"
        raise SourceError(f"{place}: no prompt can be made of it ({error})") from None
    return texts


def _example(made, document: Document) -> str:
    prompt, target = made.doc_to_text(document), made.doc_to_target(document)
    choices = made.doc_to_choice(document) if made.config.doc_to_choice is not None else None
    if isinstance(prompt, int):  # the choices are beginnings, and all end alike
        prompt = choices[prompt]
    elif choices is not None and isinstance(target, int):
        target = choices[target]
    elif choices is not None and target not in choices:
        raise ValueError(f"'{target}' is none of the choices {choices}")
    for number, choice in enumerate(choices or []):
        if not visible(choice):
            raise ValueError(f"choice {number} is {choice!r}; a choice must not be empty, because it would always win")
    if not visible(target):
        raise ValueError(f"the answer is {target!r}; an answer must not be empty")
    return f"{prompt}{made.config.target_delimiter}{target}".strip()


@dataclass(frozen=True)
class BenchmarkText:
    """A text made of a benchmark's training split, `together` examples a document: in-task calibration."""

    KIND: ClassVar[str] = "benchmark"
    task: str
    offline_dir: str | None = None
    together: int = 16

    def check(self) -> None:
        """Raise ConfigError or SourceError unless the task has a training split, which the folder, if any, holds."""
        one = BENCHMARKS[one_of(self.task, BENCHMARKS, "source.task")]
        if one.train is None:
            known = ", ".join(sorted(name for name, one in BENCHMARKS.items() if one.train))
            raise ConfigError(f"source.task: {self.task} has no training split; the tasks with one are {known}")
        if self.together < 1:
            raise ConfigError(f"source.together: {self.together} is too small; it must be 1 or more")
        if self.offline_dir is not None:
            _check_split(self.task, one.train, self.offline_dir, "source.offline_dir")

    def read(self) -> tuple[list[tuple[str, str]], str | None, str]:
        self.check()
        train = BENCHMARKS[self.task].train
        documents, licence, origin = read(self.task, train, self.offline_dir, "source.offline_dir")
        # one example is one paragraph, so that `check-disjoint` finds it again
        texts = [one_paragraph(example) for example in examples(self.task, train, documents)]
        parts = [texts[start : start + self.together] for start in range(0, len(texts), self.together)]
        titles = (f"{self.task} {train}, from example {number * self.together}" for number in range(len(parts)))
        return list(zip(titles, map("\n\n".join, parts), strict=True)), licence, origin
