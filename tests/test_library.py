"""The library as a user meets it: the page's code runs, sparse is what is evaluated, bad input is one sentence."""

import json
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, refused, write_benchmarks, write_words
from transformers import GenerationConfig

import shadowcore as sc
from shadowcore import artifacts, benchmarks, cli
from shadowcore.errors import ConfigError
from shadowcore.library import decoding
from shadowcore.measure.equivalence import Disagreement
from shadowcore.measure.equivalence_model import check
from shadowcore.measure.group import Group
from shadowcore.measure.latency import bytes_per_step
from shadowcore.measure.perplexity import window_losses
from shadowcore.measure.questions import Questions
from shadowcore.measure.sparsity import PredictedMasks, SparseModel
from shadowcore.method.predictors import PREDICTOR_SCHEMA
from shadowcore.method.weight_quantization import stored
from shadowcore.models.families import KINDS
from shadowcore.models.folders import load_model
from shadowcore.models.losses import all_scored
from shadowcore.models.tokenizers import byte_tokenizer
from shadowcore.stages import fetch_model
from shadowcore.texts import cutting
from shadowcore.texts.documents import Document, documents_to_table

PAGE, README = ((ROOT / name).read_text() for name in ("docs/library.md", "README.md"))
TRAIN = {"window_tokens": 32, "windows": 8, "rank": 4}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return pd.read_parquet(write_words(tmp_path_factory.mktemp("words") / "words")).text.tolist()


@pytest.fixture(scope="module", params=["llama", "opt"])
def quick(request, tmp_path_factory, texts):
    """A folder in which results/quick has a tiny model of each family in turn, and documents."""
    place = tmp_path_factory.mktemp(request.param)
    root = place / "results" / "quick"
    source = {"family": request.param, "layers": 3, "width": 32, "heads": 4, "neurons": 48, "positions": 64}
    model = root / "models" / "smollm2-135m"
    fetch_model.run(
        fetch_model.Spec("random", source), fetch_model.Inputs(),
        fetch_model.Outputs(card=model / "card.json", weights=model / "weights"),
    )  # fmt: skip
    table = documents_to_table([Document.of(str(i), text) for i, text in enumerate(texts)]).to_pandas()
    table["split"] = ["train"] * 12 + ["heldout"] * 2 + ["evaluation"] * 6
    (root / "texts" / "wikipedia").mkdir(parents=True)
    table.to_parquet(root / "texts" / "wikipedia" / "documents.parquet")
    return place


@pytest.fixture(scope="module")
def loaded(quick):
    """The model and its tokenizer."""
    weights = quick / "results" / "quick" / "models" / "smollm2-135m" / "weights"
    return load_model(weights), byte_tokenizer()


@pytest.fixture(scope="module")
def predictor(loaded, texts):
    return sc.train_predictor(*loaded, texts, **TRAIN)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """PIQA from a folder instead of the hub."""
    folder = write_benchmarks(tmp_path / "benchmarks")
    read = benchmarks.read
    monkeypatch.setattr(benchmarks, "read", lambda name, split, place, key: read(name, split, place or folder, key))
    return str(folder)


# ---- pages


@pytest.mark.parametrize("page", [PAGE, README], ids=["library", "readme"])
def test_the_code_of_a_page_runs_as_it_stands(quick, offline, monkeypatch, capsys, page):
    monkeypatch.chdir(quick)
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(code, names)
    said = capsys.readouterr()
    assert "The capital of" in said.out and "'share_of_dense_bytes'" in said.out
    assert ("'acc'" in said.out) == (page == PAGE)  # README's needs no internet
    assert isinstance(names["predictor"], sc.Predictor)
    trained = names["predictor"].trained
    for bar in (
        f"tracing train windows: 100%.* {trained['windows']}/{trained['windows']} ",
        "training epochs: 100%.* 3/3 ",
    ):
        assert re.search(bar, said.err), said.err


