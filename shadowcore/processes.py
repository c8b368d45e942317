"""Which process left a file behind, and whether it still runs: asked of partial files and of logs."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

PROC = Path("/proc")


@cache
def machine() -> str:
    """Eight hexadecimal digits for what shares one numbering of processes.

    That is a machine since it was last started, and inside it a container: two containers of one machine may give
    the same number to two processes, and one container's host name may be another's.
    """
    try:
        place = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink(PROC / "self/ns/pid")
    except OSError:  # no Linux, so no containers that share a kernel
        place = platform.node()
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def born(process: int) -> int | None:
    """When a process of this machine was started, in ticks since the machine was; None if it is no more.

    0 on a system that does not tell when. A number is given again to a new process, which was started later.
    """
    if not (PROC / "self/stat").exists():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # another user's: it is there
            pass
        return 0
    try:
        text = (PROC / f"{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before may hold spaces
    return None if state in "ZX" else int(fields[18])


def name() -> str:
    """This process as part of a file's name, which `gone` reads."""
    return f"{machine()}-{os.getpid()}-{born(os.getpid())}"


def gone(named: str) -> bool:
    """Whether the process of this name ran on this machine, as of its last start, and is no more."""
    place, *numbers = named.split("-")
    if place != machine() or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return False
    process, start = map(int, numbers)
    return born(process) != start
