"""Many conditions in one job: each equals itself alone, byte by byte, is skipped when it is there, and fails alone."""

import json
from importlib import import_module

import pytest
import torch
from conftest import run_jobs, write_benchmarks, write_words
from test_workflow import tiny_study

from shadowcore import artifacts, cli, manifests, preflight
from shadowcore.config import parse_study
from shadowcore.errors import OutOfMemory, ShadowcoreError
from shadowcore.jobs import Jobs, as_json
from shadowcore.measure import harness, perplexity
from shadowcore.measure.methods import METHODS
from shadowcore.measure.sparsity import FixedMasks, SparseModel
from shadowcore.method.predictors import PREDICTOR_SCHEMA
from shadowcore.models.prefixes import continuing
from shadowcore.schemas import OUTCOMES
from shadowcore.stages import conditions
from shadowcore.stages.base import parse_spec, runtime_fields

MODEL = "tiny-opt"
DESIGNS = ("shadow", "layerwise")
EVERYTHING = [
    {"methods": ["random"], "sparsities_pct": [50]},
    {"methods": ["static", *DESIGNS, "oracle"], "criteria": ["plainact"], "predictors": ["small"], "units": ["both"],
     "protocols": ["token", "lookahead"], "sparsities_pct": [50]},
    {"methods": ["layerwise"], "criteria": ["plainact"], "predictors": ["small"], "protocols": ["prompt"],
     "sparsities_pct": [50]},
    {"methods": ["oracle"], "criteria": ["l2_norm"], "policies": ["global"], "sparsities_pct": [30]},
    {"methods": ["threshold", "cats", "proxy2_ahead"], "sparsities_pct": [50]},
    {"methods": ["griffin"], "protocols": ["prompt"], "sparsities_pct": [50]},
    {"methods": ["relu"], "sparsities_pct": [0]},
]  # fmt: skip


class Study:
    """The files of a tiny study, and its evaluations."""

    def __init__(self, folder):
        write_words(folder / "words")
        write_benchmarks(folder / "benchmarks")
        data = tiny_study(folder)
        data["models"] = {MODEL: data["models"][MODEL]}
        del data["latency"]
        self.jobs = study = Jobs(parse_study(data | {"conditions": EVERYTHING}, "study"), folder / "results")
        run_jobs(study, "fetch_model", "prepare_text", "prepare_benchmark", "trace", "average",
                 "calibrate_thresholds", "train_predictor")  # fmt: skip
        root, place = study.root, f"{MODEL}/words"
        thresholds = root / "thresholds" / f"{place}.parquet"
        self.files = {"oracle": (), "static": root / "scores" / f"{place}.parquet"} | {
            design: root / "predictors" / place / f"{design}+plainact+small.safetensors" for design in DESIGNS
        } | dict.fromkeys(("threshold", "cats"), thresholds)  # fmt: skip
        model, text = root / "models" / MODEL, root / "texts" / "words"
        self.shared = {"card": model / "card.json", "weights": model / "weights"}
        self.shared |= {"documents": text / "documents.parquet", "tasks": text / "true_continuation.parquet"}
        self.shared |= {"benchmarks": tuple(sorted((root / "tasks").glob("*.parquet")))}
        self.conditions = {
            setup: one for part in ("0", "50") for setup, one in study.evaluations[MODEL, "words", part].items()
        }
        self.oracle = study.evaluations[MODEL, "words", "oracle"]

    def evaluate(self, chosen, folder, batch=4):
        """Run the job of these conditions; the bytes of their outcome files."""
        oracle = chosen.keys() <= self.oracle.keys()
        one = import_module(f"shadowcore.stages.evaluate{'_oracle' if oracle else ''}")
        spec = json.loads(as_json(self.jobs.evaluate(MODEL, "words", "0")))
        spec |= dict.fromkeys(runtime_fields(one.Spec), batch)
        spec = parse_spec(
            one.Spec, spec | {"conditions": {setup: vars(condition) for setup, condition in chosen.items()}}
        )
        fields = {one.method: METHODS[one.method].reads for one in chosen.values()}
        files = {"scores": [], "thresholds": [], "predictors": []}
        for condition in chosen.values():
            if fields[condition.method]:
                files[fields[condition.method]].append(self.files[condition.method])
        more = {} if oracle else {name: tuple(paths) for name, paths in files.items()}
        with cli.enough_memory():
            one.run(spec, one.Inputs(**self.shared, **more), one.Outputs(manifest=folder / "job.json"))
        assert list(manifests.listed(folder / "job.json")) == [self.path(folder, setup) for setup in sorted(chosen)]
        return {setup: self.path(folder, setup).read_bytes() for setup in chosen}

    def path(self, folder, setup):
        return manifests.outcome(folder / "job.json", setup)

    def written(self, folder, chosen):
        """When the outcome files of conditions were written, of those that are there."""
        paths = {setup: self.path(folder, setup) for setup in chosen}
        return {setup: path.stat().st_mtime_ns for setup, path in paths.items() if path.is_file()}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def together(study, tmp_path_factory):
    """The bytes of every condition's outcome file, of jobs with all of them."""
    folder = tmp_path_factory.mktemp("together")
    return study.evaluate(study.conditions, folder) | study.evaluate(study.oracle, folder)


