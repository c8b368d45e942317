"""The weights of a model folder: which files transformers loads, and whether they are whole, plain and all used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowcore.errors import ArtifactError

PLAIN = ("F32", "BF16", "F16", "F64")  # number formats of safetensors that are no quantised ones
PLAIN_TORCH = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def has_safetensors(folder: Path) -> bool:
    """Transformers finds safetensors under two names; other ones, such as an adapter's, are not the model's."""
    return any((Path(folder) / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX))


def require_weights(folder: Path) -> dict[str, list[int]]:
    """Shapes of all tensors by name, from the headers of a folder's safetensors files.

    Raises ArtifactError unless every file is there, whole, and of plain numbers.
    """
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")
        try:
            # opening compares the header with the file's size; numpy, because torch maps the file as memory of its own
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
    """The safetensors files that transformers loads: the only one, or those of the index, as long as it is one."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file() or not (folder / WEIGHTS_INDEX).is_file():
        return [folder / WEIGHTS]
    return _shards(folder / WEIGHTS_INDEX, ".safetensors")


def require_pickled(folder: Path) -> dict[str, list[int]]:
    """Shapes of all tensors by name of a pickled checkpoint; neither their numbers are read nor any code is run.

    Raises ArtifactError unless every file is there, readable, and of plain numbers.
    """
    import torch
    from transformers.modeling_utils import load_state_dict

    shapes = {}
    for path in _pickled_files(Path(folder)):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")
        try:
            tensors = load_state_dict(path, map_location="meta", weights_only=True)
        except Exception as error:  # whatever a damaged archive or a pickle of other things leads to
            raise ArtifactError(f"{path}: holds more than tensors, or is damaged ({reason_of(error)})") from None
        if not isinstance(tensors, dict) or not all(isinstance(one, torch.Tensor) for one in tensors.values()):
            raise ArtifactError(f"{path}: holds more than tensors by name; a state_dict of the model is needed")
        _require_plain(path, {name: str(tensor.dtype) for name, tensor in tensors.items()}, PLAIN_TORCH)
        shapes |= {name: list(tensor.shape) for name, tensor in tensors.items()}
    return shapes


def _pickled_files(folder: Path) -> list[Path]:
    if (folder / PICKLED).is_file():
        return [folder / PICKLED]
    if (folder / PICKLED_INDEX).is_file():
        return _shards(folder / PICKLED_INDEX, ".bin")
    raise ArtifactError(f"{folder}: no weights; {WEIGHTS} or {WEIGHTS_INDEX} (or {PICKLED}) is needed")


def _require_plain(path: Path, formats: dict[str, str], plain: Sequence[str]) -> None:
    """Raise ArtifactError for weights whose numbers are packed or scaled."""
    if packed := [name for name, kind in formats.items() if name.endswith("weight") and kind not in plain]:
        raise ArtifactError(
            f"{path}: tensor '{packed[0]}' has numbers of type {formats[packed[0]]}: quantised weights are not "
            f"supported; the type must be one of {', '.join(plain)}"
        )


def _shards(index: Path, suffix: str) -> list[Path]:
    """The files that an index of weights names; ArtifactError for an index that is none."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({Path(name) for name in places})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{index}: not an index of weights ({error})") from None
    if outside := [str(name) for name in names if len(name.parts) != 1 or name.suffix != suffix]:
        raise ArtifactError(f"{index}: names '{outside[0]}'; {suffix[1:]} files beside it would fit")
    return [index.parent / name for name in names]


def require_all_loaded(folder: Path, report: dict[str, Any]) -> None:
    """Raise ArtifactError if transformers made a weight up or left one out, about which it only warns."""
    mismatched = {name: sizes for name, *sizes in report["mismatched_keys"]}
    if lost := sorted(report["missing_keys"] | mismatched.keys()):
        sizes = [" x ".join(map(str, shape)) for shape in mismatched.get(lost[0], ())]
        raise ArtifactError(
            f"{folder}: config.json and the weights disagree: {len(lost)} tensors are missing or of another size, "
            f"the first is '{lost[0]}'" + (f" ({sizes[0]} in the weights, {sizes[1]} by config.json)" if sizes else "")
        )
    if unread := sorted(report["unexpected_keys"]):
        raise ArtifactError(
            f"{folder}: config.json and the weights disagree: {len(unread)} tensors have no place in the model, "
            f"the first is '{unread[0]}'"
        )


def reason_of(error: BaseException) -> str:
    """The first line of an error of other packages, without the lines that follow it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[0].split())[:200]
