"""Put other people's model files into a folder that every stage can load: as links, or converted."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from shadowcore.errors import SourceError
from shadowcore.models import weights

OTHER_FILES = ("[!.]*.json", "[!.]*.txt", "[!.]*.model", "[!.]*.jinja")  # configuration and tokenizer


def expand_gguf(path: Path, folder: Path) -> None:
    """Convert a GGUF model to float32 safetensors with the same logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = {"gguf_file": path.name, "local_files_only": True}
    with _parsed_once():
        quantized = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **read)
        AutoTokenizer.from_pretrained(path.parent, **read).save_pretrained(folder)
    config = quantized.config
    del config.quantization_config  # the weights are no longer quantised, and saving would fail with this key
    with torch.device("meta"):  # without drawing random weights
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict(), strict=True, assign=True)
    model.save_pretrained(folder)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """While the block runs, a GGUF file and its tensors' names are parsed once, not for every module of the model."""
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(cache, before)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def adopt(origin: Path, folder: Path) -> None:
    """Link the model files of a folder in Hugging Face layout; pickled weights are converted."""
    files = {path.name: path for pattern in OTHER_FILES for path in origin.glob(pattern)}
    if weights.has_safetensors(origin):
        files |= {path.name: path for path in weights.weight_files(origin)}
    else:
        _convert_pickled(origin, folder)
    for name in [weights.PICKLED_INDEX] + [weights.WEIGHTS_INDEX] * (weights.WEIGHTS in files):  # of unused weights
        files.pop(name, None)
    for name, path in files.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(path.absolute())


def _convert_pickled(origin: Path, folder: Path) -> None:
    """Convert a pickled checkpoint to safetensors; `weights_only` reads tensors and runs no code in the file."""
    from pickle import UnpicklingError

    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            origin, dtype="auto", use_safetensors=False, weights_only=True, trust_remote_code=False,
            local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (UnpicklingError, RuntimeError, OSError) as error:
        raise SourceError(
            f"{origin}: {weights.PICKLED} holds other objects than tensors, or is damaged ({weights.reason_of(error)})"
        ) from None
    weights.require_all_loaded(origin, report)
    model.save_pretrained(folder)


def licence_of(folder: Path) -> str | None:
    """The licence in the metadata of a model's README; None if there is none."""
    from huggingface_hub import ModelCard

    readme = folder / "README.md"
    try:
        licence = ModelCard.load(readme).data.license if readme.is_file() else None
    except Exception:  # the metadata is not YAML, or the text has another encoding
        return None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence
