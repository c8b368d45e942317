"""Tiny random models of both families, built from a configuration in memory."""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported: tests run side by side, a core each
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of the jobs that tests start, as in the Makefile

import torch

if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run on the CPU, interpreted
    os.environ["TRITON_INTERPRET"] = "1"

import pandas as pd
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from shadowcore.texts.sources import RandomText

LONG = ("test_workflow.py", "test_graph.py", "test_report.py", "test_kernels.py")


def pytest_collection_modifyitems(items):
    """The files that take longest first: what is left at the end is short, and no core waits for another."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


TINY = {
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            vocab_size=96,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            init_std=0.3,
        )
    ),
    # grouped KV: 4 query heads share 2 key-value heads
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=96,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=True,
        )
    ),
}


@pytest.fixture(params=sorted(TINY))
def tiny(request):
    """A tiny random causal model of each family in turn, with large weights so that units matter."""
    torch.manual_seed(0)
    model = TINY[request.param]().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # initialised to zero, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def tokens():
    """Token ids (2, 12) for the tiny models."""
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))


def write_words(folder):
    """Twenty documents of invented words, as a folder of Parquet files."""
    folder.mkdir()
    texts = [text for _, text in RandomText().read()[0]]
    pd.DataFrame({"text": texts}).to_parquet(folder / "part.parquet")
    return folder


def write_benchmarks(folder, documents=8):
    """Invented data in the columns of piqa (a choice), winogrande (a choice of beginnings) and wikitext (pages)."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices("aeinorst", k=chooser.randint(2, 5))) for _ in range(40)]

    def say(count):
        return " ".join(chooser.choices(words, k=count))

    def piqa():
        return {"goal": say(6), "sol1": say(chooser.randint(3, 7)), "sol2": say(chooser.randint(3, 7))} | {
            "label": chooser.randint(0, 1)
        }

    def winogrande():
        return {"sentence": f"{say(3)} _ {say(4)}", "option1": say(1), "option2": say(1)} | {
            "answer": str(chooser.randint(1, 2))
        }

    def wikitext():
        return {"page": f" = {say(2)} = \n\n {say(chooser.randint(10, 60))} . \n"}

    for make, splits in ((piqa, ("train", "validation")), (winogrande, ("train", "validation")), (wikitext, ("test",))):
        for split in splits:
            path = folder / make.__name__ / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame([make() for _ in range(documents)]).to_parquet(path)
    return folder
