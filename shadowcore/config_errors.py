"""Messages about mistakes in a configuration: the key, what was found, what is allowed."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

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
    "string_pattern_mismatch": "must be a name: letters, digits, '_', '.' and single '-' between them",
    "list_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping, `key: value`",
    "model_type": "must be a mapping, `key: value`",
    "too_short": "must have {min_length} or more entries (found {actual_length})",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "invalid_key": "a key must be text; put it in quotes",
    "recursion_loop": "must not contain itself",
}


class Within(ValueError):
    """A mistake in a part of a value; `key` is the path to this part."""

    def __init__(self, key: str, sentence: str):
        super().__init__(sentence)
        self.key = key


def sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The message, on one line, about the first mistake that pydantic found. root: the model that was validated."""
    mistakes = error.errors()
    first = mistakes[0]
    siblings = [mistake for mistake in mistakes if mistake["loc"][:-1] == first["loc"][:-1]]
    if first["type"] == "missing":  # a misspelt key is also an unknown one, and that mistake has what was typed
        first = next((mistake for mistake in siblings if mistake["type"] == "extra_forbidden"), first)
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        missing = [mistake["loc"][-1] for mistake in siblings if mistake["type"] == "missing"]
        words, place = _unknown(str(key), missing, _fields_at(root, parents)), _path(parents)
    else:
        words, place = _words(first), _path(first["loc"])
        inner = first.get("ctx", {}).get("error")
        place += f".{inner.key}" if isinstance(inner, Within) else ""
    return " ".join((f"{place}: {words}" if place else words).splitlines())


def _unknown(key: str, missing: Sequence[str], known: Sequence[str]) -> str:
    if likely := get_close_matches(key, missing, n=1):
        return f"unknown key '{key}'; did you mean '{likely[0]}'?"
    needed = f". Missing: {', '.join(missing)}" if missing else ""
    return f"unknown key '{key}'; {near_miss(key, known)}{needed}"


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
    written = [part for part in location if not _is_tag(part)]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in written)
    return "".join(parts).removeprefix(".")


def _is_tag(part: str | int) -> bool:
    """Whether a part of a location is not a key but the model by which a mapping was validated, such as "<Model>"."""
    return isinstance(part, str) and part.startswith("<")


def _fields_at(root: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys that are allowed at a location in the configuration."""
    models = [root]
    for part in location:
        if _is_tag(part):
            models = [model for model in models if model.__name__ == part[1:-1]]
        elif part in models[0].model_fields:
            models = _models(models[0].model_fields[part].annotation) or models
    return list(models[0].model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
