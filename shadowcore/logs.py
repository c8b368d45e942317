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

from shadowcore import processes, provenance

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
UNSAID = "its process ended without an error message; it may have been killed, for example for lack of memory"


def heading(arguments: Sequence[str], started: float) -> str:
    """The lines that begin a log; `arguments` follow `shadowcore`, `started`: seconds since 1970."""
    when = datetime.fromtimestamp(started).astimezone().isoformat(timespec="seconds")
    place = {"host": platform.node(), "process": str(os.getpid()), "id": processes.name(), "started": when}
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
        environment = self.environment
        if environment.get("host") != platform.node() or not environment.get("process", "").isdigit():
            return False
        start = processes.born(int(environment["process"]))
        known = environment.get("id", "").rpartition("-")[2]
        return start is None or (known.isdigit() and int(known) != start)


def read(path: Path) -> Log:
    """What a log says, or as much of it as is there: it may be cut off, or still be written."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    heads = text.split("\n")[:-1][:2]  # whole lines
    lines = re.split(r"[\r\n]+", text.rstrip())  # libraries draw progress bars over one line
    found = {}
    for name in ("command", "environment"):
        start = f"{MARK} {name}: "
        words = next((shlex.split(line.removeprefix(start)) for line in heads if line.startswith(start)), [])
        found[name] = words[3:] if name == "command" else dict(word.partition("=")[::2] for word in words)
    last = next((match for line in reversed(lines) if (match := PROGRESS.search(line))), None)
    if last:
        done, total, _, left = last.groups()
        found |= {"done": int(done), "total": int(total), "left": None if left == "nan" else float(left)}
    device, error = _outcome(lines)
    return Log(**found, device=device, error=error)


def times(path: Path) -> dict[str, str]:
    """The columns of a `benchmark:` file, such as `s` and `max_rss`; none where it is not there, or not yet whole."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(zip(*(line.split("\t") for line in lines[:2]), strict=False)) if len(lines) > 1 else {}


def _outcome(lines: Sequence[str]) -> tuple[str | None, str | None]:
    """The device of what ended well, or the sentence of what failed; both None where the log says neither.

    Python or a library may have written more lines after that.
    """
    for line in reversed(lines):
        if ended := ENDED.match(line):
            return ended[1], None
        if said := FAILED.match(line):
            return None, said[1]
    traced = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[traced[-1] + 1 :] if traced else []
    if any(PROGRESS.search(line) for line in after):  # a library printed it, and the job went on
        return None, None
    # the first line that is not indented names the exception, whose message may have more lines
    return None, next((line for line in after if not line.startswith((" ", MARK))), None)
