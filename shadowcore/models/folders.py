"""A model folder in Hugging Face layout: checked and loaded, without remote code, nothing left to chance."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shadowcore.errors import ArtifactError, SourceError, one_of
from shadowcore.models.families import dimensions_of, family_of, ffn_activation

DTYPES = ("float32", "bfloat16", "float16")
END_OF_TEXT = "<|end|>"


def check_files(folder: Path, card: dict[str, Any]) -> None:
    """Raise ArtifactError unless the folder holds exactly the card's files in their sizes (hashes are not read)."""
    # not hidden ones: Snakemake leaves a time stamp in the folders it makes
    found = {path.name: path.stat().st_size for path in Path(folder).glob("[!.]*") if path.is_file()}
    for name in sorted(found.keys() | card["files"].keys()):
        expected = card["files"].get(name, {}).get("bytes")
        if found.get(name) != expected:
            raise ArtifactError(
                f"{Path(folder) / name}: {_size(found.get(name))} where the model's card has {_size(expected)}; "
                "delete the folder and run the study again"
            )


def read_config(folder: Path):
    """The Hugging Face configuration of a model folder.

    Raises ArtifactError without a readable config.json, ConfigError for an unsupported model type.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; a folder in Hugging Face layout would fit") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: damaged JSON ({error})") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: {type(content).__name__} where an object of configuration keys is needed")
    family_of(SimpleNamespace(**content))  # before transformers meets a type that it may not know either
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ArtifactError(f"{path}: does not describe a model ({reason})") from None
    _require_sizes(path, config)
    return config


def _require_sizes(path: Path, config) -> None:
    """Raise ArtifactError for dimensions that no model has, or none that units can be removed from."""
    from transformers.activations import ACT2FN

    sizes = dimensions_of(config)
    for name, value in asdict(sizes).items():
        if type(value) is not int or value < 1:
            raise ArtifactError(f"{path}: {name.replace('_', ' ')} of {value!r}; a positive whole number would fit")
    if sizes.heads % sizes.kv_heads or sizes.layers < 2:
        raise ArtifactError(
            f"{path}: {sizes.layers} layers, {sizes.heads} heads over {sizes.kv_heads} key-value heads; at least 2 "
            "layers (the first is always dense) and a divisor of the heads would fit"
        )
    one_of(ffn_activation(config), ACT2FN, f"{path}: activation function", ArtifactError)


def load_model(folder: Path, dtype: str = "float32", device: str = "cpu"):
    """The untouched Hugging Face causal model of a folder, in evaluation mode.

    Raises ConfigError for an unsupported model type (before weights are read) or dtype, ArtifactError for
    a missing folder or weights that are missing, truncated, or of other sizes than the configuration's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    one_of(dtype, DTYPES, "dtype")
    read_config(folder)
    require_weights(Path(folder))
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True,
        local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    require_all_loaded(folder, report)
    return model.to(device).eval()


def load_tokenizer(folder: Path):
    """The tokenizer of a model folder.

    Raises SourceError if there is none, or none that has a BOS or EOS token: the study starts a text with one.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise SourceError(f"{folder}: no tokenizer; a folder with tokenizer.json (or tokenizer.model) would fit")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises no narrower one
        raise SourceError(f"{folder}: damaged tokenizer ({type(error).__name__}: {str(error)[:200]})") from None
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise SourceError(
            f"{folder}: the tokenizer has neither a BOS nor an EOS token; a tokenizer_config.json naming one would fit"
        )
    return tokenizer


def byte_tokenizer():
    """A tokenizer built in code: the 256 bytes, and one token that begins and ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one printable letter a byte
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def require_weights(folder: Path) -> None:
    """Raise ArtifactError unless every safetensors file of the folder is there and whole."""
    from safetensors import SafetensorError, safe_open

    sizes = dimensions_of(read_config(folder))
    for path in _weight_files(folder):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")
        try:
            with safe_open(path, framework="pt") as content:  # opening compares the header with the file's size
                tables = [name for name in content.keys() if name.endswith("embed_tokens.weight")]  # noqa: SIM118
                found = [content.get_slice(name).get_shape()[0] for name in tables]
        except SafetensorError as error:
            raise ArtifactError(f"{path}: damaged safetensors ({error}); fetch the model again") from None
        if found and found != [sizes.vocabulary]:
            raise ArtifactError(
                f"{folder}: config.json and the weights disagree: a vocabulary of {sizes.vocabulary}, but {found[0]} "
                f"embeddings in {path.name}"
            )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model's index names, or the only one; ArtifactError for an index that is none."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({Path(name) for name in places})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{index}: not an index of weights ({error})") from None
    if outside := [str(name) for name in names if len(name.parts) != 1 or name.suffix != ".safetensors"]:
        raise ArtifactError(f"{index}: names '{outside[0]}'; safetensors files beside it would fit")
    return [folder / name for name in names]


def require_all_loaded(folder: Path, report: dict[str, Any]) -> None:
    """Raise ArtifactError if transformers filled a weight with random numbers, which it only warns about."""
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    if lost := sorted(set(report["missing_keys"]) | mismatched):
        raise ArtifactError(
            f"{folder}: config.json and the weights disagree: {len(lost)} tensors are missing or of another size, "
            f"the first is '{lost[0]}'"
        )


def _size(size: int | None) -> str:
    return "no file" if size is None else f"{size} bytes"
