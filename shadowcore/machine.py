"""Memory, processors and GPUs that this process may use. Needs nothing but Python."""

import os
from pathlib import Path

from shadowcore.devices import devices
from shadowcore.processes import ask

# memory limit of a container (version 2 and version 1 of Linux's control groups)
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory() -> int:
    """Bytes of main memory of the machine, or of the container if it has a lower limit."""
    limits = [
        text for path in LIMITS if path.is_file() and (text := path.read_text(encoding="ascii").strip()).isdigit()
    ]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *map(int, limits)])


def processors() -> int:
    """Processors that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def gpu_memory() -> list[float]:
    """Bytes of each GPU that this process may use; infinite if the driver does not report them."""
    lines = (ask("nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits") or "").splitlines()
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    mebibytes = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    return [mebibytes[name] * 2**20 if name in mebibytes else float("inf") for name in devices()]


def gpu_names() -> list[str]:
    """Names of the kinds of GPU in this machine, such as "NVIDIA H200"."""
    lines = (ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines))
