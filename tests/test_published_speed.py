"""The published claim of speed: its configuration, how it is timed without Snakemake, and how rows join a reference."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
from conftest import ROOT

from shadowcore import artifacts, cli
from shadowcore.commands.explain import explain
from shadowcore.config import load_study
from shadowcore.jobs import Jobs
from shadowcore.models.published import PUBLISHED
from shadowcore.schemas import LATENCY, LATENCY_REPEATS

CONFIG = ROOT / "config" / "published_speed.yaml"
ORIGIN = {"inputs": {}, "code": "0" * 16, "run": {"commit": "1" * 12, "device": "Pretend GPU"}}


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("config, needed", [("published_speed", {"opt-30b"}), ("gpu", set())])
def test_both_designs_are_timed_at_the_published_ranks(config, needed):
    section = load_study(ROOT / "config" / f"{config}.yaml").latency_random
    models = {
        method: {
            model
            for model in section.models
            for one in section.timed(model)["1x128+128"]["designs"]
            if (one["method"], one["rank_heads"], one["rank_neurons"]) == (method, 2048, 2048)
            and 50 in (one["sparsities_pct"] or section.sparsities_pct)
        }
        for method in ("shadow", "layerwise")
    }
    sizes = {"opt-1.3b", "opt-6.7b", "opt-13b", "llama-2-7b", "llama-2-13b"} | needed
    assert models["layerwise"] == sizes <= models["shadow"]


def test_specifications_are_those_of_the_study_smallest_model_first(tmp_path):
    specs = script("time_models").specifications(CONFIG)
    jobs = Jobs(load_study(CONFIG), tmp_path)
    assert [spec["model"] for spec in specs] == sorted(jobs.study.latency_random.models, key=weights)
    for spec in specs:
        (length,) = (lengths for model, lengths in jobs.timed_dimensions if model == spec["model"])
        assert jobs.latency_random(spec["model"], length) == json.loads(json.dumps(spec))


def weights(model):
    return PUBLISHED[model].multiplied


def tiny(model):
    designs = [{"method": method, "rank_heads": 8, "rank_neurons": 16} for method in ("shadow", "layerwise")]
    spec = {"model": model, "dtype": "float32", "units": "both", "sparsities_pct": [50], "designs": designs}
    spec |= {"baselines": [], "active": 0.1, "batch": 1, "prompt_tokens": 4, "short_tokens": 1, "new_tokens": 2}
    return spec | {"repeats": 2, "warmup": 0, "seed": 0}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What time_models.py wrote of two models, with an unknown one between them, and the names that failed."""
    folder, time_models = tmp_path_factory.mktemp("measured"), script("time_models")

    def in_this_process(command, **_):
        return SimpleNamespace(returncode=cli.main(command[3:]))

    time_models.subprocess = SimpleNamespace(run=in_this_process)
    failed = time_models.run([tiny("opt-tiny"), tiny("opt-none"), tiny("llama-tiny")], folder / "new")
    return folder / "new", failed


def test_a_model_that_fails_does_not_stop_the_next(measured):
    folder, failed = measured
    assert failed == ["opt-none.1x4+2"]
    for model in ("opt-tiny", "llama-tiny"):
        rows = LATENCY.read(folder / f"{model}.1x4+2.summary.parquet").to_pandas()
        assert set(rows["model"]) == {model} and {"dense", "shadow", "layerwise"} <= set(rows["mode"])
        assert LATENCY_REPEATS.read(folder / f"{model}.1x4+2.repeats.parquet").num_rows == 2 * len(rows)


def test_rows_join_a_reference_and_replace_what_was_measured_again(measured, tmp_path):
    join = script("time_models")
    path = tmp_path / "tables" / "latency.parquet"
    first = measured[0] / "opt-tiny.1x4+2.summary.parquet"
    kept, again = LATENCY.read(first).to_pylist()[:2]
    old = [kept | {"mode": "cublas"}, again | {"ms_per_token": -1.0}]
    artifacts.write_table(path, LATENCY.schema, LATENCY.build(old), {"stage": "aggregate", "spec": {}, **ORIGIN})
    join.join(tmp_path, measured[0])
    rows = LATENCY.read(path).to_pylist()
    fresh = [one for file in sorted(measured[0].glob("*.summary.parquet")) for one in LATENCY.read(file).to_pylist()]
    assert rows == [old[0], *fresh]
    repeats = LATENCY_REPEATS.read(tmp_path / "tables" / "latency_repeats.parquet")
    assert repeats.num_rows == 2 * len(fresh)
    parts = [line for word, line in explain(path) if word == "part"]
    assert [part.split(":")[0] for part in parts] == [
        "aggregate ",
        "latency_random llama-tiny",
        "latency_random opt-tiny",
    ]
    before = path.read_bytes()
    join.join(tmp_path, measured[0])  # once more adds nothing
    assert path.read_bytes() == before
    header = artifacts.read_origin(path)["header"]
    older = [part if part["stage"] == "aggregate" else part | {"code": "older"} for part in header["parts"]]
    artifacts.write_table(path, LATENCY.schema, LATENCY.build(rows), header | {"parts": older})
    join.join(tmp_path, measured[0])  # headers of what was measured again are replaced, too
    assert path.read_bytes() == before
