"""Reserve GPUs for a job on a machine where several jobs run and no scheduler assigns devices.

Snakemake counts GPUs but assigns none, so two jobs would both use the first. Therefore a job locks the devices that it
uses, by their UUIDs. The system releases a lock when the process ends, also after a crash. Under a cluster manager a
job sees its own devices only, so it gets all locks at once.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shadowcore import processes
from shadowcore.errors import ConfigError

LOCKS = Path("/tmp")  # shared by all users and jobs of the machine
VISIBLE = "CUDA_VISIBLE_DEVICES"
PAUSE = 0.2  # seconds between two attempts to lock devices
TOGETHER, MOST = 4, 64  # jobs that share a device before the next device gets as many, and the most on one


def devices() -> list[str]:
    """UUIDs of the NVIDIA GPUs that this process may use; empty without a driver."""
    visible = os.environ.get(VISIBLE)
    named = visible.split(",") if visible else []
    if named and not any(name.isdigit() for name in named):
        return named
    every = (processes.ask("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader") or "").split()
    if visible is None:
        return every
    return [every[int(name)] for name in named if name.isdigit() and int(name) < len(every)]


@contextmanager
def reserved(count: int) -> Iterator[list[str]]:
    """Wait for `count` free devices, and hide all others from this process while the block runs; yields their UUIDs.

    With 0, the process shares one device with other processes that reserve none. Without any device, the job runs on
    the CPU. Raises ConfigError if there are fewer devices than `count`.
    """
    every, before = devices(), os.environ.get(VISIBLE)
    if not every:
        yield []
        return
    if count > len(every):
        there = "this machine has" if before is None else f"{VISIBLE} allows"
        raise ConfigError(
            f"--devices: the job needs {count} GPUs, but {there} {len(every)}; give it more, or larger ones"
        )
    with ExitStack() as held:
        # the waiting job holds this lock, so that a later job cannot take the devices that it waits for
        with ExitStack() as queue:
            _lock(queue, "turn", fcntl.LOCK_EX)
            locked = _lock_devices(held, every, count)
        os.environ[VISIBLE] = ",".join(locked)
        try:
            yield locked
        finally:
            os.environ.pop(VISIBLE)
            if before is not None:
                os.environ[VISIBLE] = before


def _lock_devices(held: ExitStack, every: list[str], count: int) -> list[str]:
    """Wait for devices and lock them until `held` closes; for `count` 0 one device, shared.

    Shared devices are taken from the front and exclusive ones from the back, so that both rarely want the same one.
    """
    locked: list[str] = []
    waiting = False
    while True:
        if not count and (shared := _share(held, every)):
            return [shared]
        for name in every[::-1] if count else ():
            if name not in locked and _lock(held, name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                locked.append(name)
            if len(locked) == count:
                return sorted(locked, key=every.index)
        if not waiting:
            print(f"[devices] waiting: all {len(every)} GPUs are in use", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(PAUSE)


def _share(held: ExitStack, every: list[str]) -> str | None:
    """Lock a place on a device that no job has alone until `held` closes: many jobs spread evenly over all devices."""
    for before in range(0, MOST, TOGETHER):
        for name in every:
            with ExitStack() as tried:
                if _lock(tried, name, fcntl.LOCK_SH | fcntl.LOCK_NB) and any(
                    _lock(tried, f"{name}-{place}", fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for place in range(before, before + TOGETHER)
                ):
                    held.push(tried.pop_all())
                    return name
    return None


def _lock(held: ExitStack, name: str, operation: int) -> bool:
    """Lock a file of this name until `held` closes; False if another process has it and `operation` does not wait."""
    path = LOCKS / f"shadowcore-{name.replace('/', '-')}.lock"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # read-only, because another user may own the file
    except FileNotFoundError:
        handle = _new_lock_file(path)
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        os.close(handle)
        return False
    held.callback(os.close, handle)
    return True


def _new_lock_file(path: Path) -> int:
    """Create and open a lock file that every user can open, whatever the umask."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # another job has made it meanwhile
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    os.fchmod(handle, 0o644)
    return handle
