"""Malformed configurations, models, texts, benchmarks and files between stages: one sentence that names the place.

Never a traceback, never a file half-written, never a number. Hand-picked mistakes, and configurations and files that
hypothesis breaks at random.
"""

import copy
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import QUICK, SMALL_MODEL, run_job, run_jobs, small_study, write_benchmarks, write_words
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shadowcore import artifacts, plan, preflight, rules
from shadowcore.config import load_study, parse_study
from shadowcore.errors import ConfigError
from shadowcore.jobs import Jobs

RESULTS = "quick"
MANIFEST = f"{RESULTS}/outcomes/tiny/wikipedia/30.json"
OUTCOME = f"{RESULTS}/outcomes/tiny/wikipedia/outcomes/30.parquet"


def study_of(folder):
    """A study of a model, a text and benchmarks in folders."""
    source = {"folder": {"path": str(folder / "model")}}
    return small_study(folder) | {"study": RESULTS, "latency": None, "models": {"tiny": {"source": source}}}


KEY = "tiny", "wikipedia", "30"
TRAIN, EVALUATE = ("trace", *KEY[:2], "train", "0"), ("evaluate", *KEY)
# the jobs of each of MISTAKES, until one fails
RUNS = {
    "model": [("fetch_model", "tiny"), TRAIN], "evaluated": [("fetch_model", "tiny"), EVALUATE],
    "prepare_text": [("prepare_text", "wikipedia")], "prepare_benchmark": [("prepare_benchmark", "piqa")],
    "trace": [TRAIN], "average": [("average", *KEY[:2])],
    "train": [("train_predictor", *KEY[:2], "shadow+plainact+small")], "evaluate": [EVALUATE], "static": [EVALUATE],
    "aggregate": [("aggregate",)],
}  # fmt: skip


