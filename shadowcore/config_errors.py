"""Messages about mistakes in a configuration: the key, what was found, what is allowed."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from shadowcore.errors import near_miss

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


def sentence(error: ValidationError) -> str:
    """The message, on one line, about the first mistake that pydantic found."""
    first = error.errors()[0]
    words, place = _words(first), _path(first["loc"])
    inner = first.get("ctx", {}).get("error")
    place += f".{inner.key}" if isinstance(inner, Within) else ""
    return " ".join((f"{place}: {words}" if place else words).splitlines())


def require_known(keys: Iterable[str], fields: Mapping[str, FieldInfo]) -> None:
    """Raise ValueError for the first key that is not a field, with the closest one, first of those that are missing."""
    missing = [name for name, field in fields.items() if field.is_required() and name not in keys]
    for key in (str(key) for key in keys if key not in fields):
        if likely := get_close_matches(key, missing, n=1):
            raise ValueError(f"unknown key '{key}'; did you mean '{likely[0]}'?")
        needed = f". Missing: {', '.join(missing)}" if missing else ""
        raise ValueError(f"unknown key '{key}'; {near_miss(key, fields)}{needed}")


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
