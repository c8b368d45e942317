"""Protect a results folder from another study of the same name, which would replace its files.

study.txt in the folder has the name of the configuration file and a checksum of its content. A configuration belongs to
the folder if one of the two is equal, because it may be edited, moved or renamed.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from shadowcore.atomic import replacing
from shadowcore.errors import ConfigError
from shadowcore.jobs import Jobs

RECORD = "study.txt"


def check(jobs: Jobs, files: Iterable[str]) -> None:
    """Raise ConfigError if the results folder belongs to another study. files: the configuration files."""
    record = jobs.root / RECORD
    if not record.is_file():
        return
    owner, _, checksum = record.read_text(encoding="utf-8").strip().partition("\n")
    name, own_checksum = _identity(jobs, files)
    if name != owner and own_checksum != checksum:
        raise ConfigError(
            f"study: '{jobs.study.study}' is the name of two studies: {jobs.root} has the results of {owner}, and "
            f"{name} would replace them; choose another `study:`, or delete {jobs.root} if its results are not needed, "
            f"or only {record} if {name} is {owner} under a new name"
        )


def claim(jobs: Jobs, files: Iterable[str]) -> None:
    """Record that the results folder belongs to this study."""
    text = "\n".join(_identity(jobs, files)) + "\n"
    record = jobs.root / RECORD
    if not record.is_file() or record.read_text(encoding="utf-8") != text:
        with replacing(record) as partial:
            partial.write_text(text, encoding="utf-8")


def _identity(jobs: Jobs, files: Iterable[str]) -> tuple[str, str]:
    """Names of the configuration files, and the SHA-256 of their content without `offline`, which changes no result."""
    content = json.dumps(jobs.study.model_dump(mode="json", exclude_unset=True, exclude={"offline"}), sort_keys=True)
    return " and ".join(Path(file).name for file in files), hashlib.sha256(content.encode()).hexdigest()
