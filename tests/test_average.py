"""The table of mean scores: those of the windows of all shards, a row for each unit."""

from itertools import product

import torch

from shadowcore import artifacts
from shadowcore.method import tracing
from shadowcore.schemas import CRITERIA
from shadowcore.stages import average


def test_means_and_deviations_of_shards_are_those_of_all_their_windows(tmp_path):
    spec, units = average.Spec("model", "text", ("plainact", "snip")), {"heads": 3, "neurons": 7}
    generator, paths, windows = torch.Generator().manual_seed(0), [], {}
    for count in (4, 3):
        tensors = {"loss": torch.rand(count, generator=generator)}
        for key in product(spec.criteria, units):
            values = torch.rand(count, 5, units[key[1]], generator=generator, dtype=torch.float64)
            windows[key] = torch.cat((windows[key], values)) if key in windows else values
            tensors[f"sequence.{'.'.join(key)}.mean"] = values.mean(0)
            tensors[f"sequence.{'.'.join(key)}.deviation"] = values.std(0, correction=0)
        paths.append(tmp_path / f"{count}.safetensors")
        artifacts.write_tensors(paths[-1], tracing.SCHEMA, tensors, {})
    average.run(spec, average.Inputs(tuple(paths)), average.Outputs(scores=tmp_path / "scores.parquet"))
    rows = CRITERIA.read(tmp_path / "scores.parquet").to_pandas()
    places = [(*key, layer, unit) for key in windows for layer in range(5) for unit in range(units[key[1]])]
    assert list(rows[["criterion", "kind", "layer", "unit"]].itertuples(index=False, name=None)) == places
    assert (rows[["model", "calibration", "n"]] == ["model", "text", 7]).all(axis=None)
    for name, wanted in (("mean", lambda one: one.mean(0)), ("deviation", lambda one: one.std(0, correction=0))):
        expected = torch.cat([wanted(values).flatten() for values in windows.values()])
        torch.testing.assert_close(torch.tensor(rows[name]).double(), expected, rtol=1e-6, atol=0)