class House:
    """The files of a study of one condition, and a way to run jobs on them."""

    def __init__(self, folder):
        self.folder = folder

    def jobs(self, method="shadow"):
        jobs = Jobs(parse_study(study_of(self.folder), "study"), self.folder)
        some = [one for one in jobs.conditions if one.method == method and one.criterion != "l2_norm"]
        jobs.evaluations = {KEY: {"outcomes/30": some[0]}}
        return jobs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A house in which every job has run."""
    from shadowcore.models import sources

    folder = tmp_path_factory.mktemp("whole")
    sources.fetch(sources.RandomModel(**SMALL_MODEL), folder / "model")
    write_words(folder / "words")
    write_benchmarks(folder / "benchmarks")
    house = House(folder)
    run_jobs(house.jobs())
    return house


@pytest.fixture
def house(whole, tmp_path):
    """A copy of it, to damage."""
    shutil.copytree(whole.folder, tmp_path / "house", symlinks=False)
    return House(tmp_path / "house")


# ---- what is done to a file


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def say(text):
    return lambda path: path.write_text(text)


def remove(path):
    path.unlink()


def record(change):
    """Change the record in a JSON file of ours."""

    def changed(path):
        content = json.loads(path.read_text())
        change(content["record"])
        path.write_text(json.dumps(content))

    return changed


def rows(change):
    """Change a table, whatever wrote it, and keep its metadata."""

    def changed(path):
        table = pq.read_table(path)
        frame = change(table.to_pandas())
        metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"pandas"}
        columns = {}
        for name in frame.columns:
            try:
                columns[name] = pa.array(frame[name], table.schema.field(name).type, from_pandas=True)
            except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of another kind now
                columns[name] = pa.array(frame[name])
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)

    return changed


def listed(change):
    """Change an outcome file, and the checksum in its manifest."""

    def changed(path):
        change(path)
        checksum = {"outcomes": {"outcomes": "outcomes/30.parquet", "sha256": artifacts.digest(path)}}
        record(lambda one: one.update(checksum))(path.parents[1] / "30.json")

    return changed


def tensors(change):
    """Change tensors of a safetensors file, and keep its metadata."""

    def changed(path):
        from safetensors import safe_open

        with safe_open(path, "pt") as handle:
            metadata = handle.metadata()
        save_file(change(load_file(path)), path, metadata)

    return changed


def without(name):
    return lambda frame: frame.drop(columns=name)


def first(name, value):
    """A column whose first value is another."""
    return lambda frame: frame.assign(**{name: [value, *frame[name][1:]]})


def poisoned(found):
    name = sorted(found)[-1]
    return found | {name: torch.full_like(found[name], float("nan"))}


def another_schema(path):
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"schema": "documents/0"}), path)


WORDS, PIQA = "words/part.parquet", "benchmarks/piqa/validation.parquet"
PREPARED = f"{RESULTS}/tasks/piqa.parquet"
CARD, WEIGHTS = f"{RESULTS}/models/tiny/card.json", "model/model.safetensors"
DOCUMENTS, QUESTIONS = (f"{RESULTS}/texts/wikipedia/{name}.parquet" for name in ("documents", "true_continuation"))
TRACE, HELDOUT = (f"{RESULTS}/traces/tiny/wikipedia/{split}-0.safetensors" for split in ("train", "heldout"))
SCORES = f"{RESULTS}/scores/tiny/wikipedia.parquet"
PREDICTOR = f"{RESULTS}/predictors/tiny/wikipedia/shadow+plainact+small.safetensors"


def over(target):
    """Copy a file over another one of the house."""
    return lambda path: shutil.copy(path, next(one for one in path.parents if one.name == "house") / target)


MISTAKES = [
    # a model's folder; tests/test_model_input.py has more
    ("model", WEIGHTS, tensors(poisoned), "not finite"),
    ("evaluated", WEIGHTS, tensors(poisoned), "not finite"),
    # a text
    ("prepare_text", WORDS, cut, "part.parquet"),
    ("prepare_text", WORDS, rows(without("text")), "source.column"),
    ("prepare_text", WORDS, rows(lambda f: f.assign(text=" ")), "no text"),
    ("prepare_text", WORDS, rows(lambda f: f[:1]), "fraction"),
    ("prepare_text", WORDS, rows(lambda f: f.assign(text=f["text"].str[:30])), "true_continuation"),
    # a benchmark
    ("prepare_benchmark", PIQA, cut, "validation.parquet"),
    ("prepare_benchmark", PIQA, rows(without("sol2")), "piqa, split validation"),
    ("prepare_benchmark", PIQA, rows(lambda f: f[:0]), "no documents"),
    # files between stages
    ("trace", CARD, cut, "card.json: damaged JSON"),
    ("trace", CARD, say("[]"), "card.json: schema"),
    ("trace", CARD, record(lambda one: one.pop("files")), "card.json"),
    ("trace", CARD, record(lambda one: one["files"]["config.json"].pop("sha256")), "card.json"),
    ("train", CARD, record(lambda one: one["dimensions"].update(heads="two")), "card.json"),
    ("trace", f"{RESULTS}/models/tiny/weights/model.safetensors", cut, "model.safetensors"),
    ("trace", f"{RESULTS}/models/tiny/weights/config.json", remove, "config.json: no file"),
    ("trace", DOCUMENTS, cut, "documents.parquet: damaged Parquet"),
    ("trace", DOCUMENTS, another_schema, "documents.parquet: schema 'documents/0'"),
    ("trace", DOCUMENTS, rows(without("text")), "documents.parquet"),
    ("trace", DOCUMENTS, rows(lambda f: f.assign(text=1)), "documents.parquet"),
    ("trace", DOCUMENTS, rows(lambda f: f.assign(split="evaluation")), "windows"),
    ("average", TRACE, cut, "train-0.safetensors: damaged safetensors"),
    ("average", TRACE, tensors(lambda t: {"loss": t["loss"]}), "train-0.safetensors"),
    ("average", SCORES, over(TRACE), "train-0.safetensors"),
    ("train", TRACE, tensors(lambda t: {n: v for n, v in t.items() if "codes" not in n}), "train-0.safetensors"),
    ("train", TRACE, tensors(lambda t: {n: v[..., :1].contiguous() for n, v in t.items()}), "train-0.safetensors"),
    ("train", TRACE, tensors(poisoned), "train-0.safetensors"),
    ("train", HELDOUT, cut, "heldout-0.safetensors: damaged safetensors"),
    ("evaluate", PREDICTOR, cut, "small.safetensors: damaged safetensors"),
    ("evaluate", PREDICTOR, lambda path: save_file(load_file(path), path), "small.safetensors"),
    ("evaluate", PREDICTOR, tensors(lambda t: {n: v[:1] for n, v in t.items()}), "small.safetensors"),
    ("evaluate", PREDICTOR, tensors(poisoned), "small.safetensors"),
    ("evaluate", TRACE, over(PREDICTOR), "small.safetensors"),
    ("evaluate", QUESTIONS, rows(without("choices")), "true_continuation.parquet"),
    ("evaluate", PREPARED, rows(without("goal")), "piqa.parquet"),
    ("evaluate", PREPARED, cut, "piqa.parquet: damaged Parquet"),
    ("evaluate", SCORES, over(PREPARED), "piqa.parquet: schema 'criteria/1'"),
    ("static", SCORES, rows(lambda f: f[f["criterion"] == "none"]), "wikipedia.parquet"),
    ("static", SCORES, rows(lambda f: f[f["unit"] != 1]), "wikipedia.parquet"),
    ("static", SCORES, rows(lambda f: f.assign(mean=float("nan"))), "wikipedia.parquet"),
    ("aggregate", OUTCOME, cut, "30.parquet: its SHA-256 is not the one in .*30.json"),
    ("aggregate", OUTCOME, remove, "30.parquet: .*30.json lists it"),
    ("aggregate", MANIFEST, record(lambda one: one.update(outcomes={})), "30.json: damaged record"),
    ("aggregate", OUTCOME, listed(cut), "30.parquet: damaged Parquet"),
    ("aggregate", OUTCOME, listed(rows(without("weight"))), "30.parquet: column 'weight'"),
    ("aggregate", OUTCOME, listed(rows(lambda f: f.assign(value=0.5))), "0 or 1"),
    ("aggregate", OUTCOME, listed(rows(lambda f: f.assign(value=float("inf")))), "finite|0 or 1"),
    ("aggregate", OUTCOME, listed(rows(lambda f: f.assign(weight=0))), "token"),
    ("aggregate", OUTCOME, listed(rows(first("document", None))), "name"),
]


@pytest.mark.parametrize(
    ("stage", "path", "damage", "message"), MISTAKES, ids=[f"{m[0]}-{m[1]}-{i}" for i, m in enumerate(MISTAKES)]
)
def test_a_damaged_file_is_one_sentence_that_names_it(house, capsys, stage, path, damage, message):
    method = {"evaluated": "random", "static": "static"}.get(stage, "shadow")
    jobs, runs = house.jobs(method), RUNS[stage]
    damage(house.folder / path)
    rule, *values = runs[-1]
    made = rules.outputs(jobs.root, rule, rules.name_of(rule, *values))
    made += [house.folder / OUTCOME] if rule == "evaluate" else []
    made = [one for one in made if one != house.folder / path]
    for output in made:
        output.unlink(missing_ok=True)
    capsys.readouterr()
    code = next((code for run in runs if (code := run_job(jobs, *run))), 0)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shadowcore ")]
    assert code == 2 and len(said) == 1, said
    assert re.search(message, said[0]), said
    assert not any(output.exists() for output in made)


# ---- configurations, broken at random


def places(node, path=()):
    """Every place of a nested configuration."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


