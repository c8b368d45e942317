"""Rows of benchmarks and texts that nothing can be measured on: refused when they are prepared, by row and column."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused

from shadowcore import artifacts, benchmarks
from shadowcore.benchmarks import BENCHMARKS, BenchmarkText
from shadowcore.errors import ConfigError
from shadowcore.models.tokenizers import byte_tokenizer
from shadowcore.paragraphs import mark, paragraphs, visible
from shadowcore.stages import check_disjoint, inputs, prepare_benchmark, prepare_text
from shadowcore.stages.base import CARD_SCHEMA
from shadowcore.texts import cutting, sources
from shadowcore.texts.documents import Document
from shadowcore.texts.sources import FolderText, HubText, PackagedText

LETTERS = {"text": ["up", "down", "left"], "label": ["A", "B", "C"]}
GOOD = {
    "piqa": {"goal": "go", "sol1": "up", "sol2": "down", "label": 1},
    "copa": {"premise": "It fell.", "question": "cause", "choice1": "Wind.", "choice2": "Rain.", "label": 0},
    "openbookqa": {"question_stem": "where", "choices": LETTERS, "answerKey": " B"},
    "winogrande": {"sentence": "The _ fell.", "option1": "cup", "option2": "cat", "answer": "2"},
    "rte": {"sentence1": "It fell.", "sentence2": "It rose.", "label": 1},
    "hellaswag": {"activity_label": "Run", "ctx_a": "He ran.", "ctx_b": "", "endings": list("abcd"), "label": "3"},
    "arc_easy": {"question": "where", "choices": LETTERS | {"label": ["1", "2", "3"]}, "answerKey": "3"},
    "wikitext": {"page": " = Title = \n words . \n"},
    "lambada_openai": {"text": "the last word"},
    "boolq": {"passage": "It fell.", "question": "did it", "label": 1},
}
NUMBERS = [-1, 7, "left", None, True, 0.5]
LABELS = {
    **{(name, "label"): NUMBERS for name in ("piqa", "copa", "rte", "boolq")},
    ("hellaswag", "label"): ["-1", "4", "left", "", None, 3, True, 0.5],
    ("winogrande", "answer"): ["0", "3", "left", "", None, 1, True, 0.5],
    ("openbookqa", "answerKey"): ["D", "-1", "b", "", None, 1, True, 0.5],
    ("arc_easy", "answerKey"): ["4", "A", " 3", "", None, 1, True, 0.5],
}
EMPTY = ["", " \n", "\u200b", "\ufeff\u3000", "\u3164"]
CHOICES = {
    "piqa": lambda text: {"sol2": text}, "copa": lambda text: {"choice1": text},
    "openbookqa": lambda text: {"choices": LETTERS | {"text": ["up", text, "left"]}},
    "winogrande": lambda text: {"option2": text}, "hellaswag": lambda text: {"endings": ["a", "b", text, "d"]},
    "arc_easy": lambda text: {"choices": GOOD["arc_easy"]["choices"] | {"text": ["up", "down", text]}},
    "wikitext": lambda text: {"page": text}, "lambada_openai": lambda text: {"text": text},
}  # fmt: skip
OTHERS = {
    "bytes": (pa.binary(), b"up"), "lists": (pa.list_(pa.string()), ["up"]),
    "objects": (pa.struct([("a", pa.string())]), {"a": "up"}),
    "times": (pa.timestamp("ns"), datetime.datetime(2024, 1, 2)), "numbers": (pa.float64(), 1.5),
    "truth values": (pa.bool_(), True), "nothing": (pa.null(), None),
}  # fmt: skip


def write(folder, name, *rows, split=None):
    """A file of these rows, all columns of the types of the first row's values, unless a value has another type."""
    path = folder / name / f"{split or BENCHMARKS[name].split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        table = pa.Table.from_pylist(list(rows))
    except (pa.ArrowException, TypeError):  # a column of two types: only the wrong one is written
        table = pa.Table.from_pylist([rows[-1]] * len(rows))
    pq.write_table(table, path)
    return str(folder)


def prepare(folder, name, fewshot=0, limit=None):
    spec = prepare_benchmark.Spec(name, str(folder), limit, fewshot, 0)
    out = folder / "prepared" / f"{name}.parquet"
    prepare_benchmark.run(spec, prepare_benchmark.Inputs(), prepare_benchmark.Outputs(documents=out))
    return out


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_are_prepared(tmp_path, name):
    folder = write(tmp_path, name, GOOD[name], GOOD[name])
    benchmarks.check(name, folder)
    assert artifacts.read_table(prepare(tmp_path, name), benchmarks.SCHEMA).num_rows == 2


