"""Tiny random models of every family, built from a configuration in memory."""

import copy
import os
import random
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported: tests run side by side, a core each
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of the jobs that tests start, as in the Makefile

import torch

if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run on the CPU, interpreted
    os.environ["TRITON_INTERPRET"] = "1"

import pandas as pd
import pytest
import yaml
from made_study import built, documents, frames, results  # noqa: F401 (fixtures)
from transformers import AutoConfig, AutoModelForCausalLM

from shadowcore.errors import ShadowcoreError
from shadowcore.method.predictors import Predictor
from shadowcore.models.families import FAMILIES, dimensions_of
from shadowcore.rules import RULES
from shadowcore.texts.sources import RandomText

ROOT = Path(__file__).parent.parent
QUICK = yaml.safe_load((ROOT / "tests" / "base_study.yaml").read_text())  # a small study for tests to change a copy of

SMALL_MODEL = {"family": "llama", "layers": 3, "width": 16, "heads": 2, "neurons": 24, "positions": 128}

LONG = "workflow evaluate graph figures several_gpus kernels decoder latency_random library low_bit_proxy sparsity"
LONG = [f"test_{name}.py" for name in LONG.split()]


def pytest_collection_modifyitems(items):
    """The files that take longest first: what is left at the end is short, and no core waits for another."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def family_model(family, **more):
    """A tiny random causal model of a family, with large weights so that units matter."""
    row = FAMILIES[family]
    keys = {
        "hidden_size": 32, row.neurons_key: 64 if family == "opt" else 48, "num_hidden_layers": 4, "vocab_size": 96,
        "num_attention_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    keys |= {"word_embed_proj_dim": 32, "init_std": 0.3} if family == "opt" else {"initializer_range": 0.3}
    own = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": None}  # 2 query heads share a key-value head
    keys |= {key: own[key] for key in row.own_keys if key in own}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **keys | more)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # initialised to zero, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.3)
    return model


TINY = {family: partial(family_model, family) for family in ("llama", "opt")}


@pytest.fixture(params=sorted(TINY))
def tiny(request):
    """A tiny random causal model of the two families that differ most in turn: Llama and OPT."""
    torch.manual_seed(0)
    return TINY[request.param]()


WINDOWED = {"sliding_window": 3}  # shorter than the tests' texts
EVERY = {family: partial(family_model, family) for family in FAMILIES}
EVERY["mistral, windowed"] = partial(family_model, "mistral", **WINDOWED)
EVERY["qwen2, windowed"] = partial(family_model, "qwen2", **WINDOWED, use_sliding_window=True, max_window_layers=2)


@pytest.fixture(params=EVERY)
def of_family(request):
    """A tiny random causal model of each family in turn, and of those with windows of attention."""
    torch.manual_seed(0)
    return EVERY[request.param]()


def random_predictor(model, design="shadow", count=1, of=Predictor):
    """A predictor with random weights, in the model's number format.

    In float64, rounding decides no selection: a score would have to lie within 1e-12 of its layer's threshold.
    """
    torch.manual_seed(5)
    predictor = of(design, dimensions_of(model.config), {"heads": 8, "neurons": 16}, count)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return predictor.to(model.dtype).eval()


@pytest.fixture
def tokens():
    """Token ids (2, 12) for the tiny models."""
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    """The class of each of our decoders in turn; the kernels of the Triton decoder are interpreted."""
    if request.param == "torch":
        from shadowcore.decode.decoder import Decoder

        return Decoder
    pytest.importorskip("triton", reason="Triton is not installed, so there is no Triton decoder to test")
    if torch.cuda.is_available():
        pytest.skip("models on the CPU, kernels interpreted; test_gpu.py tests them on a GPU")
    from shadowcore.decode.triton_decoder import GraphDecoder

    return GraphDecoder


@pytest.fixture
def ids(backend, tokens):
    """Two sequences (2, 12), or one short one (1, 8) for the Triton decoder: the interpreter is slow."""
    return tokens if backend.__name__ == "Decoder" else tokens[:1, :8]


def refused(words, call, *values, **more):
    """A call ends in one sentence of this project, which it returns; `words`: an expression, or a list of its parts."""
    with pytest.raises(ShadowcoreError, match=words if isinstance(words, str) else None) as caught:
        call(*values, **more)
    said = str(caught.value)
    assert "\n" not in said and (isinstance(words, str) or all(word in said for word in words)), said
    return said


def write_words(folder):
    """Twenty documents of invented words, as a folder of Parquet files."""
    folder.mkdir()
    texts = [text for _, text in RandomText().read()[0]]
    pd.DataFrame({"text": texts}).to_parquet(folder / "part.parquet")
    return folder


def small_study(folder):
    """A study of a random model, and of words and benchmarks in a folder."""
    study = copy.deepcopy(QUICK) | {"study": "tiny", "models": {"tiny": {"source": {"random": dict(SMALL_MODEL)}}}}
    study["texts"]["wikipedia"]["source"] = {"folder": {"path": str(folder / "words")}}
    study["traces"] |= {"windows": 4, "window_tokens": 80, "tokens_per_window": 8, "shards": 1, "heldout_windows": 2,
                        "heldout_tokens_per_window": 8, "criteria": ["plainact", "l2_norm"]}  # fmt: skip
    study["predictors"]["small"] |= {"rank_neurons": 8, "rank_heads": 4, "batch": 16, "epochs": 1}
    study["evaluation"] |= {"windows": 2, "window_tokens": 32, "tasks": ["true_continuation", "piqa", "wikitext"],
                            "offline_dir": str(folder / "benchmarks"), "rolling_tokens": 48}  # fmt: skip
    return study


def write_benchmarks(folder, documents=8):  # noqa: F811 (no fixture)
    """Invented data in the columns of piqa (a choice), winogrande (a choice of beginnings) and wikitext (pages)."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices("aeinorst", k=chooser.randint(2, 5))) for _ in range(40)]

    def say(count):
        return " ".join(chooser.choices(words, k=count))

    def piqa():
        solutions = {"goal": say(6), "sol1": say(chooser.randint(3, 7)), "sol2": say(chooser.randint(3, 7))}
        return solutions | {"label": chooser.randint(0, 1)}

    def winogrande():
        options = {"sentence": f"{say(3)} _ {say(4)}", "option1": say(1), "option2": say(1)}
        return options | {"answer": str(chooser.randint(1, 2))}

    def wikitext():
        return {"page": f" = {say(2)} = \n\n {say(chooser.randint(10, 60))} . \n"}

    for make, splits in ((piqa, ("train", "validation")), (winogrande, ("train", "validation")), (wikitext, ("test",))):
        for split in splits:
            path = folder / make.__name__ / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame([make() for _ in range(documents)]).to_parquet(path)
    return folder


def run_job(jobs, rule, *values):
    """Run a job in this process, as Snakemake does; its exit code."""
    from shadowcore import cli
    from shadowcore.jobs import options

    files = jobs.inputs(rule, *values) | jobs.outputs(rule, *values)
    batches = [f"--{name.replace('_', '-')}=4" for name in RULES[rule].batches]
    return cli.main([rule.replace("_", "-"), "--spec", jobs.spec(rule, *values), *batches, *options(files)])


def run_jobs(jobs, *rules):
    """Run the jobs of these rules, by default all up to the tables."""
    for rule in rules or [*(rule for rule, facts in RULES.items() if not facts.joins), "aggregate"]:
        for values in jobs.names[rule]:
            assert run_job(jobs, rule, *values) == 0, (rule, values)
