"""Times of models known by their dimensions: the rule on a CPU, and what a GPU would time, gated by the interpreter."""

import dataclasses

import pandas as pd
import pytest
import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import upcast
from shadowcore.decode.random_weights import last_units, random_layout, require_room
from shadowcore.errors import ConfigError
from shadowcore.measure import gpu_timing
from shadowcore.measure.dense_baselines import HuggingFaceGenerate
from shadowcore.measure.equivalence import Disagreement
from shadowcore.measure.equivalence_decoder import gate
from shadowcore.measure.latency_variants import Design, Modes, variants
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import KINDS
from shadowcore.models.published import PUBLISHED
from shadowcore.report.figures.sweeps import batches, break_even
from shadowcore.stages.latency_random import Inputs, Outputs, Spec, built, run

CPU = torch.device("cpu")
SPEC = Spec(
    model="opt-tiny", dtype="float32", units="both", sparsities_pct=(50,),
    designs=(
        Design("shadow", 8, 16), Design("layerwise", 8, 16), Design("segments", 8, 16, segments=2), Design("proxy4"),
    ),
    baselines=(), active=0.1, batch=1, prompt_tokens=8, short_tokens=1, new_tokens=3, repeats=2, warmup=0, seed=0,
)  # fmt: skip


def layout_of(name, dtype=torch.float32):
    family, sizes = PUBLISHED[name]
    return random_layout(family, sizes, dtype, CPU, 0, 0.1)


