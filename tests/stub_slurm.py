"""SLURM's commands as far as Snakemake uses them, on this machine: one file, the name it is called by says which.

A folder (STUB_SLURM) holds a line for every submission and the state of every job. Jobs run at once, or, if
STUB_SLURM_STATE is set, not at all: they are then in that state.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("STUB_SLURM", "."))
COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sacctmgr", "sshare")


def install(folder: Path) -> None:
    """Put the commands into a folder for PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        path.chmod(0o755)


def sbatch(arguments: list[str]) -> None:
    with open(FOLDER / "submitted", "a+") as log:
        log.write(json.dumps(arguments) + "\n")
        log.seek(0)
        job = len(log.readlines())
    (FOLDER / f"{job}.state").write_text(os.environ.get("STUB_SLURM_STATE", "RUNNING"))
    if "STUB_SLURM_STATE" not in os.environ:
        command = next(one.removeprefix("--wrap=") for one in arguments if one.startswith("--wrap="))
        output = arguments[arguments.index("--output") + 1].replace("%j", str(job))
        state = FOLDER / f"{job}.state"
        # the state appears whole: a reader never meets an empty file
        told = f"if ( {command} ); then s=COMPLETED; else s=FAILED; fi; echo $s > {state}.new; mv {state}.new {state}"
        with open(output, "w") as log:
            environment = os.environ | {"SLURM_JOB_ID": str(job)}
            subprocess.Popen(["sh", "-c", told], stdout=log, stderr=log, env=environment, start_new_session=True)
    print(job)


def srun(arguments: list[str]) -> None:
    """The command begins where the options end."""
    while arguments[0].startswith("-") or re.fullmatch(r"\d+", arguments[0]):
        arguments.pop(0)
    os.execvp(arguments[0], arguments)


def states(_: list[str]) -> None:
    for path in FOLDER.glob("*.state"):
        print(f"{path.stem}|{path.read_text().strip()}")


if __name__ == "__main__" and Path(sys.argv[0]).name in COMMANDS:
    name = Path(sys.argv[0]).name
    if name in ("sbatch", "srun"):
        {"sbatch": sbatch, "srun": srun}[name](sys.argv[1:])
    elif name in ("squeue", "sacct"):
        states(sys.argv[1:])
    elif name == "scontrol":
        print("MinJobAge = 300 sec")
    elif name in ("sacctmgr", "sshare"):
        print("lab")