@pytest.mark.parametrize(
    ("name", "column", "value"), [(*place, value) for place, values in LABELS.items() for value in values]
)
def test_labels_that_are_none_are_refused(tmp_path, name, column, value):
    wrong = GOOD[name] | {column: value}
    write(tmp_path, name, GOOD[name], wrong)
    if BENCHMARKS[name].split != "train":  # examples for prompts are held to the same
        write(tmp_path / "shown", name, GOOD[name], GOOD[name])
        write(tmp_path / "shown", name, GOOD[name], wrong, split="train")
    for folder, shots in ((tmp_path, 0), (tmp_path / "shown", 1)):
        split = "train" if shots else BENCHMARKS[name].split
        refused([name, split, f"column '{column}'", "holds", "row ", "it must hold"], prepare, folder, name, shots)
        assert not (folder / "prepared").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, change(text)) for name, change in CHOICES.items() for text in EMPTY),
        ("hellaswag", {"endings": ["a", "b", "[header]", "d"]}),  # which the task removes
        ("hellaswag", {"endings": ["a", "b", "c"]}),
        ("winogrande", {"sentence": "No blank."}),
        ("winogrande", {"sentence": "It was the _"}),
        ("lambada_openai", {"text": "ends with a space "}),
        ("copa", {"question": "reason"}),
        ("openbookqa", {"choices": {"text": ["up", "down"], "label": ["A", "B", "C"]}}),
        ("openbookqa", {"choices": {"text": ["up", "down", "left"], "label": ["A", "B", "B"]}}),
        ("openbookqa", {"choices": {"text": ["up", None, "left"], "label": ["A", "B", "C"]}}),
        ("piqa", {"goal": None}),
    ],
)
def test_other_rows_that_are_no_question_are_refused_by_their_place_in_the_source(tmp_path, name, change):
    write(tmp_path, name, GOOD[name], GOOD[name] | change)
    for limit in (None, 2):  # a subset has an order of its own
        refused(f"{name}, split .*, row 1: ", prepare, tmp_path, name, limit=limit)


def test_a_benchmark_without_its_files_or_with_too_few_documents_is_refused_at_once(tmp_path):
    train = r"piqa.train.parquet: no such file"
    refused(train, BenchmarkText("piqa", str(tmp_path)).check)
    folder = write(tmp_path, "piqa", *[GOOD["piqa"]] * 2)
    benchmarks.check("piqa", folder)
    refused(train, benchmarks.check, "piqa", folder, fewshot=1)
    write(tmp_path, "piqa", *[GOOD["piqa"]] * 2, split="train")
    for limit, shots, message in (
        (3, 0, "evaluation.limit.piqa: 3 .*2 documents"),
        (2, 2, "evaluation.fewshot: 2 .*are 2"),
    ):
        refused(message, benchmarks.check, "piqa", folder, shots, limit)
        refused(message, prepare, tmp_path, "piqa", shots, limit)
    refused("evaluation.offline_dir: .* is not a folder", benchmarks.check, "piqa", str(tmp_path / "nowhere"))
    benchmarks.check("piqa", None, fewshot=1)  # the hub is not asked
    refused("did you mean 'piqa'", benchmarks.check, "pica", None)


