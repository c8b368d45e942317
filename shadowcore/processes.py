"""Run system commands; name processes in files, and check whether a named process still runs."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

PROC = Path("/proc")
PATIENCE = 10  # seconds, the time limit of a system command


def ask(*command: str, folder: Path | None = None) -> str | None:
    """The output of a system command that runs in a folder; None if it is missing or fails."""
    try:
        answer = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@cache
def machine() -> str:
    """Eight hexadecimal digits that identify a machine since its last start, or a container on it."""
    try:
        place = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink(PROC / "self/ns/pid")
    except OSError:  # not Linux, so there are no containers that share a kernel
        place = platform.node()
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def born(process: int) -> int | None:
    """Start of a process here, in ticks since the machine's start (0 without /proc); None if the process has ended."""
    if not (PROC / "self/stat").exists():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # it runs, as another user
            pass
        return 0
    try:
        text = (PROC / f"{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before ")" may contain spaces
    return None if state in "ZX" else int(fields[18])


def name() -> str:
    """This process as a part of a file name, which `gone` reads."""
    return f"{machine()}-{os.getpid()}-{born(os.getpid())}"


def gone(named: str) -> bool:
    """Whether the named process ran on this machine since its last start, and has ended."""
    place, *numbers = named.split("-")
    if place != machine() or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return False
    process, start = map(int, numbers)
    return born(process) != start
