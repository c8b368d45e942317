"""Malformed configurations, models, texts, benchmarks and files between stages: one sentence that names the place.

Never a traceback, never a file half-written, never a number. Hand-picked mistakes, and configurations and files that
hypothesis breaks at random.
"""

import copy
import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import write_benchmarks, write_words
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shadowcore import artifacts, cli, plan, preflight
from shadowcore.config import load_study, parse_study
from shadowcore.errors import ConfigError
from shadowcore.jobs import Jobs

ROOT = Path(__file__).parent.parent
QUICK = yaml.safe_load((ROOT / "tests" / "base_study.yaml").read_text())
MANIFEST, OUTCOME = "manifest.json", "outcomes/30.parquet"
MODEL, WORDS, PIQA = "model/config.json", "words/part.parquet", "benchmarks/piqa/validation.parquet"
GATHERED, MODEL_FILES = "tasks/benchmarks.parquet", {"card": "card.json", "weights": "weights"}
WEIGHTS, TRACE, PREDICTOR = "model/model.safetensors", "train.safetensors", "predictor.safetensors"
SIZES = {"layers": 3, "width": 16, "heads": 2, "neurons": 24, "positions": 128}


def study_of(folder):
    """A study of a model, a text and benchmarks in folders."""
    study = copy.deepcopy(QUICK)
    study["models"] = {"tiny": {"source": {"folder": {"path": str(folder / "model")}}}}
    study["texts"]["wikipedia"]["source"] = {"folder": {"path": str(folder / "words")}}
    study["traces"] |= {"windows": 4, "window_tokens": 80, "tokens_per_window": 8, "shards": 1, "heldout_windows": 2,
                        "heldout_tokens_per_window": 8, "criteria": ["plainact", "l2_norm"]}  # fmt: skip
    study["predictors"]["small"] |= {"rank_neurons": 8, "rank_heads": 4, "batch": 16, "epochs": 1}
    study["evaluation"] |= {"windows": 2, "window_tokens": 32, "tasks": ["true_continuation", "piqa", "wikitext"],
                            "offline_dir": str(folder / "benchmarks"), "rolling_tokens": 48}  # fmt: skip
    return study


