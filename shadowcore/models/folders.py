"""Check and load a model folder in Hugging Face layout, without remote code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shadowcore.errors import ArtifactError, ConfigError, one_of
from shadowcore.models.families import FAMILIES, dimensions_of, family_of, ffn_activation
from shadowcore.models.recording import visiting
from shadowcore.models.tokenizers import fit_tokenizer, load_tokenizer
from shadowcore.models.weights import has_safetensors, reason_of, require_all_loaded, require_pickled, require_weights

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED_KEYS = ("quantization_config", "compression_config")


def read_config(folder: Path):
    """The Hugging Face configuration of a model folder.

    Raises ArtifactError if config.json is missing or damaged, and for models that would not be computed as intended:
    adapters, quantised weights, models with their own code. Raises ConfigError for an unsupported model type.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    if (path.parent / "adapter_config.json").exists():  # only transformers would add it
        raise ArtifactError(
            f"{folder}: adapter_config.json: adapters are not supported; merge the adapter into the weights first "
            "(peft's `model.merge_and_unload()`, then `save_pretrained` into a folder of its own)"
        )
    content = _read_keys(path)
    _require_family(path, SimpleNamespace(**content))  # first, because transformers may not know the type either
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
    """Raise ConfigError, naming the file, for a model of an unsupported family."""
    try:
        family_of(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_keys(path: Path) -> dict[str, Any]:
    """The keys in a JSON file; ArtifactError if it is missing, damaged, or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; a folder in Hugging Face layout is needed") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged JSON ({error})") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: {type(content).__name__} found; an object of keys is needed")
    return content


def _require_plain(folder: Path, content: dict[str, Any]) -> None:
    """Raise ArtifactError unless config.json describes a plain causal model of the family's own code."""
    if (folder / "generation_config.json").exists():  # transformers reads it, too
        _read_keys(folder / "generation_config.json")
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
            f"{path}: auto_map: the model has its own code, which is never run; if the code of transformers computes "
            "the same, remove the key in a copy of the folder"
        )
    _require_read_keys(path, content)


def _require_read_keys(path: Path, content: dict[str, Any]) -> None:
    """Raise ArtifactError for keys that the family's class ignores, but that mean another computation."""
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
    """Raise ArtifactError for impossible dimensions, and for models without a sparse layer."""
    from transformers.activations import ACT2FN

    family, sizes = family_of(config), dimensions_of(config)
    for name, value in asdict(sizes).items():
        if type(value) is not int or value < 1:
            name = name.replace("_", " ")
            raise ArtifactError(f"{path}: {name}: {value!r} found; it must be a whole number above 0")
    if sizes.layers < 2:
        raise ArtifactError(f"{path}: {sizes.layers} layers; at least 2 are needed, because the first is always dense")
    if sizes.heads % sizes.kv_heads:
        raise ArtifactError(
            f"{path}: {sizes.kv_heads} key-value heads; their number must divide the number of heads ({sizes.heads})"
        )
    if not family.rotary and sizes.width % sizes.heads:
        raise ArtifactError(
            f"{path}: hidden_size: {sizes.width} found; it must be a multiple of num_attention_heads ({sizes.heads})"
        )
    one_of(ffn_activation(config), ACT2FN, f"{path}: activation function", ArtifactError)


def load_model(folder: Path, dtype: str = "float32", gpus: int = 0):
    """The unchanged Hugging Face causal model of a folder, in evaluation mode, on the CPU or spread over several GPUs.

    Raises ConfigError for an unsupported model type (before weights are read) or dtype, and ArtifactError for a missing
    folder and for weights that are missing, truncated, or of other shapes than in the configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    one_of(dtype, DTYPES, "dtype")
    config = read_config(folder)
    require_weights(Path(folder))
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True,
        local_files_only=True, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        device_map=device_map(config, gpus) if gpus else None,
    )  # fmt: skip
    require_all_loaded(folder, report)
    return model.eval()


def device_map(config, gpus: int) -> dict[str, int]:
    """Equal numbers of layers on each GPU, the rest on the first, so that a pass crosses each border once."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    places, path = {}, ""
    for name in family_of(config).decoder_layers.split("."):
        places |= {f"{path}{other}": 0 for other, _ in module.named_children() if other != name}
        module, path = module.get_submodule(name), f"{path}{name}."
    return places | {f"{path}{layer}": layer * gpus // len(module) for layer in range(len(module))}


def require_runnable(folder: Path) -> None:
    """Raise ArtifactError unless transformers can load and run the model of a folder; no weights are read.

    Tensors on torch's device "meta" have shapes but no numbers. So names and shapes of all weights are compared with
    the configuration, and two tokens pass through all layers, in little time and memory.
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
    except Exception as error:  # transformers raises many kinds of errors for wrong configurations
        raise ArtifactError(f"{folder}: transformers cannot run this model ({reason_of(error)})") from None
    require_all_loaded(folder, report)
    if logits.shape[-1] != model.config.vocab_size:
        raise ArtifactError(
            f"{folder}: the model has {logits.shape[-1]} logits, but vocab_size is {model.config.vocab_size}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bar and its report about weights, which `require_all_loaded` checks."""
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
    """Raise an error unless configuration, names and shapes of weights, and tokenizer of a folder are usable."""
    require_runnable(folder)
    fit_tokenizer(load_tokenizer(folder), read_config(folder).vocab_size, str(folder))