def test_the_readme_has_lines_of_the_page():
    """Comments may differ."""
    (readme,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  # ")[0] for line in readme.splitlines()]
    assert set(lines) <= {line.partition("  # ")[0] for line in PAGE.splitlines()} and len(lines) < 18


@pytest.mark.parametrize("quick", ["llama"], indirect=True)
def test_the_cells_of_the_notebook_run(quick, monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    notebook = json.loads((ROOT / "examples" / "library.ipynb").read_text())
    monkeypatch.chdir(quick)
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
            exec("".join(cell["source"]), names)
    assert (names["table"].value > 1).all() and len(names["table"]) == 8


STARTS = "\n".join(  # what every start of Snakemake imports
    line
    for path in (ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    for line in re.findall(r"^ *(from shadowcore.* import .*)$", path.read_text(), re.MULTILINE)
    if "incomplete" not in line  # after a failure
)


@pytest.mark.parametrize(("imports", "slow"), [
    ("import shadowcore", {"torch", "lm_eval", "transformers"}),
    (STARTS, {"lm_eval", "transformers", "matplotlib", "scipy", "pandas"}),
])  # fmt: skip
def test_imports_leave_out_packages_that_take_seconds(imports, slow):
    code = f"import sys\n{imports}\nassert not {slow} & set(sys.modules), {slow} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_typed_and_documented():
    typed = re.findall(r"import (\w+) as \1", (ROOT / "shadowcore" / "__init__.pyi").read_text())
    assert sorted(typed) == sorted(set(sc.__all__) - {"__version__"})
    for name in typed:
        assert getattr(sc, name).__doc__, name
    assert set(sc.__all__) <= set(dir(sc))
    with pytest.raises(AttributeError, match="train_predictor"):
        sc.train  # noqa: B018


# ---- a sparse model is the one that is evaluated


@pytest.fixture
def tiny(tiny):
    """In float64: these tests compute the same masks in two ways, and rounding must not decide which unit is kept."""
    return tiny.double()


random_predictor = partial(conftest.random_predictor, of=partial(sc.Predictor, criterion="plainact"))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def same(generated, theirs):
    """`generate` returns the logits of each step in float32, whatever the model computes in."""
    torch.testing.assert_close(torch.stack(tuple(generated), 1), theirs.float(), atol=1e-5, rtol=1e-5)


def expected_logits(model, predictor, ids, prompt, policy="per_layer"):
    """Of the evaluation under protocol `token`, for what follows the first `prompt` tokens."""
    sparse = SparseModel(model, PredictedMasks(predictor, KINDS, policy, 50))
    return sparse.logits(ids, all_scored(ids, prompt), first_kept=prompt - 1)


GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
HOW = [{}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}]
WITH_LOGITS = GREEDY | {"output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("options", HOW, ids=str)
@pytest.mark.parametrize("design", ["shadow", "layerwise"])
def test_generation_is_the_evaluations(tiny, tokens, design, options):
    predictor = random_predictor(tiny, design)
    with sc.sparsify(tiny, predictor, 0.5) as sparse:
        found = sparse.generate(tokens, **WITH_LOGITS, **options)
    wanted = expected_logits(tiny, predictor, found.sequences, tokens.shape[1])
    same(found.logits, wanted)
    dense = tiny.generate(tokens, **WITH_LOGITS)
    assert not torch.allclose(torch.stack(dense.logits, 1), wanted.float(), atol=1e-2)


def test_generation_of_every_family_is_the_evaluations(of_family, tokens):
    test_generation_is_the_evaluations(of_family.double(), tokens, "layerwise", {})


def test_assisted_and_configured_generation_says_the_same(tiny, tokens):
    predictor, ids = random_predictor(tiny), tokens[:1].repeat(1, 2)
    with sc.sparsify(tiny, predictor, 0.5) as sparse:
        plain = sparse.generate(ids, **GREEDY)
        config = GenerationConfig(**GREEDY)
        assert torch.equal(sparse.generate(ids, prompt_lookup_num_tokens=2, **GREEDY), plain)
        assert torch.equal(sparse.generate(inputs=ids, generation_config=config), plain)
    assert config.disable_compile is None  # the caller's


def test_a_row_of_a_batch_padded_on_the_left_is_the_row_alone(tiny, tokens):
    predictor, short = random_predictor(tiny), tokens[1:, 5:]
    padded = torch.cat((tokens[:1], torch.cat((torch.zeros_like(tokens[1:, :5]), short), 1)))
    mask = torch.ones_like(padded)
    mask[1, :5] = 0
    with sc.sparsify(tiny, predictor, 0.5, policy="global") as sparse:
        both = sparse.generate(padded, attention_mask=mask, **WITH_LOGITS)
        for row, alone in enumerate((tokens[:1], short)):
            one = sparse.generate(input_ids=alone, **WITH_LOGITS)
            same([logits[row : row + 1] for logits in both.logits], torch.stack(one.logits, 1))


def test_a_call_masks_every_position(tiny, tokens):
    predictor = random_predictor(tiny)
    with sc.sparsify(tiny, predictor, 0.5) as sparse:
        close(sparse(tokens[:, :-1]).logits, expected_logits(tiny, predictor, tokens, 1))
        by_embedding = sparse(inputs_embeds=tiny.get_input_embeddings()(tokens[:, :-1])).logits
    close(by_embedding, expected_logits(tiny, predictor, tokens, 1))


def test_sparsity_zero_is_the_dense_model_and_units_choose_what_is_skipped(tiny, tokens):
    predictor = random_predictor(tiny)
    with torch.no_grad():
        dense = tiny(tokens).logits
        with sc.sparsify(tiny, predictor, 0) as sparse:
            close(sparse(tokens).logits, dense)
        found = []
        for units in (None, "both", "heads", "neurons"):
            with sc.sparsify(tiny, predictor, 0.5, units=units) as sparse:
                found.append(sparse(tokens).logits)
    close(found[0], found[1])
    assert not torch.allclose(found[2], found[3])


def hooks_of(model):
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


def test_the_model_is_left_as_it_was_whatever_happens(tiny, tokens):
    before, state = tiny(tokens).logits, {name: value.clone() for name, value in tiny.state_dict().items()}
    with pytest.raises(ZeroDivisionError), sc.sparsify(tiny, random_predictor(tiny), 0.5) as sparse:
        sparse(tokens)
        assert torch.equal(tiny(tokens).logits, before)  # dense inside the block, too
        with pytest.raises(IndexError):
            sparse(tokens + 1000)
        assert hooks_of(tiny) == 0
        raise ZeroDivisionError
    assert hooks_of(tiny) == 0 and torch.equal(tiny(tokens).logits, before)
    assert all(torch.equal(value, state[name]) for name, value in tiny.state_dict().items())
    for use in (lambda: sparse(tokens), lambda: sparse.generate(tokens), lambda: sc.perplexity(sparse, None, [])):
        refused("block has ended", use)


@pytest.mark.parametrize("method", ["proxy4", "proxy3_ahead"])
def test_a_proxy_needs_no_predictor(tiny, tokens, method):
    tiny = tiny.float()
    decoder = sc.decoder(tiny, method, sparsity=0.25)
    check(method, decoder.sparse, tiny, tokens[:1], 3, decoder.selection, decoder.masks)
    assert sc.benchmark(decoder, prompt_tokens=4, new_tokens=2, repeats=1)["share_of_dense_bytes"] > 0
    assert len(decoder.generate(tokens[0].tolist(), max_new_tokens=3, eos_token_id=-1)) == 3
    kept = decoder.sparse.keep_masks()
    neurons = kept["neurons"].shape[1]
    assert kept["neurons"].sum(1).tolist() == [neurons] + 3 * [neurons * 3 // 4] and kept["heads"].all()


@pytest.mark.parametrize("steps", [1, 4])  # between two checks for the end
def test_the_decoder_says_what_the_sparse_model_says_up_to_the_end(tiny, tokens, monkeypatch, steps):
    monkeypatch.setitem(decoding.STEPS_BETWEEN_CHECKS, "torch", steps)
    predictor = random_predictor(tiny)
    decoder, ids = sc.decoder(tiny, predictor, 0.5), tokens[:1]
    with sc.sparsify(tiny, predictor, 0.5) as sparse:
        new = sparse.generate(ids, **GREEDY)[0, 12:].tolist()
    end = dict(eos_token_id=-1, max_new_tokens=6)
    assert decoder.generate(ids, **end).tolist() == new
    assert decoder.generate(ids[0], dense=True, **end).tolist() == tiny.generate(ids, **GREEDY)[0, 12:].tolist()
    for last in new:
        found = decoder.generate(ids[0].tolist(), max_new_tokens=6, eos_token_id=[last]).tolist()
        assert found == new[: new.index(last) + 1]


def test_text_in_gives_text_out_up_to_a_stop(loaded, predictor):
    model, tokenizer = loaded
    decoder = sc.decoder(model, predictor, 0.5)
    text = decoder.generate("abc", tokenizer, 12, eos_token_id=-1)
    ids = decoder.generate(tokenizer("abc")["input_ids"], max_new_tokens=12, eos_token_id=-1)
    assert len(ids) == 12 and text == tokenizer.decode(ids) and not text.startswith("abc")
    stop = text[3]
    assert decoder.generate("abc", tokenizer, 12, stop, eos_token_id=-1) == text[: text.index(stop)]


def test_the_triton_backend_can_be_asked_for(tiny):
    pytest.importorskip("triton", reason="Triton is not installed")
    from shadowcore.decode.triton_decoder import GraphDecoder

    with pytest.raises(ConfigError, match="torch backend"):
        sc.decoder(tiny, random_predictor(tiny), backend="triton")  # in float64
    decoder = sc.decoder(tiny.float(), random_predictor(tiny), backend="triton")
    assert isinstance(decoder.sparse, GraphDecoder) and isinstance(decoder.dense, GraphDecoder)


def test_a_tokenizer_that_leaves_out_a_first_space_loses_none(loaded, predictor):
    class Stripping:
        """As SentencePiece's: a space at the beginning of what is decoded is no part of it."""

        def __init__(self, tokenizer):
            self.tokenizer, self.eos_token_id = tokenizer, None

        def __call__(self, text):
            return self.tokenizer(text)

        def decode(self, ids, **more):
            return "".join(" " if one % 2 else "x" for one in ids).removeprefix(" ")

    model, tokenizer = loaded
    decoder = sc.decoder(model, predictor, 0.5)
    new = decoder.generate(tokenizer("bc")["input_ids"], max_new_tokens=9, eos_token_id=-1).tolist()
    text = decoder.generate("bc", Stripping(tokenizer), 9, eos_token_id=-1)
    assert text == "".join(" " if one % 2 else "x" for one in new)


# ---- training, saving and measuring


def test_training_is_seeded_and_changes_nothing_of_the_callers(loaded, texts, predictor):
    model, tokenizer = loaded
    assert hooks_of(model) == 0 and all(one.requires_grad and one.grad is None for one in model.parameters())
    state = torch.get_rng_state()
    again = sc.train_predictor(model, tokenizer, texts, **TRAIN)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in predictor.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert predictor.trained["windows"] == 8 and predictor.trained["tokens"] == 8 * 31
    assert predictor.trained["heldout_loss"] <= predictor.trained["heldout_loss_of_mean_scores"]


@pytest.mark.parametrize(
    "options", [{"design": "segments", "segments": 2, "units": "both"}, {"design": "layerwise"}], ids=str
)
def test_a_saved_predictor_is_the_trained_one(loaded, texts, tmp_path, options):
    model, tokenizer = loaded
    predictor = sc.train_predictor(model, tokenizer, texts, criterion="l2_norm", **TRAIN, **options)
    predictor.save_pretrained(tmp_path / "new" / "folder", licence="apache-2.0")
    again = sc.Predictor.from_pretrained(tmp_path / "new" / "folder", model)
    assert [str(name) for name in again.state_dict()] == [str(name) for name in predictor.state_dict()]
    assert all(map(torch.equal, again.state_dict().values(), predictor.state_dict().values()))
    for name in ("design", "criterion", "ranks", "groups", "sizes", "trained", "model_name"):
        assert getattr(again, name) == getattr(predictor, name), name
    assert not again.training
    card = (tmp_path / "new" / "folder" / "README.md").read_text()
    for fact in ("license: apache-2.0", options["design"], "l2_norm", "4 for neurons", "weights"):
        assert fact in card, fact
    first = {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()}
    again.save_pretrained(tmp_path / "new" / "folder", licence="apache-2.0")  # over itself
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()} == first
    assert set(first) == {"config.json", "model.safetensors", "README.md"}
    assert str(tmp_path) not in card + first["config.json"].decode()


def harness_model(model, predictor):
    """As the evaluation puts a predictor on a model; dense without one."""
    masks = None if predictor is None else PredictedMasks(predictor, ("neurons",), "per_layer", 50)
    return Group({"one": SparseModel(model, masks)})


@pytest.mark.parametrize("dense", [False, True])
def test_perplexity_and_benchmarks_are_those_of_the_evaluation(loaded, texts, predictor, tmp_path, dense):
    model, tokenizer = loaded
    group, folder = harness_model(model, None if dense else predictor), str(write_benchmarks(tmp_path / "benchmarks"))
    with sc.sparsify(model, predictor, 0.5) as sparse:
        one = model if dense else sparse
        found = sc.perplexity(one, tokenizer, texts[:3], window_tokens=32)
        measured = sc.evaluate(one, tokenizer, ["piqa", "wikitext"], offline_dir=folder, limit=5)
    windows = cutting.windows([Document.of("", text) for text in texts[:3]], tokenizer, 32, None, 0)
    losses = window_losses(group, torch.tensor([window.ids for window in windows]), 4)["one"]
    assert np.isclose(found["value"], np.exp(losses.sum().item() / (31 * len(windows)))) and found["n"] == 3
    assert found["low"] <= found["value"] <= found["high"] and found["stderr"] > 0
    documents = benchmarks.read("piqa", "validation", folder)[0]
    task = benchmarks.task("piqa", list(benchmarks.subset("piqa", documents, 5, 0).values()))
    rows = Questions(model, tokenizer, [task], 16 * 64, 64).outcomes(group)["one"]
    values = [row["value"] for row in rows if row["metric"] == "acc"]
    assert measured["piqa"]["acc"]["value"] == np.mean(values) and measured["piqa"]["acc"]["n"] == 5
    assert set(measured["wikitext"]) == {"word_perplexity", "byte_perplexity", "token_perplexity"}
    assert sc.evaluate(model, tokenizer, ["piqa"], offline_dir=folder, fewshot=1, limit=99)["piqa"]["acc"]["n"] == 8


def test_a_benchmark_times_both_and_counts_their_bytes(loaded, predictor):
    model, _ = loaded
    decoder = sc.decoder(model, predictor, 0.5)
    found = sc.benchmark(decoder, prompt_tokens=4, new_tokens=2, repeats=1)
    read = [bytes_per_step(one) for one in (decoder.sparse, decoder.dense)]
    assert [found["bytes_per_token"], found["dense_bytes_per_token"]] == read
    assert found["share_of_dense_bytes"] == read[0] / read[1]
    assert found["speedup"] == found["dense_ms_per_token"] / found["ms_per_token"]
    assert found["backend"] == "torch" and found["limit_ms_per_token"] is None
    decoder.sparse.layout.layers[1].ffn_down.zero_()
    with pytest.raises(Disagreement, match="'sparse'"):
        sc.benchmark(decoder, prompt_tokens=4, new_tokens=2, repeats=1)


# ---- bad input


@pytest.fixture(scope="module")
def other():
    return TINY["opt"]().eval()


NO_FRACTIONS = [((value,), "sparsity: ") for value in (50, 1, 1.0, -0.1, "0.5", None, True, float("nan"), 0.123)]
BAD = {  # what the library is called with, and the words that its sentence has
    lambda v: sc.sparsify(v.model, v.predictor, *v.options).__enter__(): NO_FRACTIONS,
    lambda v: sc.decoder(v.model, v.predictor, *v.options): NO_FRACTIONS,
    lambda v: sc.train_predictor(v.model, v.tokenizer, **{"texts": v.texts} | v.options): [
        ({"design": "shadwo"}, "design shadow"), ({"criterion": "snip"}, "criterion snip plainact"),
        ({"units": "neuron"}, "units neurons"), ({"rank": 0}, "rank 0"), ({"epochs": 1.5}, "epochs 1.5"),
        ({"learning_rate": 0}, "learning_rate"), ({"window_tokens": 65}, "window_tokens 65 64"),
        ({"window_tokens": 1}, "window_tokens 1"), ({"design": "segments", "segments": 9}, "segments 9"),
        ({"texts": "one text"}, "texts list"), ({"texts": ["a" * 99, 3]}, "texts[1] int"),
        ({"texts": ["a" * 99]}, "texts 2"), ({"texts": ["a" * 99, "short"]}, "texts 2 64"), ({"texts": []}, "texts 0"),
    ],
    lambda v: sc.decoder(v.model, **{"predictor": v.predictor} | v.options): [
        ({"predictor": "smollm2-shadow"}, "predictor from_pretrained"), ({"predictor": "proxy5"}, "predictor proxy4"),
        ({"units": "both"}, "units heads"), ({"units": "both", "predictor": "proxy4"}, "units heads"),
        ({"policy": "globl"}, "policy global"), ({"backend": "cuda"}, "backend triton"),
        ({"max_positions": 65}, "max_positions 64"),
    ],
    lambda v: sc.evaluate(v.model, v.tokenizer, **v.options): [
        ({"tasks": "piqa"}, "tasks list"), ({"tasks": ["pika"]}, "tasks piqa"),
        ({"tasks": ["piqa"], "limit": 0}, "limit"),
        ({"tasks": ["piqa", "wikitext"], "fewshot": 2}, "fewshot 2 wikitext"),
        ({"tasks": ["lambada_openai"], "fewshot": 1}, "fewshot lambada_openai"),
    ],
    lambda v: v.decoder.generate(*v.options): [
        (("text",), "tokenizer"), (([],), "prompt tokens"), (([1, 5000],), "prompt 5000"),
        (([[1, 2], [3, 4]],), "one prompt"), (([1], None, 0), "max_new_tokens 0"),
        (([1] * 60, None, 6), "max_new_tokens 6 5 64"), (("text", byte_tokenizer(), 5, [""]), "stop"),
    ],
    # models, predictors and tokenizers that do not fit together
    lambda v: sc.decoder(v.other, v.predictor): [({}, "predictor neurons 48 64")],
    lambda v: sc.decoder(TINY["opt"]().train(), v.predictor): [({}, "model.eval()")],
    lambda v: sc.decoder(v.model, random_predictor(v.model, "layerwise"), **v.options): [
        ({"policy": "global"}, "policy layerwise per_layer")],
    lambda v: sc.train_predictor("gpt2", v.tokenizer, v.texts): [({}, "model str")],
    lambda v: sc.benchmark(v.model): [({}, "decoder shadowcore.decoder")],
    lambda v: sc.benchmark(v.decoder, prompt_tokens=60): [({}, "prompt_tokens 84 64")],
    lambda v: sc.perplexity(v.model, v.tokenizer, ["short"]): [({}, "texts window_tokens")],
    lambda v: sc.evaluate(v.model, "gpt2", ["piqa"]): [({}, "tokenizer str")],
    lambda v: sc.perplexity(v.other, v.tokenizer, v.texts): [({}, "tokenizer 96")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("use", "options", "words"),
    [(use, *case) for use, cases in BAD.items() for case in cases],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_bad_arguments_are_one_sentence(loaded, texts, predictor, other, use, options, words):
    (model, tokenizer), decoder = loaded, sc.decoder(loaded[0], predictor)
    values = {name: value for name, value in locals().items() if name != "loaded"}
    refused(words.split(), use, SimpleNamespace(**values))


def test_a_damaged_folder_is_one_sentence(predictor, other, tmp_path):
    folder = tmp_path / "saved"
    predictor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused("neurons 48", sc.Predictor.from_pretrained, folder, other)
    damaged = bytearray(whole["model.safetensors"])
    damaged[-1] ^= 1
    for name, content, names in (
        ("model.safetensors", bytes(damaged), ["model.safetensors", "damaged"]),
        ("config.json", b"{", ["config.json"]),
        ("config.json", json.dumps(config | {"design": "shadwo"}).encode(), ["config.json", "shadow"]),
        ("config.json", json.dumps(config | {"block": 0}).encode(), ["config.json", "block"]),
        ("config.json", json.dumps(config | {"extra": 1}).encode(), ["config.json", "extra"]),
        ("config.json", json.dumps({"model_type": "opt"}).encode(), ["config.json"]),
        ("config.json", json.dumps(config | {"ranks": {"neurons": 5}}).encode(), ["model.safetensors", "config.json"]),
    ):
        (folder / name).write_bytes(content)
        refused(names, sc.Predictor.from_pretrained, folder)
        (folder / name).write_bytes(whole[name])
    sc.Predictor.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    for place in (folder, tmp_path / "nowhere"):
        refused("no such file", sc.Predictor.from_pretrained, place)


def test_no_model_is_overwritten_by_a_predictor(quick, predictor, tmp_path):
    weights = quick / "results" / "quick" / "models" / "smollm2-135m" / "weights"
    before = (weights / "config.json").read_bytes()
    refused("config.json that is not a predictor's", predictor.save_pretrained, weights)
    assert (weights / "config.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    refused("is a file", predictor.save_pretrained, tmp_path / "file")


# ---- shadowcore generate


@pytest.fixture
def study(quick, predictor, tmp_path):
    """The results of a study with one predictor; `add` makes another."""
    root = tmp_path / "quick"
    root.mkdir()
    (root / "models").symlink_to(quick / "results" / "quick" / "models")

    def add(name, method="shadow"):
        path = root / "predictors" / "smollm2-135m" / "wikipedia" / f"{name}.safetensors"
        recipe = {"rank": predictor.ranks, "segments": 1, "bits": 16, "block": 1}
        made = {"spec": {"method": method, "recipe": recipe}}
        artifacts.write_with_checksum(path, PREDICTOR_SCHEMA, stored(predictor.state_dict(), 16), made)

    add("shadow+plainact+small")
    return root, add


def test_generate_prints_dense_and_sparse(study, capsys):
    command = ["generate", str(study[0]), "--method", "shadow", "--sparsity", "50", "The capital of"]
    assert cli.main([*command, "--max-new-tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert said.index("dense: ") < said.index("shadow: ") and said.count("The capital of") == 2
    assert said.count("tokens per second") == 2 and re.search(r"reads \d+% of the weights", said)
    study[1]("shadow+l2_norm+small")  # the papers' criterion is taken of two
    assert cli.main([*command, "--max-new-tokens", "1"]) == 0
    assert "by plainact" in capsys.readouterr().out
    assert cli.main(["generate", str(study[0]), "x", "--method", "proxy2", "--max-new-tokens", "1"]) == 0
    assert "proxy2 skips 50 % of the neurons of smollm2-135m by low-bit copies" in capsys.readouterr().out


def test_generate_names_the_choices_and_what_is_missing(study, capsys, tmp_path):
    (root, add), empty = study, tmp_path / "empty"
    add("shadow+plainact+large")
    empty.mkdir()
    for folder, options, words in (
        (root, "", "--predictor: the study has several: large, small"), (root, "--predictor samll", "'samll'"),
        (root, "--method layerwise", "--method"), (root, "--method magic", "--method"),
        (root, "--sparsity 100", "--sparsity: 100"), (root / "none", "", "no such folder"),
        (empty, "", "no trained predictors"), (empty, "--method proxy4", "--model: "),
        (root, "--method proxy4 --model smollm", "'smollm'"), (root, "--predictor small", "card.json: no such file"),
    ):  # fmt: skip
        if "card" in words:
            (root / "models").unlink()
        assert cli.main(["generate", str(folder), "x", *options.split()]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
