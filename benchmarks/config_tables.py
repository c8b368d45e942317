"""The tables of config/README.md: every key of a configuration with its type, default and meaning.

Types and defaults come from the pydantic models, meanings and examples from shadowcore/template.yaml.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from markdown_tables import markdown

from shadowcore.commands.new import TEMPLATE
from shadowcore.config import Study
from shadowcore.method.relufy import Relufied
from shadowcore.models.sources import MODEL_SOURCES
from shadowcore.recipes import RECIPES
from shadowcore.texts.sources import TEXT_SOURCES

SCHEMA = Study.model_json_schema()
LINE = re.compile(r"( *)((?:- )?)([\w.-]+):(.*?)(?:  # (?:\(optional[^)]*\) )?(.*))?")


def switched_on() -> str:
    """The template with every key that is switched off."""
    return re.sub(r"^( *)#(?! \S)", r"\1", TEMPLATE.read_text(), flags=re.MULTILINE)


def meanings() -> dict[str, str]:
    """What each key of the template means, by its path; names that the user chooses are `<name>`."""
    found, parents = {}, []
    for indent, dash, key, _, words in (m.groups() for m in map(LINE.fullmatch, switched_on().splitlines()) if m):
        depth = (len(indent) + len(dash)) // 2
        if depth == 1 and parents[0] in ("models", "texts", "predictors"):
            key = "<name>"
        parents = [*(parents + [""])[: depth - bool(dash)], *[""][: bool(dash)], key][-depth - 1 :]
        found[".".join(filter(None, parents))] = (words or "").replace("see config/README.md", "their keys are below")
    return found


WORDS = meanings()
HEAD = ["key", "type", "if left out", "meaning"]
LONG = 6  # choices that are listed once; later the key where they are listed is named


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema behind its reference, without null; of several sections the keys of all."""
    if "$ref" in schema:
        return SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    kinds = [resolved(one) for one in schema.get("anyOf", schema.get("oneOf", ())) if one.get("type") != "null"]
    if kinds and all("properties" in one for one in kinds):
        return kinds[0] | {"properties": {key: one for kind in kinds for key, one in kind["properties"].items()}}
    return kinds[0] if len(kinds) == 1 else schema


def type_of(schema: dict[str, Any], key: str, listed: dict[str, str]) -> str:
    """The type of a key in words; `listed` has the keys whose choices are listed already."""
    schema = resolved(schema)
    if "enum" in schema:
        choices = ", ".join(f"`{value}`" for value in schema["enum"])
        first = listed.setdefault(choices, key) if len(schema["enum"]) > LONG else key
        return f"one of {choices}" if first == key else f"one of those of `{first}`"
    if "anyOf" in schema:
        return " or ".join(type_of(one, key, listed) for one in schema["anyOf"])
    kind, values = schema["type"], schema.get("additionalProperties")
    if kind == "array":
        return f"list; an entry is {with_article(type_of(schema['items'], key, listed))}"
    if kind == "object":
        if not isinstance(values, dict):
            return "section"
        return f"names; the value of each is {with_article(type_of(values, key, listed))}"
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}[kind]
    return " ".join([words, *(f"{word} {schema[name]}" for name, word in bounds.items() if name in schema)])


def with_article(type_: str) -> str:
    return type_ if type_.startswith("one of") else f"a {type_}"


def rows(schema: dict[str, Any], path: str, listed: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The path of every key below a schema, and its row: type, value if the key is left out, meaning."""
    for key, one in schema["properties"].items():
        here, whole = f"{path}.{key}".strip("."), resolved(one)
        default = "must be given" if key in schema["required"] else f"`{json.dumps(one.get('default'))}`"
        default = default.replace("`null`", "none").replace('"', "")
        yield here, [f"`{here}`", type_of(one, here, listed), default, WORDS[here]]
        values = whole.get("additionalProperties")
        named = isinstance(values, dict)
        inner = resolved(values if named else whole.get("items", whole))
        if "properties" in inner:
            yield from rows({"required": ()} | inner, f"{here}.<name>" if named else here, listed)


def example(key: str) -> str:
    """A section of the template without its comments."""
    block = re.search(rf"^{key}:.*\n(?:[ ].*\n)*", switched_on(), re.MULTILINE)[0]
    return "```yaml\n" + re.sub(r" +# .*", "", block) + "```"


def sources(kinds: dict[str, type]) -> list[str]:
    """The kinds of sources with their keys and defaults."""
    lines = []
    for kind, source in kinds.items():
        keys = [
            f"`{one.name}`" + (f" ({one.default})" if one.default is not dataclasses.MISSING else "")
            for one in dataclasses.fields(source)
        ]
        words = ", ".join(keys).replace("(None)", "(none)")
        lines.append((f"`{kind}`", words, source.__doc__.splitlines()[0]))
    return markdown(["source", "keys", "meaning"], lines)


def recipes() -> list[str]:
    """The values of every recipe."""
    values = {name: ", ".join(f"{key} {value}" for key, value in one.items()) for name, one in RECIPES.items()}
    return markdown(["recipe", "values"], [(f"`{name}`", words) for name, words in values.items()])


def tables() -> str:
    """For the keys at the top, and for every section: a heading, tables and an example."""
    found = list(rows(SCHEMA, "", {}))
    more = {
        "models": sources(MODEL_SOURCES | {Relufied.KIND: Relufied}),
        "texts": sources(TEXT_SOURCES),
        "predictors": recipes(),
    }
    top = [path for path, _ in found if f"{path}." not in "".join(path for path, _ in found) and "." not in path]
    lines = ["### Keys at the top", "", *markdown(HEAD, (row for path, row in found if path in top))]
    for section in SCHEMA["properties"]:
        if section not in top:
            part = [row for path, row in found if path.split(".")[0] == section]
            lines += [
                "",
                f"### `{section}`",
                "",
                *markdown(HEAD, part),
                "",
                *more.get(section, ()),
                "",
                example(section),
            ]
    return "\n".join(lines).replace("\n\n\n", "\n\n")