class House:
    """The files of a study, stage by stage, and ways to run one stage on them."""

    def __init__(self, folder):
        self.folder, self.study = folder, study_of(folder)

    @property
    def jobs(self):
        return Jobs(parse_study(self.study, "study"))

    def run(self, stage, params, **files):
        """The exit code of a stage; `files` are paths below the folder, tuples of them, or absolute."""
        how = {"trace": ["--batch", "2"], "evaluate": ["--window-batch", "2", "--request-tokens", "4"]}
        options = []
        for name, value in files.items():
            paths = value if isinstance(value, tuple) else (value,)
            options += [f"--{name.replace('_', '-')}", *(str(self.folder / path) for path in paths)]
        return cli.main([stage, "--spec", params["spec"], *how.get(stage, []), *options])

    def fetch_model(self):
        return self.run("fetch-model", self.jobs.fetch_model("tiny"), card="card.json", weights="weights")

    def model(self):
        """A model is fetched, and read for the first time."""
        return self.fetch_model() or self.trace()

    def evaluated(self):
        """... or measured, without a trace."""
        return self.fetch_model() or self.evaluate("random")

    def prepare_text(self):
        params = self.jobs.prepare_text("wikipedia")
        return self.run("prepare-text", params, documents="documents.parquet", tasks="tasks.parquet")

    def prepare_benchmark(self, task="piqa"):
        return self.run("prepare-benchmark", self.jobs.prepare_benchmark(task), documents=f"tasks/{task}.parquet")

    def gather(self):
        files = ("tasks/piqa.parquet", "tasks/wikitext.parquet")
        return self.run("gather-benchmarks", {"spec": "{}"}, prepared=files, benchmarks=GATHERED)

    def trace(self, split="train"):
        files = {"card": "card.json", "weights": "weights", "documents": "documents.parquet"}
        return self.run("trace", self.jobs.trace("tiny", split, "0"), **files, trace=f"{split}.safetensors")

    def average(self):
        params = self.jobs.average("tiny", "wikipedia")
        return self.run("average", params, traces=("train.safetensors",), scores="scores.parquet")

    def train(self):
        params = self.jobs.train_predictor(self.jobs.trained["tiny", "wikipedia", "shadow+plainact+small"])
        return self.run(
            "train-predictor", params, card="card.json", traces=("train.safetensors",),
            heldout=("heldout.safetensors",), predictor="predictor.safetensors", quality="quality.parquet",
            training="training.parquet",
        )  # fmt: skip

    def evaluate(self, method="shadow"):
        condition = next(one for one in self.jobs.conditions.values() if one.method == method)
        return self.run(
            "evaluate", self.jobs.evaluate({"outcomes/30": condition}), card="card.json", weights="weights",
            documents="documents.parquet", tasks="tasks.parquet", manifest=MANIFEST,
            benchmarks=(GATHERED,),
            scores=("scores.parquet",) if method == "static" else (),
            predictors=("predictor.safetensors",) if method == "shadow" else (),
        )  # fmt: skip

    def aggregate(self):
        from shadowcore.schemas import MEASURED_TABLES

        outputs = {name: f"tables/{name}.parquet" for name in MEASURED_TABLES}
        return self.run("aggregate", {"spec": "{}"}, evaluations=(MANIFEST,), **outputs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A house in which every stage has run."""
    from shadowcore.models import sources

    folder = tmp_path_factory.mktemp("whole")
    sources.fetch(sources.RandomModel("llama", **SIZES), folder / "model")
    write_words(folder / "words")
    write_benchmarks(folder / "benchmarks")
    house = House(folder)
    for code in (
        house.fetch_model(), house.prepare_text(), house.prepare_benchmark(), house.prepare_benchmark("wikitext"),
        house.gather(), house.trace(), house.trace("heldout"), house.average(), house.train(), house.evaluate(),
        house.aggregate(),
    ):  # fmt: skip
        assert code == 0
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


def keys(**changes):
    """Change a JSON file; None removes a key."""

    def change(path):
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return change


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
        record(lambda one: one.update(checksum))(path.parents[1] / MANIFEST)

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


MISTAKES = [
    # a model's folder; tests/test_model_input.py has more
    ("model", MODEL, cut, "config.json: damaged JSON"),
    ("model", WEIGHTS, cut, "model.safetensors: damaged safetensors"),
    ("model", WEIGHTS, tensors(poisoned), "not finite"),
    ("evaluated", WEIGHTS, tensors(poisoned), "not finite"),
    ("model", "model/tokenizer.json", remove, "no tokenizer"),
    # a text
    ("prepare_text", WORDS, remove, "no Parquet files"),
    ("prepare_text", WORDS, cut, "part.parquet"),
    ("prepare_text", WORDS, rows(without("text")), "source.column"),
    ("prepare_text", WORDS, rows(lambda f: f.assign(text=" ")), "no text"),
    ("prepare_text", WORDS, rows(lambda f: f[:1]), "fraction"),
    ("prepare_text", WORDS, rows(lambda f: f.assign(text=f["text"].str[:30])), "true_continuation"),
    # a benchmark
    ("prepare_benchmark", PIQA, remove, "validation.parquet"),
    ("prepare_benchmark", PIQA, cut, "validation.parquet"),
    ("prepare_benchmark", PIQA, rows(without("sol2")), "columns of piqa"),
    ("prepare_benchmark", PIQA, rows(lambda f: f[:0]), "no documents"),
    # files between stages
    ("trace", "card.json", cut, "card.json: damaged JSON"),
    ("trace", "card.json", say("[]"), "card.json: schema"),
    ("trace", "card.json", keys(record=None), "card.json"),
    ("trace", "card.json", record(lambda one: one.pop("files")), "card.json"),
    ("trace", "card.json", record(lambda one: one["files"]["config.json"].pop("sha256")), "card.json"),
    ("train", "card.json", record(lambda one: one["dimensions"].pop("heads")), "card.json"),
    ("train", "card.json", record(lambda one: one["dimensions"].update(heads="two")), "card.json"),
    ("trace", "weights/model.safetensors", cut, "model.safetensors"),
    ("trace", "weights/config.json", remove, "config.json: no file"),
    ("trace", "documents.parquet", remove, "documents.parquet: no such file"),
    ("trace", "documents.parquet", cut, "documents.parquet: damaged Parquet"),
    ("trace", "documents.parquet", another_schema, "documents.parquet: schema 'documents/0'"),
    ("trace", "documents.parquet", rows(without("text")), "documents.parquet"),
    ("trace", "documents.parquet", rows(lambda f: f.assign(text=1)), "documents.parquet"),
    ("trace", "documents.parquet", rows(lambda f: f.assign(split="evaluation")), "windows"),
    ("trace", "documents.parquet", rows(lambda f: f.assign(text="short")), "windows"),
    ("average", TRACE, cut, "train.safetensors: damaged safetensors"),
    ("average", TRACE, tensors(lambda t: {"loss": t["loss"]}), "train.safetensors"),
    ("average", "scores.parquet", lambda path: shutil.copy(path, path.parent / TRACE), "train.safetensors"),
    ("train", TRACE, tensors(lambda t: {n: v for n, v in t.items() if "codes" not in n}), "train.safetensors"),
    ("train", TRACE, tensors(lambda t: {n: v[..., :1].contiguous() for n, v in t.items()}), "train.safetensors"),
    ("train", TRACE, tensors(lambda t: {n: v.float() for n, v in t.items()}), "train.safetensors"),
    ("train", TRACE, tensors(poisoned), "train.safetensors"),
    ("train", "heldout.safetensors", cut, "heldout.safetensors: damaged safetensors"),
    ("evaluate", PREDICTOR, cut, "predictor.safetensors: damaged safetensors"),
    ("evaluate", PREDICTOR, lambda path: save_file(load_file(path), path), "predictor.safetensors"),
    ("evaluate", PREDICTOR, tensors(lambda t: dict(list(t.items())[1:])), "predictor.safetensors"),
    ("evaluate", PREDICTOR, tensors(lambda t: {n: v[:1] for n, v in t.items()}), "predictor.safetensors"),
    ("evaluate", PREDICTOR, tensors(poisoned), "predictor.safetensors"),
    ("evaluate", TRACE, lambda path: shutil.copy(path, path.parent / PREDICTOR), "predictor.safetensors"),
    ("evaluate", "tasks.parquet", rows(without("choices")), "tasks.parquet"),
    ("gather", "tasks/piqa.parquet", rows(without("goal")), "piqa.parquet"),
    ("gather", "tasks/piqa.parquet", cut, "piqa.parquet: damaged Parquet"),
    ("gather", "tasks/piqa.parquet", another_schema, "piqa.parquet: schema 'documents/0'"),
    ("evaluate", GATHERED, cut, "benchmarks.parquet: damaged Parquet"),
    ("evaluate", GATHERED, lambda path: shutil.copy(path.parent / "piqa.parquet", path), "schema 'benchmark/1'"),
    ("static", "scores.parquet", rows(lambda f: f[f["criterion"] == "none"]), "scores.parquet"),
    ("static", "scores.parquet", rows(lambda f: f[f["unit"] != 1]), "scores.parquet"),
    ("static", "scores.parquet", rows(lambda f: f.assign(mean=float("nan"))), "scores.parquet"),
    ("aggregate", OUTCOME, cut, "30.parquet: its SHA-256 is not the one in .*manifest.json"),
    ("aggregate", OUTCOME, remove, "30.parquet: .*manifest.json lists it"),
    ("aggregate", MANIFEST, say("{"), "manifest.json: damaged JSON"),
    ("aggregate", MANIFEST, record(lambda one: one.update(outcomes={})), "manifest.json: damaged record"),
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
    made = {
        "model": [TRACE], "prepare_text": ["documents.parquet"], "prepare_benchmark": ["tasks/piqa.parquet"],
        "gather": [GATHERED], "trace": [TRACE], "average": ["scores.parquet"], "train": [PREDICTOR],
        "evaluate": [OUTCOME, MANIFEST], "static": [OUTCOME, MANIFEST], "aggregate": ["tables/accuracy.parquet"],
        "evaluated": [OUTCOME, MANIFEST],
    }[stage]  # fmt: skip
    damage(house.folder / path)
    outputs = [house.folder / name for name in made if house.folder / name != house.folder / path]
    for output in outputs:
        output.unlink(missing_ok=True)
    capsys.readouterr()
    code = house.evaluate("static") if stage == "static" else getattr(house, stage)()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shadowcore ")]
    assert code == 2 and len(said) == 1, said
    assert pd.Series(said).str.contains(message).all(), said
    assert not any(output.exists() for output in outputs)


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
@pytest.mark.parametrize("name", ["model/model.safetensors", "predictor.safetensors", OUTCOME, "card.json"])
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
    path.parent.mkdir(exist_ok=True)
    content = (whole.folder / name).read_bytes()
    at = int(where * len(content))
    path.write_bytes(content[:at] + what + content[at + len(what) :])
    sizes = dimensions_of(folders.read_config(whole.folder / "model"))
    try:
        if name.startswith("model/"):
            folders.load_model(path.parent)
        elif name.startswith("predictor"):
            inputs.read_predictor(path, sizes)
        elif name.startswith("outcomes"):
            OUTCOMES.read(path)
        else:
            read_card(path)
    except ArtifactError as error:
        assert path.name in str(error) or path.parent.name in str(error)
