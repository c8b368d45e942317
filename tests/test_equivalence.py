"""The check before timing: rounding passes, bugs do not."""

from dataclasses import replace

import pytest
import torch
from conftest import random_predictor
from test_decoder import random_masks, random_model

from shadowcore.decode import operations
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import from_model
from shadowcore.decode.selection import DenseSelection, FixedSelection, Kept, PredictedSelection
from shadowcore.measure.equivalence import NEAR_TIE, Disagreement, near_ties
from shadowcore.measure.equivalence_model import check, check_thresholds
from shadowcore.method.policies import per_layer
from shadowcore.models.families import KINDS

ROOM, NEW = 20, 4
FLOAT = torch.float32


def mutated(layout, **changes):
    """The layout with some fields of its first layer changed: each a function of the layer."""
    layers = list(layout.layers)
    layers[0] = replace(layers[0], **{name: change(layers[0]) for name, change in changes.items()})
    return replace(layout, layers=tuple(layers))


def two_swapped(rows):
    return rows[[1, 0, *range(2, len(rows))]]


class PositionAhead(Decoder):
    """Steps see the next position: of the rotary tables, or of the learned ones."""

    def _embed(self, ids, position):
        return super()._embed(ids, position + 1 if isinstance(position, int) else position)

    def _rotate(self, qkv, position):
        return super()._rotate(qkv, position + 1 if isinstance(position, int) else position)


class StaleCache(Decoder):
    """A step leaves the value that an earlier sequence cached at its position in layer 1."""

    def step(self, tokens):
        stale = self._values[1, :, :, self.position - 1].clone()
        logits = super().step(tokens)
        self._values[1, :, :, self.position - 1] = stale
        return logits


class ReportsOthers(Decoder):
    """Says that it kept other neurons than it did."""

    def masks_by_sequence(self):
        masks = super().masks_by_sequence()
        return masks | {"neurons": masks["neurons"].roll(1, -1)}


def off_by_one(selection):
    """A kind of selection with a list of neurons off by one, in what is computed and in what is reported."""

    class Next(selection):
        def kept(self, layer, kind):
            kept = super().kept(layer, kind)
            return kept if kept is None or kind == "heads" else Kept((kept.units + 1).clamp(max=47).unique(), None)

    return Next


MUTATIONS = {
    "missing bias of the queries": {"query_key_value_bias": lambda layer: None},
    "missing bias of the FFN": {"ffn_down_bias": lambda layer: None},
    "two heads swapped": {"output": lambda layer: two_swapped(layer.output)},
    "two neurons swapped": {"ffn_down": lambda layer: two_swapped(layer.ffn_down)},
    "wrong epsilon of a norm": {
        "attention_norm": lambda layer: replace(layer.attention_norm, eps=10 * layer.attention_norm.eps)
    },
}


@pytest.fixture
def model():
    """A tiny Llama with biases, so that each mutation has something to change."""
    model = random_model("llama with biases, untied, wide heads")
    model.get_input_embeddings().weight.data *= 0.1  # as small as real models have them: epsilon matters
    return model


@pytest.fixture
def ids(tokens):
    return tokens[:1, :8]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_wrong_weights_are_refused(model, ids, mutation):
    layout = from_model(model)
    check("right", Decoder(layout, ROOM), model, ids, NEW)
    with pytest.raises(Disagreement, match=f"'{mutation}': logits"):
        check(mutation, Decoder(mutated(layout, **MUTATIONS[mutation]), ROOM), model, ids, 1)


@pytest.mark.parametrize("decoder", [PositionAhead, StaleCache])
def test_wrong_steps_are_refused(tiny, ids, decoder):
    with pytest.raises(Disagreement, match="logits of step"):
        check("wrong", decoder(from_model(tiny), ROOM), tiny, ids, NEW)