def test_a_condition_is_the_same_bytes_alone_and_among_others_in_any_order_and_batch(
    study, together, tmp_path, monkeypatch
):
    for chosen in (study.conditions, study.oracle):
        for setup, condition in chosen.items():
            assert study.evaluate({setup: condition}, tmp_path / "alone") == {setup: together[setup]}, setup
    assert len({condition.method for condition in study.conditions.values()}) == 10
    monkeypatch.setattr(conditions, "AT_ONCE", 3)
    backwards = dict(reversed(study.conditions.items()))
    assert study.evaluate(backwards, tmp_path / "backwards") == {setup: together[setup] for setup in backwards}
    some = {setup: one for setup, one in study.conditions.items() if one.method in ("griffin", "dense", "shadow")}
    of_seven = study.evaluate(some, tmp_path / "seven", batch=7)
    for setup, condition in some.items():
        assert study.evaluate({setup: condition}, tmp_path / "alone seven", batch=7) == {setup: of_seven[setup]}, setup


def test_every_kind_of_outcome_is_there_and_the_sparsity_is_that_of_its_own_positions(study, together, tmp_path):
    for setup, content in together.items():
        (tmp_path / "one.parquet").write_bytes(content)
        rows = OUTCOMES.read(tmp_path / "one.parquet").to_pandas()
        condition = (study.conditions | study.oracle)[setup]
        whole = {"perplexity", "wikitext"} if condition.protocol != "prompt" else set()
        assert set(rows["task"]) == {"true_continuation", "second_half", "piqa"} | whole
        assert set(rows["method"]) == {condition.method} and set(rows["sparsity_pct"]) == {condition.sparsity_pct}
        if condition.method in ("static", *DESIGNS, "oracle") and condition.sparsity_pct == 50:
            # half of the units of two of three layers
            assert rows["sparsity_neurons"].unique() == pytest.approx([1 / 3])


def test_dense_prompts_run_once_whatever_the_number_of_conditions(study, tmp_path, monkeypatch):
    calls = []

    def counted(model, prefixes, *more):
        calls.append(len(prefixes))
        return continuing(model, prefixes, *more)

    monkeypatch.setattr(harness, "continuing", counted)
    monkeypatch.setattr(perplexity, "continuing", counted)
    first = dict(list(study.conditions.items())[:1])
    study.evaluate(first, tmp_path / "one")
    one, calls[:] = list(calls), []
    study.evaluate(study.conditions, tmp_path / "all")
    assert calls == one and len(calls) > 3


def test_what_is_there_is_not_measured_again_and_a_grown_grid_measures_what_is_new(study, tmp_path, monkeypatch):
    few = dict(list(study.conditions.items())[::2])
    study.evaluate(few, tmp_path)
    before = study.written(tmp_path, study.conditions)
    assert before.keys() == few.keys()
    (tmp_path / "job.json").unlink()  # as Snakemake does before it runs the job again
    with monkeypatch.context() as patched:
        patched.setattr("shadowcore.stages.inputs.Model.model", None)  # would fail if it were called
        study.evaluate(few, tmp_path)
    study.evaluate(study.conditions, tmp_path)
    after = study.written(tmp_path, study.conditions)
    assert after.keys() == study.conditions.keys() and before.items() <= after.items()


def test_what_was_damaged_or_made_otherwise_is_measured_again_and_nothing_else(study, tmp_path):
    some = {setup: one for setup, one in study.conditions.items() if one.method in (*DESIGNS, "dense", "static")}
    made = study.evaluate(some, tmp_path)
    before = study.written(tmp_path, some)
    damaged, of_other_code = (
        next(setup for setup, one in some.items() if one.method == m) for m in ("dense", "static")
    )
    study.path(tmp_path, damaged).write_bytes(made[damaged][:-50])
    path = study.path(tmp_path, of_other_code)
    header = artifacts.read_header(path)
    artifacts.write_table(path, OUTCOMES.schema, OUTCOMES.read(path), header | {"code": "another"})
    path = study.files["shadow"]
    original = {one: one.read_bytes() for one in (path, artifacts.checksum_file(path))}
    tensors, header = artifacts.read_tensors(path, PREDICTOR_SCHEMA), artifacts.read_header(path)
    tensors = {name: -one if one.is_floating_point() else one for name, one in tensors.items()}
    try:
        artifacts.write_with_checksum(path, PREDICTOR_SCHEMA, tensors, header)
        again = study.evaluate(some, tmp_path)
    finally:
        for one, content in original.items():
            one.write_bytes(content)
    changed = {setup for setup, when in study.written(tmp_path, some).items() if when != before[setup]}
    shadows = {setup for setup, one in some.items() if one.method == "shadow"}
    assert changed == shadows | {damaged, of_other_code} and shadows
    assert {setup for setup in some if again[setup] != made[setup]} == shadows


