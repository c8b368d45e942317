"""What a job's log says: the command, the machine and versions it ran with, how far it is, and how it ended.

A stage writes to standard error, and a rule turns that into its log. `heading` and `ending` are written by the
command line around every stage; `read` finds them again, with the progress and the error in between.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from shadowcore import provenance

MARK = "[shadowcore]"
# settings that change where a job runs, how fast, or whether it may use a network
SETTINGS = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA", "HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRITON_INTERPRET",
    "SLURM_JOB_ID", "SLURM_JOB_PARTITION",
)  # fmt: skip
PROGRESS = re.compile(r"\] (\d+)/(\d+) after (\d+) s, about (\d+|nan) s left$")
ENDED = re.compile(rf"^{re.escape(MARK)} finished after \d+ s on (.*)$")
FAILED = re.compile(r"^shadowcore [a-z-]+: (.*)$")


def heading(arguments: Sequence[str], started: float) -> str:
    """The lines that begin a log; `arguments` follow `shadowcore`, `started`: seconds since 1970."""
    when = datetime.fromtimestamp(started).astimezone().isoformat(timespec="seconds")
    place = {"host": platform.node(), "process": str(os.getpid()), "started": when}
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    facts = place | provenance.run_information() | settings
    facts.pop("device")  # the one that is used is known in the end
    return "\n".join([
        f"{MARK} command: {shlex.join(['python', '-m', 'shadowcore', *arguments])}",
        f"{MARK} environment: {shlex.join(f'{name}={value}' for name, value in facts.items())}",
    ])  # fmt: skip


def ending(started: float) -> str:
    """The line that ends a log of what went well."""
    return f"{MARK} finished after {time.time() - started:.0f} s on {provenance.device_name()}"


@dataclass(frozen=True)
class Log:
    """command: words after `python -m shadowcore`; error: one line, of what failed; left: seconds, as last said.

    device: what the job used, told by one that has finished.
    """

    command: Sequence[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    error: str | None = None
    done: int = 0
    total: int = 0
    left: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the job ended well."""
        return self.device is not None

    @property
    def started(self) -> float | None:
        """Seconds since 1970, None where the log does not say."""
        when = self.environment.get("started")
        return datetime.fromisoformat(when).timestamp() if when else None

    @property
    def gone(self) -> bool:
        """Whether the process ran on this machine and is no more."""
        if self.environment.get("host") != platform.node():
            return False
        try:
            os.kill(int(self.environment["process"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's: it is there
            return False
        return False


def read(path: Path) -> Log:
    """What a log says, or as much of it as is there: it may be cut off, or still be written."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    heads = text.split("\n")[:-1][:2]  # whole lines
    lines = re.split(r"[\r\n]+", text.strip())  # libraries draw progress bars over one line
    found = {}
    for name in ("command", "environment"):
        start = f"{MARK} {name}: "
        words = next((shlex.split(line.removeprefix(start)) for line in heads if line.startswith(start)), [])
        found[name] = words[3:] if name == "command" else dict(word.partition("=")[::2] for word in words)
    last = next((match for line in reversed(lines) if (match := PROGRESS.search(line))), None)
    if last:
        done, total, _, left = last.groups()
        found |= {"done": int(done), "total": int(total), "left": None if left == "nan" else float(left)}
    ended = ENDED.match(lines[-1])
    return Log(**found, device=ended[1] if ended else None, error=_error(lines))


def times(path: Path) -> dict[str, str]:
    """The columns of a `benchmark:` file, such as `s` and `max_rss`; none where it is not there, or not yet whole."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return dict(zip(*(line.split("\t") for line in lines[:2]), strict=False)) if len(lines) > 1 else {}


def _error(lines: Sequence[str]) -> str | None:
    """The sentence a stage ended with, or the last line of what Python or the system said."""
    if said := FAILED.match(lines[-1]):
        return said.group(1)
    traced = any(line.startswith("Traceback (most recent call last)") for line in lines)
    return lines[-1] if traced and not lines[-1].startswith(MARK) else None
