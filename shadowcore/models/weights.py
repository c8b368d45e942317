"""Check that the weights that transformers loads from a model folder are complete, not quantised, and all used."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowcore.errors import ArtifactError

PLAIN = ("F32", "BF16", "F16", "F64")  # number formats of safetensors without quantisation
PLAIN_TORCH = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def has_safetensors(folder: Path) -> bool:
    """Whether there is a safetensors file under one of the two names that transformers loads."""
    return any((Path(folder) / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX))


def require_weights(folder: Path) -> dict[str, list[int]]:
    """Shapes of tensors by name, from safetensors headers; ArtifactError for a missing, damaged or quantised file."""
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")
        try:
            # opening compares the header with the file's size; with torch, the mapped file would count as memory
            with safe_open(path, framework="np") as content:
                tensors = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
                formats = {name: tensor.get_dtype() for name, tensor in tensors.items()}
                shapes |= {name: tensor.get_shape() for name, tensor in tensors.items()}
        except SafetensorError as error:
            raise ArtifactError(f"{path}: damaged safetensors ({error}); fetch the model again") from None
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from None
        _require_plain(path, formats, PLAIN)
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads: model.safetensors, or else the files in the index."""
    return _files(Path(folder), WEIGHTS, WEIGHTS_INDEX) or [Path(folder) / WEIGHTS]


def _files(folder: Path, name: str, index: str) -> list[Path]:
    """The file of a name, or else those in an index of weights; none without either. ArtifactError for a bad index."""
    if (folder / name).is_file() or not (folder / index).is_file():
        return [folder / name] if (folder / name).is_file() else []
    index = folder / index
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({Path(name) for name in places})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{index}: not an index of weights ({error})") from None
    suffix = Path(name).suffix
    if outside := [str(name) for name in names if len(name.parts) != 1 or name.suffix != suffix]:
        raise ArtifactError(f"{index}: names '{outside[0]}'; it must only name {suffix[1:]} files in its own folder")
    return [folder / name for name in names]


def require_pickled(folder: Path) -> dict[str, list[int]]:
    """Shapes of tensors by name of a pickled checkpoint, running no code; ArtifactError as for `require_weights`."""
    import torch
    from transformers.modeling_utils import load_state_dict

    files = _files(Path(folder), PICKLED, PICKLED_INDEX)
    if not files:
        raise ArtifactError(f"{folder}: no weights; {WEIGHTS} or {WEIGHTS_INDEX} (or {PICKLED}) is needed")
    shapes = {}
    for path in files:
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")
        try:
            tensors = load_state_dict(path, map_location="meta", weights_only=True)
        except Exception as error:  # damaged archives and other pickles raise many kinds of errors
            raise ArtifactError(
                f"{path}: holds other objects than tensors, or is damaged ({reason_of(error)})"
            ) from None
        if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise ArtifactError(f"{path}: is not a dictionary of tensors; it must be a state_dict of the model")
        _require_plain(path, {name: str(tensor.dtype) for name, tensor in tensors.items()}, PLAIN_TORCH)
        shapes |= {name: list(tensor.shape) for name, tensor in tensors.items()}
    return shapes


def _require_plain(path: Path, formats: dict[str, str], plain: Sequence[str]) -> None:
    """Raise ArtifactError for quantised weights."""
    if packed := [name for name, kind in formats.items() if name.endswith("weight") and kind not in plain]:
        raise ArtifactError(
            f"{path}: tensor '{packed[0]}' has type {formats[packed[0]]}; quantised weights are not supported; the "
            f"type must be one of {', '.join(plain)}"
        )


def require_all_loaded(folder: Path, report: dict[str, Any]) -> None:
    """Raise ArtifactError if transformers initialised or left out a weight, about which it only warns."""
    mismatched = {name: sizes for name, *sizes in report["mismatched_keys"]}
    if lost := sorted(report["missing_keys"] | mismatched.keys()):
        sizes = [" x ".join(map(str, shape)) for shape in mismatched.get(lost[0], ())]
        raise ArtifactError(
            f"{folder}: config.json and the weights disagree: {len(lost)} tensors are missing or have another size, "
            f"the first is '{lost[0]}'" + (f" ({sizes[0]} in the weights, {sizes[1]} in config.json)" if sizes else "")
        )
    if unread := sorted(report["unexpected_keys"]):
        raise ArtifactError(
            f"{folder}: config.json and the weights disagree: {len(unread)} tensors have no place in the model, "
            f"the first is '{unread[0]}'"
        )


def reason_of(error: BaseException) -> str:
    """The first line of another package's error message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[0].split())[:200]
