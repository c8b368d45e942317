"""The table of mean scores: columns from whole tensors, the same file as from a row at a time."""

import pytest
import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.models.families import KINDS
from shadowcore.schemas import CRITERIA
from shadowcore.stages import average

SPEC = average.Spec("model", "text", ("plainact", "snip"))
UNITS = {"heads": 3, "neurons": 700}  # 2 x 2 x 5 x 703 rows are more than one of Parquet's pages


@pytest.fixture
def traces(tmp_path):
    """Two shards, of 4 and 3 windows of 5 layers."""
    generator, paths = torch.Generator().manual_seed(0), []
    for windows in (4, 3):
        tensors = {"loss": torch.rand(windows, generator=generator)}
        for criterion in SPEC.criteria:
            for kind, units in UNITS.items():
                for part in ("mean", "deviation"):
                    shape = (5, units)
                    values = torch.rand(shape, generator=generator, dtype=torch.float64)
                    tensors[f"sequence.{criterion}.{kind}.{part}"] = values
        paths.append(tmp_path / f"{windows}.safetensors")
        artifacts.write_tensors(paths[-1], tracing.SCHEMA, tensors, {})
    return tuple(paths)


def rows_of(paths):
    """One row of the table after the other, by the definition of each column."""
    shards = [artifacts.read_tensors(path, tracing.SCHEMA) for path in paths]
    for criterion in SPEC.criteria:
        for kind in KINDS:
            moments = tracing.Moments()
            for shard in shards:
                mean, deviation = (shard[f"sequence.{criterion}.{kind}.{part}"] for part in ("mean", "deviation"))
                moments.merge(len(shard["loss"]), mean, deviation.square() * len(shard["loss"]))
            for layer in range(5):
                for unit in range(UNITS[kind]):
                    yield {
                        "model": "model", "calibration": "text", "criterion": criterion, "kind": kind, "layer": layer,
                        "unit": unit, "mean": moments.mean[layer, unit].item(),
                        "deviation": moments.deviation[layer, unit].item(), "n": 7,
                    }  # fmt: skip


def test_the_table_is_the_same_bytes_as_one_built_row_by_row(traces, tmp_path, monkeypatch):
    found, expected = tmp_path / "found.parquet", tmp_path / "expected.parquet"
    table = CRITERIA.build(rows_of(traces))
    artifacts.write_table(expected, CRITERIA.schema, table, average.header("average", SPEC, average.Inputs(traces)))
    monkeypatch.setattr(type(CRITERIA), "build", lambda *_: pytest.fail("a row at a time"))
    average.run(SPEC, average.Inputs(traces), average.Outputs(scores=found))
    assert found.read_bytes() == expected.read_bytes()
