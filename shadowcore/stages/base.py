"""What all stages share: typed specifications, headers, progress, and loading what a model card names."""

from __future__ import annotations

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


@dataclasses.dataclass(frozen=True)
class CardFile:
    """What a model card says of one file."""

    bytes: int
    sha256: str


def runtime_only() -> Any:
    """A specification's field that changes how a stage works and not what it makes, such as the size of a batch.

    Results do not depend on it, so it is neither in the JSON that decides what is stale nor in headers; on the
    command line it is an option of its own.
    """
    return dataclasses.field(metadata={"runtime_only": True})


def runtime_fields(kind: type) -> list[str]:
    """Names of the fields of a specification that are `runtime_only`."""
    return [field.name for field in dataclasses.fields(kind) if "runtime_only" in field.metadata]


def parse_spec(kind: type, data: Any, where: str = "--spec") -> Any:
    """A specification dataclass from JSON data, strictly: no unknown key, no missing key, no other type."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: {type(data).__name__} where an object of {kind.__name__} is needed")
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
        return parse_spec(next(one for one in arguments if one is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ConfigError(f"{where}: {type(data).__name__} where a list is needed")
        return tuple(parse_spec(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(data))
    if origin is dict:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: {type(data).__name__} where an object is needed")
        return {key: parse_spec(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is not Any and (not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool)):
        raise ConfigError(f"{where}: {data!r} where a value of type {kind.__name__} is needed")
    return data


def header(stage: str, spec: Any, inputs: Any, digest: Callable[[Path], str] = artifacts.digest) -> dict[str, Any]:
    """What made a file: `origin`, and commit, versions and device."""
    return origin(stage, spec, inputs, digest) | {"run": provenance.run_information()}


def origin(stage: str, spec: Any, inputs: Any, digest: Callable[[Path], str] = artifacts.digest) -> dict[str, Any]:
    """What determines a file's content: stage, specification, input hashes (`digest` of a file), code fingerprint.

    The header of models' cards and of traces. A study may delete these files and make them again at another commit,
    with the same bytes; their jobs' logs name the commit, the versions and the device.
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
    """One line per step on standard error: what runs, how far, how long, and how long it may still take."""

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


@dataclasses.dataclass(frozen=True)
class Missing:
    """What was not measured, in tables, figures and a page that are made of a part of a study: jobs, and why."""

    job: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of the study as a command: a specification and named files in, named files out."""

    spec: type
    inputs: type
    outputs: type
    run: Callable[[Any, Any, Any], None]


def read_card(path: Path) -> dict[str, Any]:
    """The model card that `fetch-model` wrote; ArtifactError if it does not say what a model is."""
    card = artifacts.read_record(path, CARD_SCHEMA)
    try:
        parse_spec(Dimensions, card.get("dimensions"), "dimensions")
        parse_spec(dict[str, CardFile], card.get("files"), "files")
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}; delete the file and run the study again") from None
    return card


def to_json(spec: Any) -> str:
    """What a specification makes, as the JSON that `parse_spec` reads; its `runtime_only` fields are left out."""
    left_out = runtime_fields(type(spec))
    made = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name not in left_out}
    return json.dumps(made, sort_keys=True, default=vars)
