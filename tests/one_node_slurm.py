"""A SLURM of one node on this machine: two partitions, of which `urgent` pre-empts `main`, and one pretend GPU.

    python tests/one_node_slurm.py COMMAND [ARGUMENT ...]

runs a command with it. Needs root and Debian's packages slurm-wlm and munge.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLURM_CONF = """
ClusterName=one
SlurmctldHost={host}
SlurmctldPort={control_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_min_interval=0
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
"""


# Snakemake's job steps forget SLURM_CONF: the configuration must be where every command looks
ETC = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf")


NEEDED = f"needs root, Debian's packages slurm-wlm and munge, and no {' or '.join(FILES)} in {ETC} (a killed run's?)"


def available() -> bool:
    """Whether this machine can have one, and has none."""
    free = ETC.is_dir() and not any((ETC / name).exists() for name in FILES)
    return os.geteuid() == 0 and free and all(map(shutil.which, ("slurmctld", "slurmd", "munged")))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


@contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start it with its files in `folder`; yields what the environment of its users needs; stops it in the end."""
    for part in ("state", "spool"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1000
    conf = SLURM_CONF.format(
        host=socket.gethostname(), folder=folder, cpus=os.cpu_count(), memory=memory, control_port=_free_port(),
        node_port=_free_port(),
    )  # fmt: skip
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    socket_of_munge, daemons = folder / "munge.socket", []
    # munge refuses files that others might have changed
    own = Path(tempfile.mkdtemp(prefix="munge-", dir="/run"))
    try:
        (own / "key").write_bytes(os.urandom(1024))
        (own / "key").chmod(0o400)
        socket_of_munge = own / "socket"
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "socket": "socket"}
        options = [f"--{name}={own / path}" for name, path in files.items()]
        daemons.append(subprocess.Popen(["munged", "--foreground", "--force", *options], stderr=subprocess.DEVNULL))
        (folder / "slurm.conf").write_text(conf + f"AuthInfo=socket={socket_of_munge}\n")
        for name in FILES:
            (ETC / name).unlink(missing_ok=True)  # a link to nowhere that a killed one left
            (ETC / name).symlink_to(folder / name)
        own.chmod(0o755)
        _until(socket_of_munge.exists, "munged")
        daemons.append(_daemon("slurmctld", folder, environment))
        daemons.append(_daemon("slurmd", folder, environment))
        _until(lambda: "idle" in _say(["sinfo", "-h", "-o", "%t"], environment), "the node")
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)
        for name in FILES:
            (ETC / name).unlink(missing_ok=True)
        shutil.rmtree(own, ignore_errors=True)


def _daemon(name: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    with open(folder / f"{name}.out", "w") as log:
        return subprocess.Popen([name, "-D"], stdout=log, stderr=log, env=os.environ | environment)


def _say(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment).stdout


def _until(ready, what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not up after {seconds} s")
        time.sleep(0.2)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made, one_node(Path(made)) as needed:
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | needed).returncode)
