"""Write and read the logs of jobs: command, machine, versions, progress, and how the job ended.

A stage writes to standard error, which its rule redirects to the log. The command line writes `heading` before and
`ending` after every stage; `read` reads them back, with the progress and the error between them.
"""

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
NO_MESSAGE = "its process ended without an error message; it may have been killed, for example for lack of memory"


def of(root: Path, place: str) -> Path:
    """The log of a job in a study's folder. place: `Work.place`."""
    return root / "logs" / f"{place}.log"


def heading(arguments: Sequence[str], started: float) -> str:
    """The first lines of a log. arguments: the words after `shadowcore`; started: seconds since 1970."""
    when = datetime.fromtimestamp(started).astimezone().isoformat(timespec="seconds")
    place = {"host": platform.node(), "process": str(os.getpid()), "id": processes.name(), "started": when}
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    facts = place | provenance.run_information() | settings
    facts.pop("device")  # only known at the end of the job
    return "\n".join([
        f"{MARK} command: {shlex.join(['python', '-m', 'shadowcore', *arguments])}",
        f"{MARK} environment: {shlex.join(f'{name}={value}' for name, value in facts.items())}",
    ])  # fmt: skip


def ending(started: float) -> str:
    """The last line of a successful job's log."""
    return f"{MARK} finished after {time.time() - started:.0f} s on {provenance.device_name()}"


@dataclass(frozen=True)
class Log:
    """A job's log. command: words after `python -m shadowcore`; error: one line; left: estimated seconds left.

    device: the processor or GPU that the job used, if it has finished.
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
        """Whether the job ended without an error."""
        return self.device is not None

    @property
    def started(self) -> float | None:
        """Start of the job, seconds since 1970; None if it is not in the log."""
        when = self.environment.get("started")
        return datetime.fromisoformat(when).timestamp() if when else None

    @property
    def gone(self) -> bool:
        """Whether the process ran on this machine and has ended."""
        environment = self.environment
        if environment.get("host") != platform.node() or not environment.get("process", "").isdigit():
            return False
        start = processes.born(int(environment["process"]))
        known = environment.get("id", "").rpartition("-")[2]
        return start is None or (known.isdigit() and int(known) != start)


def read(path: Path) -> Log:
    """The content of a log, which may be cut off or still being written."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    heads = text.split("\n")[:-1][:2]  # whole lines
    lines = re.split(r"[\r\n]+", text.rstrip())  # libraries draw progress bars over one line
    fields = {}
    for name in ("command", "environment"):
        start = f"{MARK} {name}: "
        words = next((shlex.split(line.removeprefix(start)) for line in heads if line.startswith(start)), [])
        fields[name] = words[3:] if name == "command" else dict(word.partition("=")[::2] for word in words)
    last = next((match for line in reversed(lines) if (match := PROGRESS.search(line))), None)
    if last:
        done, total, _, left = last.groups()
        fields |= {"done": int(done), "total": int(total), "left": None if left == "nan" else float(left)}
    device, error = _outcome(lines)
    return Log(**fields, device=device, error=error)


def times(path: Path) -> dict[str, str]:
    """The columns of a `benchmark:` file, such as `s` and `max_rss`; empty if the file is missing or incomplete."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(zip(*(line.split("\t") for line in lines[:2]), strict=False)) if len(lines) > 1 else {}


def _outcome(lines: Sequence[str]) -> tuple[str | None, str | None]:
    """(device, None) of a successful job, (None, error) of a failed one, else (None, None)."""
    for line in reversed(lines):
        if ended := ENDED.match(line):
            return ended[1], None
        if failed := FAILED.match(line):
            return None, failed[1]
    traced = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[traced[-1] + 1 :] if traced else []
    if any(PROGRESS.search(line) for line in after):  # a library printed the traceback, and the job continued
        return None, None
    # the first line that is not indented names the exception, whose message may have more lines
    return None, next((line for line in after if not line.startswith((" ", MARK))), None)
