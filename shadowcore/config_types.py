"""Types of the fields of a configuration: strict models, names, numbers, lists, choices."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shadowcore.config_errors import require_known
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