@pytest.mark.parametrize("kind", OTHERS)
def test_columns_of_other_types_are_refused_by_check_and_by_reading(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arrow, value = OTHERS[kind]
    path = tmp_path / "piqa" / "validation.parquet"
    write(tmp_path, "piqa", GOOD["piqa"])
    table = pq.read_table(path).drop_columns("goal").append_column("goal", pa.array([value], arrow))
    pq.write_table(table, path)
    text, hub = FolderText(str(path), "goal"), HubText(str(path.parent), "validation", "0" * 40, "goal")
    attempts = [lambda: benchmarks.check("piqa", str(tmp_path)), lambda: prepare(tmp_path, "piqa")]
    for attempt in [*attempts, text.check, text.read, hub.read] if kind != "nothing" else attempts:
        refused(r"piqa.*: column 'goal' holds .*; it must hold text", attempt)


@pytest.mark.parametrize("choices", [
    pa.array([["up", "down"]]), pa.array([{"text": ["up", "down"]}]),
    pa.array([{"text": ["up", "down"], "label": [0, 1]}]),
    pa.StructArray.from_arrays([pa.array([LETTERS["text"]])] * 3, ["text", "label", "text"]),
], ids=lambda choices: str(choices.type)[:40])  # fmt: skip
def test_choices_of_another_layout_are_refused(tmp_path, choices):
    path = tmp_path / "arc_easy" / "test.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"question": ["where"], "choices": choices, "answerKey": ["A"]}), path)
    for attempt in (lambda: benchmarks.check("arc_easy", str(tmp_path)), lambda: prepare(tmp_path, "arc_easy")):
        refused("test.parquet.*: column 'choices' holds .*it must hold an object of two", attempt)


def test_text_in_other_layouts_is_text(tmp_path):
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()):
        table = pa.table({"text": pa.array(["one", None, "two"]).cast(kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        documents, card = sources.fetch(FolderText(str(tmp_path)))
        assert [one.text for one in documents] == ["one", "two"] and card["left_out"] == 1


def test_text_that_is_not_unicode_and_columns_of_one_name_are_refused_by_their_place(tmp_path):
    data = pa.array([b"one", b"\xff"]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(2, *data.buffers()[1:])
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), tmp_path / "e.parquet")
    for name, content in (
        ("b.txt", b"one \xff"), ("c.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n'),
        ("d.jsonl", b'{"text": "one"}\n{"text": "\\ud800"}\n'), ("f.jsonl", b'{"text": "a", "text": "b"}\n'),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    for name, message in (
        ("a.parquet", "row 1: column 'text' .*not UTF-8"), ("b.txt", "byte 4 is not UTF-8"),
        ("c.jsonl", "row 1: not JSON in UTF-8"), ("d.jsonl", r"row 1: character 0 is '\\ud800'"),
        ("e.parquet", "2 columns have the name 'text'"), ("f.jsonl", ".*2 columns have the name 'text'"),
    ):  # fmt: skip
        refused(f"{name}, {message}|{name}: {message}", sources.fetch, FolderText(str(tmp_path / name)))


# ---- sources


def test_folders_of_plain_text_and_of_json_lines_are_texts(tmp_path):
    plain, lines = tmp_path / "plain", tmp_path / "lines"
    plain.mkdir(), lines.mkdir()
    (plain / ".DS_Store").write_bytes(b"\xff")
    for number, text in enumerate(("first\r\n\r\npart", "second", " \n")):
        (plain / f"{number}.txt").write_bytes(text.encode())
    (lines / "a.jsonl").write_text('{"text": "first"}\n\n{"n": 1, "text": "second"}\n{"text": null}\n')
    documents, card = sources.fetch(FolderText(str(plain)))
    assert [(one.title, one.text) for one in documents] == [("0.txt", "first\r\n\r\npart"), ("1.txt", "second")]
    assert card["left_out"] == 1
    documents, card = sources.fetch(FolderText(str(lines)))
    assert [one.text for one in documents] == ["first", "second"] and card["left_out"] == 1
    assert [one.title for one in documents] == ["a.jsonl, row 0", "a.jsonl, row 2"]


@pytest.mark.parametrize(
    ("files", "column", "message"),
    [
        ({"a.csv": b"x", "b.csv": b"x", "README": b"x"}, "text", "source.path: .*found: 2 .csv, 1 without suffix.*txt"),
        ({"a.csv": b"x", "README.txt": b"x"}, "text", "source.path: .*found: 1 .csv, 1 .txt"),
        ({}, "text", "source.path: no Parquet files in .*found: no files"),
        ({"a.txt": b"x"}, "page", "source.column: 'page' .*a.txt is plain text"),
        ({"a.jsonl": b'{"page": "x"}'}, "text", "a.jsonl, row 0: no column 'text'.*page"),
        ({"a.jsonl": b'{"text": 3}'}, "text", "a.jsonl, row 0: column 'text' holds 3; it must hold text"),
        ({"a.jsonl": b'["text"]'}, "text", "a.jsonl, row 0: JSON that is not an object"),
        ({"a.jsonl": b"[" * 99999}, "text", "a.jsonl, row 0: not JSON"),
        ({"a.parquet": b"x"}, "text", "a.parquet: damaged Parquet"),
    ],
)
def test_other_folders_are_refused_by_check(tmp_path, files, column, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    refused(message, FolderText(str(tmp_path), column).check)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PackagedText("wikipedia"), "source.name: .*did you mean 'wikipedia-articles'"),
        (HubText("some/set", "train", "main"), "source.revision of some/set: 'main'"),
        (FolderText("nowhere"), "source.path: 'nowhere' does not exist"),
        (BenchmarkText("pica"), "source.task: .*did you mean 'piqa'"),
        (BenchmarkText("lambada_openai"), "source.task: lambada_openai has no training split"),
        (BenchmarkText("piqa", together=0), "source.together: 0 "),
        (BenchmarkText("piqa", "nowhere"), "source.offline_dir: 'nowhere' is not a folder"),
    ],
)
def test_every_source_checks_itself_and_is_checked_before_it_is_read(source, message):
    refused(message, source.check)
    refused(message, sources.fetch, source)


def test_more_windows_than_the_text_has_name_their_key_and_both_numbers(tmp_path):
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"text": [f"{n} {'abc' * 9}" for n in range(20)]}), tmp_path / "text" / "a.parquet")
    outputs = prepare_text.Outputs(documents=tmp_path / "documents.parquet", tasks=tmp_path / "tasks.parquet")
    spec = prepare_text.Spec("folder", {"path": str(tmp_path / "text")}, 0.2, 0.2, None, None, 0)
    prepare_text.run(spec, prepare_text.Inputs(), outputs)
    sizes = dict.fromkeys(("layers", "width", "heads", "kv_heads", "head_width", "neurons", "vocabulary"), 2)
    card = tmp_path / "card.json"
    artifacts.write_record(card, CARD_SCHEMA, {"dimensions": sizes | {"positions": 64}, "files": {}}, {})
    for split, count, key in (("train", 12, "traces.windows"), ("heldout", 4, "traces.heldout_windows"),
                              ("evaluation", 4, "evaluation.windows")):  # fmt: skip
        read = inputs.ModelAndText(card, tmp_path, outputs.documents)
        vars(read)["tokenizer"] = byte_tokenizer()
        refused(
            rf"^{key} .*: 13 windows of 20 tokens .* {count} documents hold {count}", read.windows, split, 20, 13, 0
        )