@pytest.mark.parametrize("model, batch", [("opt-tiny", 2), ("llama-tiny", 1)])
def test_the_rule_measures_the_torch_backend_on_a_cpu_and_says_so(model, batch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, so the rule would measure it")
    spec = dataclasses.replace(SPEC, model=model, batch=batch)
    outputs = Outputs(**{name: tmp_path / f"{name}.parquet" for name in ("summary", "repeats", "refused")})
    run(spec, Inputs(), outputs)
    rows, raw = pd.read_parquet(outputs.summary), pd.read_parquet(outputs.repeats)
    assert list(rows["mode"]) == ["dense", "static", "given", "shadow", "layerwise", "segments", "proxy4"]
    assert set(rows["batch"]) == {batch} and set(rows["prompt_tokens"]) == {8} and set(rows["new_tokens"]) == {3}
    assert set(raw["batch"]) == {batch} and len(raw) == len(rows) * spec.repeats
    assert set(rows["backend"]) == {"torch"} and set(rows["weights"]) == {"random"} and rows["threads"].notna().all()
    sparse = rows[rows["mode"] != "dense"]
    units = PUBLISHED[model][1]
    kept = units.heads + (units.layers - 1) * units.heads // 2
    both = sparse[sparse["units"] == "both"]
    assert set(both["kept_heads"]) == {kept} if batch == 1 else both["kept_heads"].min() == kept  # else united
    assert (both["gb_per_token"] < rows["gb_per_token"][0]).all() and (rows["gate_error"] < 1e-5).all()
    if units.kv_heads == units.heads:  # each sequence reads the cache of its own heads only
        cached = rows["roofline_ms"] * rows["ceiling_gb_s"] / 1e3 - rows["gb_per_token"]
        share = kept / (units.layers * units.heads)
        assert list(cached[both.index] / cached[0]) == pytest.approx([share] * len(both))
    (proxy,) = rows[rows["mode"] == "proxy4"].to_dict("records")
    assert (
        proxy["units"] == "neurons" and proxy["predictor_bits"] == 4 and proxy["predictor_groups"] == units.layers - 1
    )
    assert proxy["kept_heads"] == units.layers * units.heads and proxy["kept_neurons"] < units.layers * units.neurons


@pytest.mark.parametrize("model, few", [pytest.param("opt-tiny", False, marks=pytest.mark.slow), ("llama-tiny", True)])
def test_every_mode_of_a_gpu_passes_its_gate(model, few):
    pytest.importorskip("triton", reason="Triton is not installed, so there is nothing a GPU would time")
    designs = (Design("shadow", 8, 16, bits=8), Design("layerwise", 8, 16), Design("proxy4"), Design("proxy3_ahead"))
    baselines = ("cublas", "gather_ordered", "gather_shuffled", "relu", "huggingface", "huggingface_static")
    designs, baselines = (designs[:1], ("cublas", "gather_shuffled", "huggingface")) if few else (designs, baselines)
    layout, room = layout_of(model), SPEC.prompt_tokens + SPEC.new_tokens
    modes = Modes("both", (50,), designs, baselines, room, 0)
    reference, timed, facts = Decoder(upcast(layout), room), {}, {}

    def build(modes, wanted=()):
        for name, own, make in variants(modes, layout, triton=True):
            if wanted and own["mode"] not in wanted:
                continue
            spec = dataclasses.replace(SPEC, batch=modes.batch)
            first = next(iter(timed.values()), None)
            timed[name], _, facts[name] = built(name, own["mode"], make, spec, layout, first, reference)
            assert facts[name]["gate_error"] < 1e-5

    build(modes)
    assert len(timed) == (7 if few else 13)
    found = gpu_timing.parts(timed["shadow 8/16 8 bits, 1 groups 50"], SPEC.prompt_tokens, 1)
    assert set(found) == {"attention_ms", "ffn_ms", "norms_ms", "vocabulary_ms", "predictor_ms", "selection_ms"}
    if few:
        return
    assert facts["proxy4 50"]["gb_per_token"] < facts["dense"]["gb_per_token"]
    assert 0 < facts["relu"]["active"] < 0.3  # one neuron in ten is meant to be active
    timed.clear()
    three = dataclasses.replace(modes, batch=3, sparsities_pct=(90,))
    build(three, wanted=("dense", "shadow", "relu"))  # the zeros of a batch differ by sequence
    assert list(timed) == ["dense", "shadow 8/16 8 bits, 1 groups 90"]
    most, least = (max(1, round(0.1 * timed["dense"].layout.sizes.neurons)) * n for n in (3, 1))
    united = timed["shadow 8/16 8 bits, 1 groups 90"].selection.kept(1, "neurons").units
    assert least <= len(united) <= most


def test_wrong_numbers_are_not_timed():
    layout = layout_of("opt-tiny")
    reference, decoder = Decoder(layout, 16), Decoder(layout_of("opt-tiny"), 16)
    gate("dense", decoder, reference, 8, torch.tensor([11]))
    decoder.layout.layers[1].output[2] *= 2
    with pytest.raises(Disagreement, match="variant 'dense'"):
        gate("dense", decoder, reference, 8, torch.tensor([11]))


def test_upcast_weights_are_the_same_numbers():
    layout = layout_of("llama-tiny", torch.bfloat16)
    wide = upcast(layout)
    assert wide.dtype == torch.float32 and len(wide.layers) == len(layout.layers)
    for ours, theirs in zip(wide.layers, layout.layers, strict=True):
        assert torch.equal(ours.ffn_in, theirs.ffn_in.float()) and torch.equal(ours.output, theirs.output.float())


def test_last_units_are_views():
    layout = layout_of("llama-tiny")
    cut = last_units(layout, {"heads": 2, "neurons": 80}, FIRST_SPARSE_LAYER)
    assert [len(layer.output) for layer in cut.layers] == [4, 2, 2]
    assert cut.layers[1].ffn_in.untyped_storage().data_ptr() == layout.layers[1].ffn_in.untyped_storage().data_ptr()
    assert {kind: int(mask.sum()) for kind, mask in cut.keep_masks().items()} == {"heads": 8, "neurons": 320}
    assert all(cut.layers[2].present[kind][-1] == layout.sizes.units(kind) - 1 for kind in KINDS)


def test_models_that_do_not_fit_say_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *device: (80_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    with pytest.raises(ConfigError, match=r"need 131,\d{3},\d{3},\d{3} bytes, a GPU has 80,000,000,000 free"):
        require_room(*PUBLISHED["opt-66b"], torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model": "opt-6b"}, "did you mean 'opt-66b'|did you mean 'opt-6.7b'"),
        ({"baselines": ("cubla",)}, "did you mean 'cublas'"),
        ({"short_tokens": 3}, "short_tokens: 3 .* new_tokens 3"),
        ({"prompt_tokens": 62}, "prompt_tokens.*65 .* 64, the positions of opt-tiny"),
        ({"designs": (Design("shadow", 8, 16, bits=8),)}, "no 8-bit predictors; bits must be 16"),
    ],
)
def test_bad_input(changes, says, tmp_path):
    if torch.cuda.is_available() and "designs" in changes:
        pytest.skip("a GPU has 8-bit predictors")
    with pytest.raises(ConfigError, match=says):
        run(dataclasses.replace(SPEC, **changes), Inputs(), Outputs())
    assert not list(tmp_path.iterdir())


MADE_UP = {"device": "a GPU", "model": "opt-tiny", "weights": "random", "dtype": "bfloat16"}
MADE_UP |= {"roofline_ms": 1.0, "ceiling_gb_s": 1.0}


def test_sparsity_at_which_skipping_begins_to_pay():
    gains = pd.DataFrame(
        [(1, 30, 1.2), (1, 50, 1.5), (4, 30, 0.8), (4, 50, 1.2), (8, 30, 0.5), (8, 50, 0.7), (8, 70, 0.9)],
        columns=["batch", "sparsity_pct", "gain"],
    )
    found = break_even(gains)
    assert found[1] == 30 and found[4] == pytest.approx(40) and pd.isna(found[8])


def test_several_sequences_are_drawn_at_the_lengths_of_most_rows_in_whatever_order():
    def row(mode, pct, batch, prompt, ms):
        rank, bits = (8, 16) if mode == "shadow" else (None, None)
        setting = {"batch": batch, "prompt_tokens": prompt, "new_tokens": 8, "mode": mode, "sparsity_pct": pct}
        return MADE_UP | setting | {"predictor_rank": rank, "predictor_bits": bits, "ms_per_token": ms}

    rows = [row("dense", 0, 1, 500, 5.0), row("shadow", 50, 1, 500, 1.0)]
    for batch, gain in ((1, 2.0), (4, 1.25)):
        rows += [row("dense", 0, batch, 100, 4.0)]
        rows += [row("shadow", pct, batch, 100, 4 / gain) for pct in (50, 90)]
    for ordered in (rows, rows[::-1]):
        panel = batches({"latency": pd.DataFrame(ordered)}, "").axes[0]
        assert [list(line.get_ydata()) for line in panel.lines[:2]] == [[2.0, 1.25]] * 2


@pytest.mark.parametrize("model", ["opt-tiny", "llama-tiny"])
@pytest.mark.parametrize("static", [False, True])
def test_hugging_face_generates_from_the_weights_of_the_layout(model, static):
    layout = layout_of(model)
    theirs, generated = HuggingFaceGenerate(layout, 16, 2, static), []
    generate = theirs.model.generate
    theirs.model.generate = lambda *given, **more: generated.append(generate(*given, **more))
    theirs.go_to(8)
    for steps in (3, 5):  # a used cache begins anew
        theirs.advance(steps)
    assert [tuple(ids.shape) for ids in generated] == [(2, 8 + 3), (2, 8 + 5)]
    ids = torch.arange(5, 13)[None]
    torch.testing.assert_close(theirs.prefill(ids), Decoder(layout, 16).prefill(ids), atol=1e-4, rtol=1e-4)
    (embedding,) = {t.data_ptr() for t in (theirs.model.get_input_embeddings().weight, layout.embedding)}
    assert embedding == layout.embedding.data_ptr()
