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

from shadowcore import machine, manifests, progress_line
from shadowcore.errors import ShadowcoreError
from shadowcore.plan import work
from shadowcore.provenance import fingerprint
from shadowcore.states import REPORT
from shadowcore.work import Work

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


# Weights and traces; with `one_model_at_a_time`, Snakemake deletes them when no job of the run needs them.
def deletable(path):
    return temp(path) if study.one_model_at_a_time else path


@cache
def planned():
    try:
        return {(one.rule, one.name): one for one in work(jobs)}
    except ShadowcoreError as error:  # one sentence, without a traceback
        raise WorkflowError(str(error))


# Bytes of the GPUs of this machine, if jobs run here.
@cache
def gpus_here():
    return machine.gpu_memory() if workflow.resource_settings.nodes is None else ()


# Memory, time limit and GPUs of a rule's jobs, from the size of the model and the number of attempts (`--retries`).
# name: the job's name as a pattern of wildcards. GPUs are named `gres` if the cluster's profile has it as a scope.
def resources_of(rule, name):
    def function(resource):
        def amount(wildcards, attempt):
            key = rule, name.format(**wildcards)
            return planned().get(key, Work(*key)).resources(attempt, gpus_here())[resource]

        return with_signature(amount)

    gpus = "gres" if "gres" in workflow.resource_scopes else "gpu"
    return {resource: function(resource) for resource in ("mem_mb", "runtime", "devices", gpus)}


def halving(batch):
    return with_signature(lambda wildcards, attempt: max(1, batch // 2 ** (attempt - 1)))


def teacher_of(file):
    return lambda wildcards: f"{root}/models/{study.models[wildcards.model].relufied.teacher}/{file}"


# The predictor of a job. slug: the name of the wildcard with the predictor's slug.
def predictor(wildcards, slug):
    return jobs.trained[wildcards.model, wildcards.calibration, wildcards[slug]]


def traced(wildcards):
    return jobs.dense_traces(wildcards.model, wildcards.calibration)


def timed_predictors(wildcards):
    return [f"{jobs.stem(one)}.safetensors" for one in jobs.latency_predictors(wildcards.model)]


def trained_on(split, slug):
    return lambda wildcards: jobs.traces(predictor(wildcards, slug), split)


def begun_with(wildcards):
    return [f"{jobs.stem(jobs.parent(predictor(wildcards, 'tuned')))}.safetensors"]


# Traces and predictors are too large to be hashed by Snakemake. They are `ancient`, like the models' weights, and the
# small files with their checksums are inputs, which show when they have changed.
def unhashed(files):
    return with_signature(lambda wildcards: [ancient(path) for path in files(wildcards)])


def checksums_of(*files):
    return with_signature(lambda wildcards: [f"{path}.sha256" for of in files for path in of(wildcards)])


def evaluation(wildcards):
    return wildcards.model, wildcards.data, wildcards.pct


@with_signature
def benchmarks_of(wildcards):
    return jobs.gathered(wildcards.data)


# not read by the job; an input only so that nothing is measured before this check has passed
@with_signature
def disjoint_of(wildcards):
    return jobs.disjoint(evaluation(wildcards))


@with_signature
def scores_of(wildcards):
    return jobs.tables_of("scores", evaluation(wildcards))


@with_signature
def thresholds_of(wildcards):
    return jobs.tables_of("thresholds", evaluation(wildcards))


def predictors_of(wildcards):
    return [f"{stem}.safetensors" for stem in jobs.predictors_of(evaluation(wildcards))]


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
    from shadowcore import incomplete  # imports the plotting packages

    single = [member for job in workflow.scheduler.failed for member in getattr(job, "jobs", [job])]
    unfinished = [job for job in workflow.dag.needrun_jobs() if job.log]
    failed = {place_of(job) for job in single if job in set(unfinished)}
    ended = incomplete.Ended(jobs, failed, {place_of(job) for job in unfinished})
    if not workflow.storage_settings.default_storage_provider:  # else the results are not on this machine
        for job in unfinished:
            if job.rule.name in REPORT and place_of(job) not in failed:
                workflow.persistence.started(job)  # marks its outputs as incomplete, so the next run makes them again
        try:
            incomplete.report(ended, Path(workflow.basedir, "workflow", "report", "workflow.rst"))
        except OSError as error:  # a full disk, which may be why the jobs failed
            print(f"The tables and the page of the other jobs could not be written: {error}", file=sys.stderr)
    print("", *incomplete.end_of_run(ended), sep="\n", file=sys.stderr)