# ---- paragraphs

BREAKS = ["\n\n", "\r\n\r\n", "\r\r", "\n \n", "\n\t\n", "\r\n \r\n", "\n\u3000\n", "\n\u200b\n", "\x85\x85", "\f"]
BREAKS += ["\u2028", "\u2029", "\n\n\n", "\x0b\x0b"]


@pytest.mark.parametrize("between", BREAKS)
def test_paragraphs_end_at_breaks_of_any_kind(between):
    assert paragraphs(f"one two{between}three\r\nfour{between}") == ["one two", "three\nfour"]
    assert mark(f"one  two{between}\u200b\nthree") == mark("one two three") != mark("one two four")
    words = [[f"{letter}{number}" for number in range(8)] for letter in "abcdef"]
    documents = [Document.of(part[0], between.join([" ".join(part[:4]), " ".join(part[4:])])) for part in words]
    with pytest.raises(ConfigError, match="hold 0 passages"):  # of five words, where paragraphs have four
        cutting.true_continuation(documents, 1, 3, 2, seed=0)
    assert len(cutting.true_continuation(documents, 12, 2, 2, seed=0)) == 12


@pytest.mark.parametrize("between", ["\r\n\r\n", "\u2029", "\n"])  # the test above has every kind
def test_no_break_hides_a_benchmark_in_a_calibration_text(tmp_path, between):
    rows = [GOOD["winogrande"] | {"sentence": f"The number _ fell {number} times."} for number in range(3)]
    prepared = prepare(tmp_path, write(tmp_path, "winogrande", *rows) and "winogrande")
    shown = between.join(["Before.", "The number cat fell 1 times.", "After."])
    texts = {"text": [shown, *(f"document {number} of words" for number in range(40))]}
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table(texts), tmp_path / "text" / "a.parquet")
    outputs = prepare_text.Outputs(documents=tmp_path / "documents.parquet", tasks=tmp_path / "tasks.parquet")
    for seed in range(9):  # until the document is one that calibrates
        spec = prepare_text.Spec("folder", {"path": str(tmp_path / "text")}, 0.1, 0.1, None, None, seed)
        prepare_text.run(spec, prepare_text.Inputs(), outputs)
        table = pq.read_table(outputs.documents).to_pylist()
        if next(row["split"] for row in table if row["text"] == shown) != "evaluation":
            break
    record = check_disjoint.Outputs(record=tmp_path / "disjoint.json")

    def check(evaluated, *benchmarks):
        files = check_disjoint.Inputs(outputs.documents, evaluated, benchmarks)
        check_disjoint.run(check_disjoint.Spec("a", "b"), files, record)

    check(outputs.documents)
    record.record.unlink()
    refused("contains 1 of the 3 documents of benchmark 'winogrande'", check, outputs.documents, prepared)
    # a text that calibrates on what another one is evaluated on, inside a longer document
    table = pq.read_table(outputs.documents)
    texts = [{"evaluation": "The number cat fell 1 times."}.get(row["split"], row["text"]) for row in table.to_pylist()]
    leaked = table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), pa.array(texts))
    pq.write_table(leaked, tmp_path / "leaked.parquet")
    said = "calibration text 'a' contains .* of the .* documents of text 'b'"
    refused(said, check, tmp_path / "leaked.parquet")
    assert not record.record.exists()


def test_words_that_show_nothing_are_no_words():
    parts = {letter: " ".join(f"{letter}{number}" for number in range(3)) for letter in "abcdefg"}
    documents = [Document.of(letter, f"{part} \u200b \ufeff") for letter, part in parts.items()]
    for row in cutting.true_continuation(documents, 7, 2, 1, seed=0):
        assert all(map(visible, row["choices"]))
