"""A model folder in Hugging Face layout: checked and loaded, without remote code, nothing left to chance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shadowcore.errors import ArtifactError, ConfigError, SourceError, one_of
from shadowcore.models.families import FAMILIES, dimensions_of, family_of, ffn_activation
from shadowcore.models.recording import visiting
from shadowcore.models.weights import has_safetensors, reason_of, require_all_loaded, require_pickled, require_weights

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED_KEYS = ("quantization_config", "compression_config")
END_OF_TEXT = "<|end|>"


def read_config(folder: Path):
    """The Hugging Face configuration of a model folder.

    Raises ArtifactError without a readable config.json, and for a model that is not run as it is meant: an adapter,
    quantised weights, code of its own. Raises ConfigError for an unsupported model type.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _require_no_adapter(Path(folder))
        raise ArtifactError(f"{path}: no such file; a folder in Hugging Face layout would fit") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: damaged JSON ({error})") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: {type(content).__name__} where an object of configuration keys is needed")
    _require_family(path, SimpleNamespace(**content))  # before transformers meets a type that it may not know either
    _require_plain(Path(folder), content)
    try:
        config = AutoConfig.from_pretrained(
            folder, attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
        )
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, StrictDataclassError) as error:
        raise ArtifactError(f"{path}: does not describe a model ({reason_of(error.__cause__ or error)})") from None
    _require_family(path, config)
    _require_sizes(path, config)
    return config


def _require_family(path: Path, config) -> None:
    """Raise ConfigError, naming the file, for a model of no family of ours."""
    try:
        family_of(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _require_generation_keys(folder: Path) -> None:
    """Raise ArtifactError for another file of settings, which transformers reads as well, that holds no keys."""
    path = folder / "generation_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged JSON ({error})") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: {type(content).__name__} found; an object of keys is needed")


def _require_no_adapter(folder: Path) -> None:
    """Raise ArtifactError for an adapter: transformers would add it to the weights, our decoder would not."""
    if (folder / "adapter_config.json").exists():
        raise ArtifactError(
            f"{folder}: adapter_config.json: adapters are not supported; merge the adapter into the weights first "
            "(peft's `model.merge_and_unload()`, then `save_pretrained` into a folder of its own)"
        )


def _require_plain(folder: Path, content: dict[str, Any]) -> None:
    """Raise ArtifactError unless config.json describes a plain causal model of the family's own code."""
    _require_no_adapter(folder)
    _require_generation_keys(folder)
    path = folder / "config.json"
    for key in QUANTIZED_KEYS:
        if content.get(key):
            method = content[key].get("quant_method", "") if isinstance(content[key], dict) else ""
            raise ArtifactError(
                f"{path}: {key}: quantised weights ({method or 'of an unnamed method'}) are not supported; name the "
                "model's float32, bfloat16 or float16 weights"
            )
    names = content.get("architectures") or []
    if not isinstance(names, list) or (names and not any(str(name).endswith("ForCausalLM") for name in names)):
        raise ArtifactError(f"{path}: architectures: {names!r} found; a name that ends in ForCausalLM is needed")
    if isinstance(content.get("auto_map"), dict) and "AutoModelForCausalLM" in content["auto_map"]:
        raise ArtifactError(
            f"{path}: auto_map: the model has code of its own, which is never run; if transformers' own code computes "
            "the same, remove the key in a copy of the folder"
        )
    _require_read_keys(path, content)


def _require_read_keys(path: Path, content: dict[str, Any]) -> None:
    """Raise ArtifactError for keys that mean another model, and that transformers' class of the family does not read.

    These keys change what is computed from weights of the same names and shapes.
    """
    family, rope = FAMILIES[content["model_type"]], content.get("rope_parameters")
    turned = (rope if isinstance(rope, dict) else content).get("partial_rotary_factor", 1)
    both, layers = content.get("use_bidirectional_attention"), content.get("layer_types")
    window, positions = content.get("sliding_window"), content.get("max_position_embeddings")
    windowed = "sliding_window" in family.own_keys
    shorter = type(window) is int and type(positions) is int and window < positions
    kind = "sliding_attention" if windowed and window else "full_attention"
    alike = not layers or (isinstance(layers, list) and all(layer == kind for layer in layers))
    turns, all_seen = "this model type turns whole heads", "this model type attends to all positions"
    same = "the layers of this model type are alike"
    for key, value, served, allowed in (
        ("use_bidirectional_attention", both, not both, "a causal model is needed; it must be false"),
        ("partial_rotary_factor", turned, family.rotary != 1 or turned == 1, f"{turns}; it must be 1"),
        ("sliding_window", window, windowed or not shorter, f"{all_seen}; it must be at least {positions}"),
        ("layer_types", layers, "layer_types" in family.own_keys or alike, f"{same}; all must be '{kind}'"),
    ):
        if not served:
            raise ArtifactError(f"{path}: {key}: {value!r} is not supported, because {allowed}, or left out")


