"""The errors a user can cause, each one clear sentence: where, what was found, what would fit."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ShadowcoreError(Exception):
    """Bad input of any kind. The command line prints it as one line and exits with `code`."""

    code = 2


class ConfigError(ShadowcoreError):
    """A study, a stage specification or a command line asks for something that does not exist."""


class SourceError(ShadowcoreError):
    """A model or a text is not where its source says, or not what its checksum says."""


class ArtifactError(ShadowcoreError):
    """A file between two stages is missing, damaged, or written by another schema."""


class OutOfMemory(ShadowcoreError):
    """A job needs more memory than it has. Trying again helps: Snakemake's next attempt halves the batch."""

    code = 3


def out_of_memory(error: Exception) -> bool:
    """Whether an exception is what Python, or torch on either device, raises when memory is short."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error).partition("\n")[0])


def near_miss(name: str, choices: Iterable[str]) -> str:
    """What would fit in place of `name`: the closest choice first when there is one.

    >>> near_miss("plainct", ["plainact", "l2_norm"])
    "did you mean 'plainact'? Known: l2_norm, plainact"
    """
    known = sorted(choices)
    close = get_close_matches(name, known, n=1)
    return (f"did you mean '{close[0]}'? " if close else "") + "Known: " + (", ".join(known) or "none")


def one_of(name: str, choices: Iterable[str], where: str, error: type[ShadowcoreError] = ConfigError) -> str:
    """Return `name` if it is among `choices`, else raise `error` naming `where` and the near miss."""
    choices = list(choices)
    if name not in choices:
        raise error(f"{where}: unknown '{name}'; {near_miss(str(name), choices)}")
    return name