def test_a_condition_that_fails_costs_only_itself(study, together, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "predictor.safetensors"
    broken.write_bytes(study.files["shadow"].read_bytes()[:100])
    begin, folder = FixedMasks.begin, tmp_path / "job"

    def fails_later(self, ids, *more):
        if set(self.keep) == {"heads", "neurons"} and len(ids) < 4:
            raise ZeroDivisionError("in the middle\nof it")
        return begin(self, ids, *more)

    with monkeypatch.context() as patched:
        patched.setitem(study.files, "shadow", broken)
        patched.setattr(FixedMasks, "begin", fails_later)
        with pytest.raises(ShadowcoreError) as error:
            study.evaluate(study.conditions, folder)
    bad = {setup for setup, one in study.conditions.items() if one.method in ("shadow", "static")}
    said = str(error.value)
    assert f"{len(bad)} of {len(study.conditions)} conditions failed" in said and "\n" not in said
    assert all(setup in said for setup in bad) and str(broken) in said and "ZeroDivisionError: in the middle" in said
    assert "Traceback" in capsys.readouterr().err  # of what is a fault of ours
    assert not (folder / "job.json").exists()
    assert study.written(folder, study.conditions).keys() == study.conditions.keys() - bad
    unfinished = manifests.unfinished(folder / "job.json")
    assert set(manifests.outcomes([unfinished])) == {
        study.path(folder, setup) for setup in study.conditions.keys() - bad
    }
    before = study.written(folder, study.conditions)
    assert study.evaluate(study.conditions, folder) == {setup: together[setup] for setup in study.conditions}
    assert before.items() <= study.written(folder, study.conditions).items() and not unfinished.exists()


def test_a_lack_of_memory_ends_the_job_and_keeps_what_was_measured(study, together, tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "AT_ONCE", 4)
    logits = SparseModel.logits

    def full(self, *more, **others):
        if isinstance(self.masks, FixedMasks):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits(self, *more, **others)

    with monkeypatch.context() as patched, pytest.raises(OutOfMemory, match="Tried to allocate"):
        patched.setattr(SparseModel, "logits", full)
        study.evaluate(study.conditions, tmp_path)
    before = study.written(tmp_path, study.conditions)
    assert 4 <= len(before) < len(study.conditions) and len(before) % 4 == 0
    assert len(manifests.listed(manifests.unfinished(tmp_path / "job.json"))) == len(before)
    assert study.evaluate(study.conditions, tmp_path) == {setup: together[setup] for setup in study.conditions}
    assert before.items() <= study.written(tmp_path, study.conditions).items()


def test_progress_names_each_condition_and_counts_per_cent(study, tmp_path, capsys):
    study.evaluate(study.oracle, tmp_path)
    said = capsys.readouterr().err
    assert all(f"{setup}: measured" in said for setup in study.oracle) and "/100 after" in said


def test_few_predictors_are_held_at_once():
    large, small = conditions.AT_ONCE_BYTES, 1.0
    needed = {"a": {1: large}, "b": {1: large}, "c": {2: small}, "d": {}, "e": {3: 2 * large}, "f": {2: small}}
    assert list(conditions.parts(needed)) == [["a", "b"], ["c", "d"], ["e"], ["f"]]
    many = dict.fromkeys(map(str, range(40)), {1: large})
    assert [len(part) for part in conditions.parts(many)] == [16, 16, 8]


def test_more_conditions_than_a_command_can_name_are_refused_before_any_job(study):
    data = study.jobs.study.model_dump(mode="json", exclude_unset=True)
    grid = {"methods": ["shadow"], "criteria": ["plainact"], "predictors": ["small"], "sparsities_pct": [50]}
    many, few = (
        list(preflight.sizes(Jobs(parse_study(data | {"conditions": [grid | {"seeds": list(range(count))}]}, "study"))))
        for count in (1000, 100)
    )
    assert len(many) == 1 and f"1000 conditions of model {MODEL} at one sparsity (50 %)" in many[0] and few == []
