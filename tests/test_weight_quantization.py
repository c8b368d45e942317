"""Small predictors, in 8 bits and in blocks: the decoder reads the very predictor that accuracy was measured with."""

import pytest
import torch
from test_decoder import PROMPT

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import from_model
from shadowcore.decode.selection import PredictedSelection
from shadowcore.measure.equivalence_decoder import gate
from shadowcore.measure.sparsity import PredictedMasks
from shadowcore.method.policies import kept_units
from shadowcore.method.predictors import Predictor
from shadowcore.method.weight_quantization import eight_bits, power_of_two, restored, stored
from shadowcore.models.families import KINDS, dimensions_of
from shadowcore.models.losses import all_scored

BLOCK = 16


@pytest.fixture
def predictor(tiny):
    """As a file of 8 bits and blocks brings it back, with scales as training sets them."""
    generator = torch.Generator().manual_seed(0)
    made = Predictor("segments", dimensions_of(tiny.config), {"heads": 4, "neurons": 24}, 2, bits=8, block=BLOCK)
    for kind in KINDS:
        for scorer in made.scorers[kind]:
            for tensor in (*scorer.parameters(), scorer.feature_mean, scorer.score_mean):
                tensor.data = torch.randn(tensor.shape, generator=generator)
            for scale in (scorer.feature_scale, scorer.score_scale):
                scale.copy_(power_of_two(torch.rand(scale.shape, generator=generator) * 9 + 1e-3))
    made.load_state_dict(restored(stored(made.state_dict(), 8)))
    return made.eval()


@torch.no_grad()
def test_a_decoder_rounds_an_8_bit_predictor_to_what_its_file_holds(predictor):
    pytest.importorskip("triton", reason="Triton is not installed, so there is no Triton decoder to test")
    from shadowcore.decode.packed_predictor import pack

    file = stored(predictor.state_dict(), 8)
    x = torch.randn(predictor.sizes.width, generator=torch.Generator().manual_seed(1))
    packed = pack(predictor, KINDS, torch.bfloat16, torch.device("cpu"))
    assert predictor.step_bytes(KINDS) == packed.weight_bytes
    for index, group in enumerate(packed.groups):
        names = [f"scorers.{kind}.{index}" for kind in KINDS]
        assert torch.equal(group.inner, torch.cat([file[f"{name}.inner.weight"] for name in names]))
        assert torch.equal(group.inner_scale, torch.cat([file[f"{name}.inner.step"] for name in names]))
        hidden = torch.relu((group.inner.float() @ x) * group.inner_scale + group.inner_bias)
        for kind, name, part in zip(KINDS, names, hidden.split([predictor.ranks[kind] for kind in KINDS]), strict=True):
            scorer = group.outer[kind]
            assert torch.equal(scorer.weight.flatten(0, 1), file[f"{name}.outer.weight"])
            scores = (scorer.weight.float() @ part) * scorer.scale + scorer.bias
            torch.testing.assert_close(scores, predictor.read(group.site, x, kind)[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_whole_blocks_are_kept_alike_by_the_model_and_by_the_decoder(predictor):
    predictor = predictor.double()  # so precise that rounding decides no selection
    sizes, pct = predictor.sizes, 50
    ids = torch.randint(3, 96, (1, 2), generator=torch.Generator().manual_seed(2))
    masks = PredictedMasks(predictor, KINDS, "per_layer", pct).begin(ids, all_scored(ids))
    decoder = PredictedSelection(predictor, "per_layer", dict.fromkeys(KINDS, pct))
    generator = torch.Generator().manual_seed(3)
    for group in predictor.groups:
        x = torch.randn(1, 1, sizes.width, generator=generator, dtype=torch.float64)
        masks(group.site, x)
        decoder.see(group.site, x[:, 0])
        for layer in group.layers:
            kept = masks(group.site._replace(layer=layer, what="neurons"), x)[0, 0]
            assert torch.equal(decoder.kept(layer, "neurons").units, kept.nonzero()[:, 0])
            blocks = kept.unflatten(-1, (-1, BLOCK))
            assert torch.equal(blocks.all(-1), blocks.any(-1))
            assert blocks.any(-1).sum() == kept_units(sizes.neurons // BLOCK, pct)


@pytest.mark.skipif(torch.cuda.is_available(), reason="models on the CPU, kernels interpreted")
@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_blocks_are_skipped_alike_by_both_decoders(tiny, tokens, predictor):
    pytest.importorskip("triton", reason="Triton is not installed, so there is no Triton decoder to test")
    from shadowcore.decode.triton_decoder import GraphDecoder

    predictor.bits = 16  # the same numbers: of several sequences, 8-bit weights are multiplied with 16-bit features
    layout, selection = from_model(tiny), PredictedSelection(predictor, "per_layer", dict.fromkeys(KINDS, 50))
    for ids in (tokens[:1, :PROMPT], tokens[:, :PROMPT]):  # one sequence, and several
        ours, reference = GraphDecoder(layout, 16, selection), Decoder(layout, 16)
        ours.prefill(ids)  # fills the cache that both continue from
        gate("blocks", ours, reference, PROMPT, ids[:, -1])


@pytest.mark.parametrize("rows", [(7,), (3, 5)])
def test_eight_bits_are_near_and_stay_the_same_when_rounded_again(rows):
    weight = torch.randn(*rows, 40, generator=torch.Generator().manual_seed(0)).mul(3).exp()
    weight[0] *= -1e-5
    rounded, step = eight_bits(weight)
    assert rounded.abs().amax(-1).eq(127).all()
    assert ((rounded * step[..., None] - weight).abs() <= step[..., None] / 2 * 1.001).all()
    for scale in (power_of_two(torch.rand(40) + 1e-3), 1.0):
        again, same = eight_bits(rounded * step[..., None] * scale / scale)
        assert torch.equal(again, rounded) and torch.equal(same, step)
    assert torch.equal(
        power_of_two(torch.tensor([0.7, 0.71, 1.0, 3.0, 2**-20.4])), torch.tensor([0.5, 1, 1, 4, 2**-20])
    )
