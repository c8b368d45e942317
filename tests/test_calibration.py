"""In-task and out-of-task calibration, stage by stage: rows of their own, and no document that is evaluated too."""

import json
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import run_jobs, write_benchmarks, write_words
from test_workflow import tiny_study

from shadowcore.config import parse_study
from shadowcore.jobs import Jobs, as_json
from shadowcore.stages.base import parse_spec, runtime_fields

MODEL, TEXTS, METHODS = "tiny-opt", ("words", "piqa-train"), ("static", "shadow")
BATCH = 4


def job(spec, stage, outputs, **inputs):
    """Run a stage as its rule would; inputs that it has and are not given are empty."""
    one = import_module(f"shadowcore.stages.{stage}")
    given = {name: inputs.get(name, ()) for name in one.Inputs.__dataclass_fields__}
    for path in outputs.values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    spec = json.loads(as_json(spec)) | dict.fromkeys(runtime_fields(one.Spec), BATCH)
    one.run(parse_spec(one.Spec, spec), one.Inputs(**given), one.Outputs(**outputs))
    return outputs


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Jobs of a study that calibrates on a text and on the examples of the task that it evaluates."""
    folder = tmp_path_factory.mktemp("calibration")
    write_words(folder / "words")
    write_benchmarks(folder / "benchmarks", documents=96)
    data = tiny_study(folder)
    data["models"] = {MODEL: data["models"][MODEL]}
    data["calibration"] = list(TEXTS)
    words = data["texts"]["words"]
    source = {"benchmark": {"task": "piqa", "offline_dir": str(folder / "benchmarks"), "together": 8}}
    data["texts"]["piqa-train"] = words | {"source": source, "true_continuation": None}
    data["conditions"] = [{
        "methods": ["static", "shadow"], "criteria": ["plainact"], "predictors": ["small"], "sparsities_pct": [50],
    }]  # fmt: skip
    data["evaluation"] |= {"tasks": ["piqa"], "limit": {}, "fewshot": [0]}
    del data["latency"]
    return Jobs(parse_study(data, "study"), folder / "results")


@pytest.fixture(scope="module")
def measured(study):
    """The final tables."""
    run_jobs(study)
    return {path.stem: pq.read_table(path).to_pandas() for path in (study.root / "tables").iterdir()}


def test_in_task_and_out_of_task_calibration_are_rows_of_their_own(measured):
    for name in ("accuracy", "perplexity"):
        rows = measured[name]
        assert set(zip(rows["method"], rows["calibration"].fillna(""), strict=True)) == {
            ("dense", ""), *((method, text) for method in METHODS for text in TEXTS)
        }  # fmt: skip
    values = measured["perplexity"].set_index(["method", "calibration"])["value"]
    assert values.nunique() == len(values)
    assert set(measured["quality"]["calibration"]) == set(measured["predictors"]["calibration"]) == set(TEXTS)
    # a method is compared with what was calibrated on the same text
    compared = measured["comparisons"].query("method == 'shadow' and reference == 'static' and metric == 'acc'")
    assert sorted(compared["calibration"]) == sorted(TEXTS)
