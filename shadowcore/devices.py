"""Which GPUs a job has, on a machine where several jobs run and nobody hands devices out.

Snakemake counts GPUs but assigns none: without this, two jobs would both take the first. A job locks the devices it
uses, by their UUIDs; the system lets go of a lock when its process ends, however it ends. Under a cluster manager
that shows a job its own devices only, nobody else wants them.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

LOCKS = Path("/tmp")  # of the machine, not of the user or of the job
VISIBLE = "CUDA_VISIBLE_DEVICES"
PAUSE = 0.2  # seconds between two looks at the devices


def devices() -> list[str]:
    """UUIDs of the NVIDIA GPUs that this process may use; empty without a driver that tells."""
    asked = os.environ.get(VISIBLE)
    named = asked.split(",") if asked else []
    if named and not any(name.isdigit() for name in named):
        return named
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        return []
    found = said.stdout.split() if said.returncode == 0 else []
    if asked is None:
        return found
    return [found[int(name)] for name in named if name.isdigit() and int(name) < len(found)]


@contextmanager
def reserved(count: int) -> Iterator[list[str]]:
    """Keep `count` devices for this process alone, the only ones it then sees; waits until so many are free.

    A machine with fewer gives all it has, one without any nothing. With 0, the process shares one device with others
    that reserve none.
    """
    known = devices()
    count = min(count, len(known))
    if not known:
        yield []
        return
    before = os.environ.get(VISIBLE)
    with ExitStack() as held:
        # who waits holds the turn: jobs that come later wait behind it, and cannot take what it waits for
        with ExitStack() as turn:
            _lock(turn, "turn", fcntl.LOCK_EX)
            found = _taken(held, known, count)
        os.environ[VISIBLE] = ",".join(found)
        try:
            yield found
        finally:
            os.environ.pop(VISIBLE)
            if before is not None:
                os.environ[VISIBLE] = before


def _taken(held: ExitStack, known: list[str], count: int) -> list[str]:
    """Devices locked until `held` closes. Sharers begin with the first, others with the last: they meet late."""
    how, order = (fcntl.LOCK_EX, known[::-1]) if count else (fcntl.LOCK_SH, known)
    found: list[str] = []
    said = False
    while True:
        for name in order:
            if name not in found and _lock(held, name, how | fcntl.LOCK_NB):
                found.append(name)
            if len(found) == max(count, 1):
                return sorted(found, key=known.index)
        if not said:
            print(f"[devices] waiting: all {len(known)} GPUs are in use", file=sys.stderr, flush=True)
            said = True
        time.sleep(PAUSE)


def _lock(held: ExitStack, name: str, how: int) -> bool:
    """Lock a file of this name until `held` closes; False if it is taken and `how` does not wait."""
    path = LOCKS / f"shadowcore-{name.replace('/', '-')}.lock"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # another user's file, too
    except FileNotFoundError:
        handle = _made(path)
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        os.close(handle)
        return False
    held.callback(os.close, handle)
    return True


def _made(path: Path) -> int:
    """An open new lock file that every user can open, whatever this one's umask."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # made by another job meanwhile
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    os.fchmod(handle, 0o644)
    return handle
