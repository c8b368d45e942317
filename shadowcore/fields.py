"""What the fields of a configuration are made of: strict models, names, numbers, words of a vocabulary."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shadowcore.errors import near_miss

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*$")]
Percent = Annotated[int, Field(ge=0, lt=100, description="integer percent, 0 to 99")]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Strict(BaseModel):
    """No unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def among(choices) -> Any:
    """A string type that must be one of `choices`; the error names the near miss."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"unknown '{value}'; {near_miss(str(value), choices)}")
        return value

    return Annotated[str, BeforeValidator(check)]
