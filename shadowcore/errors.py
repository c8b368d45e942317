"""Errors that a user can cause. Each message is one sentence: where the mistake is, what was found, what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


class ShadowcoreError(Exception):
    """Bad input of any kind. The command line prints it as one line and exits with `code`."""

    code = 2


class ConfigError(ShadowcoreError):
    """A configuration, a specification or a command line is wrong."""


class SourceError(ShadowcoreError):
    """A model or a text is not available, damaged, or has another checksum."""


class ArtifactError(ShadowcoreError):
    """A file between two stages is missing, damaged, or has another schema."""


class OutOfMemory(ShadowcoreError):
    """A job needs more memory than there is. Snakemake may try again, with half the batch."""

    code = 3


def out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on a CPU or GPU, raised an exception because memory ran out."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error).partition("\n")[0])


def near_miss(name: str, choices: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest choice, if one is close, and all choices.

    >>> near_miss("plainct", ["plainact", "l2_norm"])
    "did you mean 'plainact'? Known: l2_norm, plainact"
    """
    known = sorted(choices)
    close = get_close_matches(name, known, n=1)
    return (f"did you mean '{close[0]}'? " if close else "") + "Known: " + (", ".join(known) or "none")


def one_of(name: str, choices: Iterable[str], where: str, error: type[ShadowcoreError] = ConfigError) -> str:
    """Return `name` if it is among `choices`, else raise `error` with `where`, the closest choice and all choices."""
    choices = list(choices)
    if name not in choices:
        raise error(f"{where}: unknown '{name}'; {near_miss(str(name), choices)}")
    return name