def _require_sizes(path: Path, config) -> None:
    """Raise ArtifactError for dimensions that no model has, or none that units can be removed from."""
    from transformers.activations import ACT2FN

    family, sizes = family_of(config), dimensions_of(config)
    for name, value in asdict(sizes).items():
        if type(value) is not int or value < 1:
            raise ArtifactError(f"{path}: {name.replace('_', ' ')} of {value!r}; a positive whole number would fit")
    if sizes.heads % sizes.kv_heads or sizes.layers < 2:
        raise ArtifactError(
            f"{path}: {sizes.layers} layers, {sizes.heads} heads over {sizes.kv_heads} key-value heads; at least 2 "
            "layers (the first is always dense) and a divisor of the heads would fit"
        )
    if not family.rotary and sizes.width % sizes.heads:
        raise ArtifactError(f"{path}: hidden_size: {sizes.width} is no multiple of num_attention_heads ({sizes.heads})")
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
        local_files_only=True, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    require_all_loaded(folder, report)
    return model.to(device).eval()


def require_runnable(folder: Path) -> None:
    """Raise ArtifactError unless transformers can load and run the model of a folder; no weights are read.

    On torch's device "meta" tensors have shapes and no numbers, so that names and shapes of all weights are compared
    with the configuration's, and two tokens pass through all layers, in little time and memory.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = read_config(folder)
    shapes = require_weights(folder) if has_safetensors(folder) else require_pickled(folder)
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        with _quiet():
            model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None, config=config, state_dict=weights, dtype=torch.float32, attn_implementation="sdpa",
                device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        with torch.no_grad(), visiting(model, lambda site, units: None):
            logits = model(torch.zeros((1, 2), dtype=torch.int64, device="meta"), use_cache=True).logits
    except Exception as error:  # whatever a configuration makes transformers stumble over
        raise ArtifactError(f"{folder}: transformers cannot run this model ({reason_of(error)})") from None
    require_all_loaded(folder, report)
    if logits.shape[-1] != model.config.vocab_size:
        raise ArtifactError(f"{folder}: {logits.shape[-1]} logits where vocab_size is {model.config.vocab_size}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its report of the weights, which `require_all_loaded` judges."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def require_usable(folder: Path) -> None:
    """Raise ArtifactError, SourceError or ConfigError unless the study can use the model of a folder.

    What is compared are configuration, names and shapes of weights, and the tokenizer; no weights are read.
    """
    config = read_config(folder)
    require_runnable(folder)
    fit_tokenizer(load_tokenizer(folder), config.vocab_size, str(folder))


def load_tokenizer(folder: Path):
    """The tokenizer of a model folder.

    Raises SourceError if there is none, or none that has a BOS or EOS token: the study starts a text with one.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    present = [name for name in ("tokenizer.json", "vocab.json", "tokenizer.model") if (folder / name).is_file()]
    if not present:
        raise SourceError(f"{folder}: no tokenizer; a folder with tokenizer.json (or tokenizer.model) would fit")
    if present == ["tokenizer.model"] and find_spec("sentencepiece") is None:
        raise SourceError(
            f"{folder}: tokenizer.model is read with the package 'sentencepiece', which is not installed; install it, "
            "or add the tokenizer as tokenizer.json (`save_pretrained` of transformers writes it)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no narrower one
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise SourceError(f"{folder}: damaged tokenizer, or one of another kind ({reason})") from None
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise SourceError(
            f"{folder}: the tokenizer has neither a BOS nor an EOS token; a tokenizer_config.json naming one would fit"
        )
    return tokenizer


def fit_tokenizer(tokenizer, vocabulary: int, where: str):
    """The tokenizer, if all token ids that it makes of a text are among the model's `vocabulary` embeddings.

    A padding token beyond them is fine, since the study never pads with it: it is taken out, so that a text with its
    name is read letter by letter. Raises SourceError, naming `where`, for any other token beyond.
    """
    pad, used = tokenizer.pad_token, (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    if pad in _beyond(tokenizer, vocabulary) and pad not in used:
        _take_out(tokenizer, pad)
    if beyond := _beyond(tokenizer, vocabulary):
        name = min(beyond, key=beyond.get)
        raise SourceError(
            f"{where}: the tokenizer's token {name!r} has id {beyond[name]}, the model's vocabulary has {vocabulary} "
            f"tokens; every id must be smaller than {vocabulary}, except that of a padding token"
        )
    return tokenizer


def _beyond(tokenizer, vocabulary: int) -> dict[str, int]:
    """Tokens whose ids have no embedding, added ones as well."""
    return {name: number for name, number in tokenizer.get_vocab().items() if number >= vocabulary}


def _take_out(tokenizer, name: str) -> None:
    """Remove an added token; the package tokenizers has no call for it."""
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        return
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != name]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pad_token = None


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
