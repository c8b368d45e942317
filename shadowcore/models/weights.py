"""The weights of a model folder: which files transformers loads, and whether they are whole, plain and all used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shadowcore.errors import ArtifactError

PLAIN = ("F32", "BF16", "F16", "F64")  # number formats of safetensors that are no quantised ones
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def has_safetensors(folder: Path) -> bool:
    """Transformers finds safetensors under two names; other ones, such as an adapter's, are not the model's."""
    return any((Path(folder) / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX))


def require_weights(folder: Path) -> None:
    """Raise ArtifactError unless every safetensors file of the folder is there, whole, and of plain numbers."""
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")
        try:
            with safe_open(path, framework="pt") as content:  # opening compares the header with the file's size
                formats = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ArtifactError(f"{path}: damaged safetensors ({error}); fetch the model again") from None
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from None
        if packed := [name for name, kind in formats.items() if name.endswith("weight") and kind not in PLAIN]:
            raise ArtifactError(
                f"{path}: tensor '{packed[0]}' has numbers of type {formats[packed[0]]}: quantised weights are not "
                f"supported; it must be one of {', '.join(PLAIN)}"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads: the only one, or those of the index, as long as it is one."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file() or not (folder / WEIGHTS_INDEX).is_file():
        return [folder / WEIGHTS]
    return _shards(folder / WEIGHTS_INDEX, ".safetensors")


def require_pickled(folder: Path) -> None:
    """Raise ArtifactError unless the folder has a whole pickled checkpoint (its content is not read)."""
    folder = Path(folder)
    if (folder / PICKLED).is_file():
        return
    if not (folder / PICKLED_INDEX).is_file():
        raise ArtifactError(f"{folder}: no weights; {WEIGHTS} or {WEIGHTS_INDEX} (or {PICKLED}) is needed")
    for path in _shards(folder / PICKLED_INDEX, ".bin"):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")


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
