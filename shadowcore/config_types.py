"""Types of the fields of a configuration, and messages about mistakes: the key, what was found, what is allowed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from shadowcore.errors import near_miss

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
EXPONENT = re.compile(r"[+-]?\d+\.?\d*[eE][+-]?\d+")  # YAML 1.1 reads 3e-3 as text and 3.0e-3 as a number


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(
            f"'{value}' is not a name; a name begins with a letter or a digit and has letters, digits, '_', '.' and "
            "single '-' between them"
        )
    return value


def _percent(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 100:
        raise ValueError(f"{value!r} is not an integer percent from 0 to 99, such as 50")
    return value


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _switch(value: Any) -> bool:
    """True or false, also as text, because `--config NAME=true` arrives as text."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not allowed; use true or false")
    return value


def _distinct(values: list) -> list:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value!r} is listed twice; a value may be listed once")
    return values


Name = Annotated[str, AfterValidator(_name)]
Percent = Annotated[int, Field(ge=0, le=99), BeforeValidator(_percent)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
AboveZero = Annotated[float, Field(allow_inf_nan=False, gt=0), BeforeValidator(_number)]
Fraction = Annotated[float, Field(allow_inf_nan=False, gt=0, lt=1), BeforeValidator(_number)]
Switch = Annotated[bool, BeforeValidator(_switch)]


class Strict(BaseModel):
    """A pydantic model without unknown keys and without silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def keys_are_known(cls, data: Any) -> Any:
        """A key that is not a field is the first mistake, because a misspelt key is also a missing one."""
        if isinstance(data, dict):
            require_known(data, cls.model_fields)
        return data


def list_of(item: Any, least: int = 0) -> Any:
    """The type of a list without duplicates, with at least `least` entries."""
    return Annotated[list[item], Field(min_length=least), AfterValidator(_distinct)]


def among(choices) -> Any:
    """The type of a string that must be one of `choices`; the error names the closest one."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"unknown '{value}'; {near_miss(str(value), choices)}")
        return value

    return Annotated[str, BeforeValidator(check), Field(json_schema_extra={"enum": list(choices)})]


# ---- messages

LONGEST = 60  # characters of a value that a message shows
# messages by pydantic's type of error; values in braces come from the error's context
PLAIN = {
    "missing": "missing; this key is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "list_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping, `key: value`",
    "model_type": "must be a mapping, `key: value`",
    "too_short": "must have {min_length} or more entries (found {actual_length})",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "recursion_loop": "must not contain itself",
}


class Within(ValueError):
    """A mistake in a part of a value; `key` is the path to this part."""

    def __init__(self, key: str, sentence: str):
        super().__init__(sentence)
        self.key = key


def require_known(keys: Iterable[str], fields: Mapping[str, FieldInfo]) -> None:
    """Raise ValueError for the first key that is not a field, with the closest one, first of those that are missing."""
    missing = [name for name, field in fields.items() if field.is_required() and name not in keys]
    for key in (str(key) for key in keys if key not in fields):
        if likely := get_close_matches(key, missing, n=1):
            raise ValueError(f"unknown key '{key}'; did you mean '{likely[0]}'?")
        needed = f". Missing: {', '.join(missing)}" if missing else ""
        raise ValueError(f"unknown key '{key}'; {near_miss(key, fields)}{needed}")


def sentence(error: ValidationError) -> str:
    """The message, on one line, about the first mistake that pydantic found."""
    first = error.errors()[0]
    words, place = _words(first), _path(first["loc"])
    inner = first.get("ctx", {}).get("error")
    place += f".{inner.key}" if isinstance(inner, Within) else ""
    return " ".join((f"{place}: {words}" if place else words).splitlines())


def _words(mistake: dict[str, Any]) -> str:
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    plain = PLAIN.get(mistake["type"])
    words = plain.format(**mistake.get("ctx", {})) if plain else mistake["msg"]
    found = mistake.get("input")
    if mistake["type"] in ("missing", "too_short"):
        return words
    if isinstance(found, (dict, list)):
        return f"{words} (found a {'mapping' if isinstance(found, dict) else 'list'})"
    shown = "nothing" if found is None else repr(found)
    return f"{words} (found {shown if len(shown) <= LONGEST else shown[:LONGEST] + '...'})"


def _path(location: Sequence[str | int]) -> str:
    """A location in the configuration as text, such as "conditions[0].methods"."""
    if location and location[-1] == "[key]":
        location = location[:-2]
    # a part such as "<Model>" is not a key but the model by which a mapping was validated
    written = [part for part in location if not str(part).startswith("<")]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in written)
    return "".join(parts).removeprefix(".")