PLACES = sorted((path for path in places(QUICK) if path), key=str)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=12),
    st.sampled_from(["plainact", "shadow", "static", "small", "wikipedia", "@", "small@1", "../up", "$(id)", "a b"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def put(data, path, value, key=None):
    """`data` with another value at a place, or, with a key, another key for what is there."""
    data = copy.deepcopy(data)
    here = data
    for part in path[:-1]:
        here = here[part]
    if key is None:
        here[path[-1]] = value
    else:
        here[key] = here.pop(path[-1])
    return data


def judged(data):
    """A study is refused in one sentence, or it can be planned."""
    try:
        study = parse_study(data, "mine.yaml")
    except ConfigError as error:
        assert str(error).startswith("mine.yaml: ") and "\n" not in str(error)
        return
    try:
        jobs = Jobs(study)
        for job in plan.work(jobs):
            assert job.resources()["mem_mb"] > 0
        assert jobs.manifests()
        assert not any("\n" in problem for problem in preflight.problems(jobs))
    except ConfigError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(path=st.sampled_from(PLACES), value=VALUES)
def test_any_other_value_is_refused_or_planned(path, value):
    judged(put(QUICK, path, value))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(path=st.sampled_from([path for path in PLACES if isinstance(path[-1], str)]), key=st.text(max_size=8))
def test_any_other_key_is_refused_or_planned(path, key):
    judged(put(QUICK, path, None, key))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(max_size=60) | st.binary(max_size=60))
def test_any_other_file_is_one_sentence(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("mine") / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="mine.yaml") as refused:
        load_study(path)
    assert "\n" not in str(refused.value)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(where=st.floats(0, 1), what=st.binary(min_size=1, max_size=8))
@pytest.mark.parametrize("name", ["model/model.safetensors", PREDICTOR, OUTCOME, CARD])
def test_any_other_bytes_are_read_as_before_or_refused(whole, tmp_path_factory, name, where, what):
    from shadowcore.errors import ArtifactError
    from shadowcore.models import folders
    from shadowcore.models.families import dimensions_of
    from shadowcore.schemas import OUTCOMES
    from shadowcore.stages import inputs
    from shadowcore.stages.base import read_card

    folder = tmp_path_factory.mktemp("bytes")
    if name.startswith("model/"):
        shutil.copytree(whole.folder / "model", folder / "model")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (whole.folder / name).read_bytes()
    at = int(where * len(content))
    path.write_bytes(content[:at] + what + content[at + len(what) :])
    sizes = dimensions_of(folders.read_config(whole.folder / "model"))
    try:
        if name.startswith("model/"):
            folders.load_model(path.parent)
        elif name == PREDICTOR:
            inputs.read_predictor(path, sizes)
        elif name == OUTCOME:
            OUTCOMES.read(path)
        else:
            read_card(path)
    except ArtifactError as error:
        assert path.name in str(error) or path.parent.name in str(error)