def test_units_that_are_not_the_ones_asked_for_are_refused(model, tokens):
    """Others, none, too many, those of another sequence, or a list off by one; or a wrong report."""
    layout, keep = from_model(model), random_masks(model)
    each = {kind: torch.stack([mask, ~mask]) for kind, mask in keep.items()}
    predictor, half = random_predictor(model, "shadow"), dict.fromkeys(KINDS, 50)
    fixed, of_each = FixedSelection(keep), FixedSelection(each)
    swapped = FixedSelection({kind: mask.flip(0) for kind, mask in each.items()})
    predicted, other = (of(predictor, "per_layer", half) for of in (PredictedSelection, off_by_one(PredictedSelection)))
    for selection in (fixed, of_each, predicted):
        rows = tokens[:2] if selection is of_each else tokens[:1]
        check("right", Decoder(layout, ROOM, selection), model, rows[:, :8], NEW, selection)
    kept = "neurons that it kept|heads that it kept"
    for decoder, wrong, wanted, message in (
        (Decoder, off_by_one(FixedSelection)(keep), fixed, kept), (Decoder, None, fixed, kept),
        (Decoder, swapped, of_each, kept),
        (Decoder, fixed, DenseSelection(), "heads that it kept"), (Decoder, other, predicted, "neurons"),
        (ReportsOthers, fixed, None, "logits of step"),
    ):  # fmt: skip
        rows = tokens[:2] if wanted is of_each else tokens[:1]
        with pytest.raises(Disagreement, match=message):
            check("wrong", decoder(layout, ROOM, wrong), model, rows[:, :8], NEW, wanted)


def test_a_threshold_may_decide_near_ties_either_way_and_nothing_else(tiny, ids):
    class Dropping(Decoder):
        """Drops neurons by magnitude, as the Triton decoder does."""

        thresholds = None

        def _ffn(self, layer, x, kept):
            if x.dim() == 3:  # the prompt
                return super()._ffn(layer, x, kept)
            index = next(i for i, one in enumerate(self.layout.layers) if one is layer)
            inner = operations.project(layer.ffn_in, layer.ffn_in_bias, x)
            active = operations.activate(inner, self.layout.activation)
            active = active * (active.abs() > self.thresholds[index])
            return operations.add(layer.ffn_down, layer.ffn_down_bias, active)

    decoder, thresholds = Dropping(from_model(tiny), ROOM), torch.full((4,), 0.5)
    decoder.thresholds = thresholds.tolist()
    check_thresholds("right", decoder, tiny, ids, NEW, thresholds)
    decoder.thresholds = [0.6] * 4
    with pytest.raises(Disagreement, match="logits of step"):
        check_thresholds("wrong", decoder, tiny, ids, NEW, thresholds)


@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16])
def test_units_within_rounding_of_the_threshold_may_change_places(dtype):
    reach = NEAR_TIE[dtype] * 10  # of scores from 0 to 10
    scores = torch.tensor([[0.0, 5.0, 5.0 + 0.9 * reach, 10.0]])
    wanted, other = per_layer(scores, 50), torch.tensor([[False, True, False, True]])
    assert near_ties("one", "neurons", scores, wanted, wanted, dtype) == 0
    assert near_ties("one", "neurons", scores, other, wanted, dtype) == 2
    scores[0, 2] = 5.0 + 1.1 * reach
    with pytest.raises(Disagreement, match="2 neurons are kept by one side only"):
        near_ties("one", "neurons", scores, other, wanted, dtype)
    with pytest.raises(Disagreement, match="another number of neurons"):
        near_ties("one", "neurons", scores, other | wanted, wanted, dtype)
    with pytest.raises(Disagreement, match="neurons are kept by one side only"):
        near_ties("one", "neurons", scores * torch.nan, other, wanted, dtype)


def test_near_ties_of_the_whole_model_may_be_in_different_layers():
    scores = torch.tensor([[0.0, 5.0], [5.00001, 10.0]])
    wanted = torch.tensor([[False, False], [True, True]])
    other = torch.tensor([[False, True], [False, True]])
    assert near_ties("one", "neurons", scores, other, wanted, FLOAT, whole_model=True) == 2
    with pytest.raises(Disagreement, match="another number"):
        near_ties("one", "neurons", scores, other, wanted, FLOAT)


def test_a_token_may_differ_where_the_two_best_logits_are_equal_within_rounding(tiny, ids):
    """The output rows of two tokens are almost equal. What follows either of them is compared all the same."""
    head = tiny.get_output_embeddings().weight.data
    first = Decoder(from_model(tiny), ROOM).generate(ids, 1)[0, 0]
    twin = 3 if first != 3 else 4
    separate = head.clone()  # the decoder's own copy, in which the twin is ahead by less than the tolerance
    head[twin] = head[first]
    separate[twin] = head[first] * (1 + 2e-6)
    layout = replace(from_model(tiny), head=separate)
    found = check("twin", Decoder(layout, ROOM), tiny, ids, NEW)
    assert found.token_ties >= 0 and found.error > 0
    separate[twin] *= 1.01
    with pytest.raises(Disagreement):
        check("twin", Decoder(layout, ROOM), tiny, ids, NEW)
