"""benchmarks/kept_units.py: masks are those of the evaluation; what is counted equals a count by hand."""

import importlib.util
from itertools import combinations

import pytest
import torch
from conftest import ROOT, random_predictor

from shadowcore.decode.selection import kept_of
from shadowcore.measure.sparsity import PredictedMasks
from shadowcore.models.families import KINDS, dimensions_of

SPEC = importlib.util.spec_from_file_location("kept_units", ROOT / "benchmarks" / "kept_units.py")
kept_units = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(kept_units)
PROMPT = 5


@pytest.mark.parametrize("kind", KINDS)
def test_properties_of_kept_units_equal_a_count_by_hand(tiny, kind, monkeypatch):
    """A batch has the units that the decoder reads for it; a window alone has the units that it has in a batch."""
    monkeypatch.setattr(kept_units, "BATCH", 2)
    ids = torch.randint(3, 96, (5, 12), generator=torch.Generator().manual_seed(1))
    masks = PredictedMasks(random_predictor(tiny.double(), "layerwise"), (kind,), "per_layer", 50)
    keep = kept_units.kept(tiny, masks, kind, ids, PROMPT)
    alone = [kept_units.kept(tiny, masks, kind, row[None], PROMPT) for row in ids]
    assert keep.equal(torch.cat(alone)) and len(keep[..., -1, :].flatten(0, 1).unique(dim=0)) > 1
    sequences, steps, layers, units = keep.shape
    assert (steps, layers) == (12 - PROMPT, dimensions_of(tiny.config).layers - 1)
    found = kept_units.properties(keep, {"blocks_3": 3})
    for count in (1, 2, 4):
        unions = [
            len(kept.units) / units
            for rows in combinations(range(sequences), count) for step in range(steps)
            for kept in kept_of(keep[list(rows), step])
        ]  # fmt: skip
        assert found[f"union_{count}"] == pytest.approx(sum(unions) / len(unions))
    assert found["union_8"] is None
    tokens = [[{*row.nonzero()[:, 0].tolist()} for row in of_layer] for of_layer in keep.transpose(1, 2).flatten(0, 1)]
    pairs = [(a, b) for of_layer in tokens for a, b in zip(of_layer, of_layer[1:], strict=False)]
    assert found["kept_before"] == pytest.approx(sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs))
    every = [token for of_layer in tokens for token in of_layer]
    runs = sum(unit - 1 not in token for token in every for unit in token)
    assert found["run_units"] == pytest.approx(sum(map(len, every)) / runs)
    blocks = sum(len({unit // 3 for unit in token}) for token in every)
    assert found["blocks_3"] == pytest.approx(blocks / (len(every) * -(-units // 3)))


def test_random_units_have_their_number_and_their_probabilities():
    chances = torch.tensor([[1, 0, 0.5, 0.25, 0.75, 0.5]])
    keep = kept_units.random_units(chances, 100, 400)
    assert (keep.sum(-1) == 3).all()
    # four standard errors of 40,000 independent draws
    torch.testing.assert_close(keep.double().mean((0, 1)), chances.double(), atol=0.01, rtol=0)
    assert keep[..., 0].all() and not keep[..., 1].any()
