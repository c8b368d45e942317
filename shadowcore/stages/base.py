"""Shared by all stages: typed specifications, headers, progress, and model cards.

A stage is a module with two classes of fields, `Spec` and `Inputs`, and a function `run` of both and of `Outputs`.
"""

import dataclasses
import json
import sys
import time
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shadowcore import artifacts, provenance
from shadowcore.errors import ArtifactError, ConfigError, near_miss
from shadowcore.models.families import Dimensions

CARD_SCHEMA = "model_card/1"
Outputs = types.SimpleNamespace  # the paths that a stage writes, by the options in its row of `rules.RULES`


@typing.dataclass_transform(frozen_default=True)
class Frozen:
    """A base class whose subclasses are frozen dataclasses, as if each were decorated."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)


class CardFile(Frozen):
    """One file in a model card."""

    bytes: int
    sha256: str


def runtime_only() -> Any:
    """A field that changes no result, as a batch's size: not in headers and JSON, but an option of its own."""
    return dataclasses.field(metadata={"runtime_only": True})


def runtime_fields(kind: type) -> list[str]:
    """Names of the fields of a specification that are `runtime_only`."""
    return [field.name for field in dataclasses.fields(kind) if "runtime_only" in field.metadata]


def parse_spec(kind: type, data: Any, where: str = "--spec") -> Any:
    """Make a specification dataclass of JSON data; ConfigError for unknown keys, missing keys and wrong types."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: {type(data).__name__} found; it must be an object of {kind.__name__}")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for key in data:
            if key not in fields:
                raise ConfigError(f"{where}: unknown key '{key}'; {near_miss(str(key), fields)}")
        hints = typing.get_type_hints(kind)
        required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
        for name in required:
            if name not in data:
                raise ConfigError(f"{where}: missing key '{name}'")
        return kind(**{key: parse_spec(hints[key], value, f"{where}.{key}") for key, value in data.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return parse_spec(next(kind for kind in arguments if kind is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ConfigError(f"{where}: {type(data).__name__} found; it must be a list")
        return tuple(parse_spec(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(data))
    if origin is dict:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: {type(data).__name__} found; it must be an object")
        return {key: parse_spec(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is not Any and (not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool)):
        raise ConfigError(f"{where}: {data!r} found; it must be of type {kind.__name__}")
    return data


def header(stage: str, spec: Any, inputs: Any, digest: Callable[[Path], str] = artifacts.digest) -> dict[str, Any]:
    """The header of a file: `origin`, and commit, versions and device."""
    return origin(stage, spec, inputs, digest) | {"run": provenance.run_information()}


def origin(stage: str, spec: Any, inputs: Any, digest: Callable[[Path], str] = artifacts.digest) -> dict[str, Any]:
    """The part of a header that determines a file's content: stage, specification, input hashes, code fingerprint.

    digest: returns the hash of an input. Models' cards and traces only have this part, because a study may delete them
    and make them again at another commit with the same bytes. The logs have commit, versions and device.
    """
    files = {}
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        paths = value if isinstance(value, (list, tuple)) else [value]
        files[field.name] = [digest(path) for path in paths if Path(path).is_file()]
    return {
        "stage": stage,
        "spec": json.loads(to_json(spec)),
        "inputs": files,
        "code": provenance.fingerprint(f"shadowcore.stages.{stage.replace('-', '_')}"),
    }


class Progress:
    """Print progress on standard error: one line per step with the time so far and the estimated time left."""

    def __init__(self, what: str):
        self.what, self.started = what, time.perf_counter()
        self.say("started")

    def say(self, message: str) -> None:
        """Print one line."""
        print(f"[{self.what}] {message}", file=sys.stderr, flush=True)

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.perf_counter() - self.started
        left = elapsed / done * (total - done) if done else float("nan")
        self.say(f"{done}/{total} after {elapsed:.0f} s, about {left:.0f} s left")


class Missing(Frozen):
    """A job whose results are missing in the tables, figures or page of a study, and the reason."""

    job: str
    reason: str


class OfPart(Frozen):
    """missing: jobs without results, if the tables are made of a part of the study."""

    missing: tuple[Missing, ...] = ()


class Nothing(Frozen):
    """No settings, or no files of the study."""


class ModelFiles(Frozen):
    """A model's card, and its folder."""

    card: Path
    weights: Path


def read_card(path: Path) -> dict[str, Any]:
    """The model card that `fetch-model` or `relufy` wrote; ArtifactError if it is damaged."""
    card = artifacts.read_record(path, CARD_SCHEMA)
    try:
        parse_spec(Dimensions, card.get("dimensions"), "dimensions")
        parse_spec(dict[str, CardFile], card.get("files"), "files")
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}; delete the file and run the study again") from None
    return card


def to_json(spec: Any) -> str:
    """A specification as the JSON that `parse_spec` reads, without its `runtime_only` fields."""
    left_out = runtime_fields(type(spec))
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name not in left_out}
    return json.dumps(values, sort_keys=True, default=vars)
