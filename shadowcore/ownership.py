"""Whose results folder it is: two studies of one name would replace each other's files.

The folder's study.txt holds the name of the configuration's file and the checksum of its content. Either of them is
enough to be the same study: a configuration may be edited and run again, moved, or renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from shadowcore.artifacts import replacing
from shadowcore.errors import ConfigError
from shadowcore.jobs import Jobs

RECORD = "study.txt"


def check(jobs: Jobs, files: Iterable[str]) -> None:
    """Raise ConfigError if the results folder belongs to another study; `files`: the configuration's."""
    record = jobs.root / RECORD
    if not record.is_file():
        return
    owner, _, known = record.read_text(encoding="utf-8").strip().partition("\n")
    name, content = _identity(jobs, files)
    if name != owner and content != known:
        raise ConfigError(
            f"study: '{jobs.study.study}' is the name of two studies: {jobs.root} has the results of {owner}, and "
            f"{name} would replace them; choose another `study:`, or delete {jobs.root} if its results are not needed, "
            f"or only {record} if {name} is {owner} under a new name"
        )


def claim(jobs: Jobs, files: Iterable[str]) -> None:
    """Write down to which study the results folder belongs, as it is now."""
    text = "\n".join(_identity(jobs, files)) + "\n"
    record = jobs.root / RECORD
    if not record.is_file() or record.read_text(encoding="utf-8") != text:
        with replacing(record) as partial:
            partial.write_text(text, encoding="utf-8")


def _identity(jobs: Jobs, files: Iterable[str]) -> tuple[str, str]:
    """Names of the configuration's files, and the SHA-256 of what they say; inputs may come from a folder or not."""
    said = jobs.study.model_dump(mode="json", exclude_unset=True, exclude={"offline"})
    content = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return " and ".join(Path(file).name for file in files), content
