import gc
import re
import shutil
import signal
import sys
from contextlib import suppress
from functools import cache
from inspect import signature
from pathlib import Path

from snakemake.common import overwrite_function_params
from snakemake.logging import logger
from snakemake.resources import Resource

from shadowcore import incomplete, manifests, progress_line
from shadowcore.errors import ShadowcoreError
from shadowcore.plan import work
from shadowcore.provenance import fingerprint
from shadowcore.rules import RULES

# Garbage collection among ten thousand of Snakemake's jobs, which are never freed, would take a fifth of its time.
gc.set_threshold(500_000)


# Snakemake takes braces in a path for wildcards, and the folder of a clone may have braces in its name.
def escaped(path):
    return str(path).replace("{", "{{").replace("}", "}}")


def named(values):
    """A pattern that matches exactly these values; without values it matches nothing."""
    return "|".join(map(re.escape, dict.fromkeys(values))) or "(?!)"


ENVIRONMENT = escaped(f"{workflow.basedir}/environment.yml")


# Snakemake inspects the parameters of every function several times per job; this caches them.
def with_signature(function):
    overwrite_function_params(function, signature(function).parameters)
    return function


with_signature(Resource.evaluate)


@cache
def planned():
    try:
        return {(one.rule, one.name): one for one in work(jobs)}
    except ShadowcoreError as error:  # one sentence, without a traceback
        raise WorkflowError(str(error))


# ---- how a run ends

interruptions = []


def notice_interruption():
    """Remember Ctrl-C, because Snakemake calls `onerror` for it as for a failure."""

    def remember(number, frame):
        interruptions.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, remember)


def interrupted():
    return bool(interruptions or workflow.scheduler._user_kill)


progress_lines = []


def show_progress():
    """Show one line of progress instead of messages about single jobs, unless `--verbose` is given."""
    if not workflow.output_settings.verbose:
        progress_lines.append(progress_line.install(logger, jobs))


def end_progress():
    for line in progress_lines:
        line.close()


def require_queue():
    """Raise WorkflowError if SLURM is to be used and its commands are missing; its executor would wait for ever."""
    if workflow.executor_plugin.name.startswith("slurm") and not shutil.which("sbatch"):
        raise WorkflowError(
            "this machine has no SLURM (no command `sbatch`); start on a login node of the cluster, or without "
            "`--workflow-profile` to run on this machine alone"
        )


def place_of(job):
    """The job's `Work.place`, from the path of its log."""
    return str(Path(job.log[0]).relative_to(jobs.root / "logs").with_suffix(""))


def report_what_there_is():
    """After a failure: make tables and page of the existing results, and print the error of each failed job."""
    single = [member for job in workflow.scheduler.failed for member in getattr(job, "jobs", [job])]
    unfinished = [job for job in workflow.dag.needrun_jobs() if job.log]
    failed = {place_of(job) for job in single if job in set(unfinished)}
    ended = incomplete.Ended(jobs, failed, {place_of(job) for job in unfinished})
    if not workflow.storage_settings.default_storage_provider:  # else the results are not on this machine
        for job in unfinished:
            if RULES[job.rule.name].joins and place_of(job) not in failed:
                workflow.persistence.started(job)  # marks its outputs as incomplete, so the next run makes them again
        try:
            incomplete.report(ended, Path(workflow.basedir, "workflow", "report", "workflow.rst"))
        except OSError as error:  # a full disk, which may be why the jobs failed
            print(f"The tables and the page of the other jobs could not be written: {error}", file=sys.stderr)
    print("", *incomplete.end_of_run(ended), sep="\n", file=sys.stderr)
