import gc
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
from shadowcore.states import REPORT
from shadowcore.work import Work

# Snakemake's jobs live as long as it does: to look for garbage among ten thousand of them takes a fifth of its time.
gc.set_threshold(500_000)


# Snakemake looks for wildcards in paths, and a clone may stand in a folder with braces in its name.
def escaped(path):
    return str(path).replace("{", "{{").replace("}", "}}")


ENVIRONMENT = escaped(f"{workflow.basedir}/environment.yml")


# Snakemake asks every function for its parameters, several times for every job: they are found once, here.
def with_signature(function):
    overwrite_function_params(function, signature(function).parameters)
    return function


with_signature(Resource.evaluate)


# Weights and traces, which Snakemake deletes in a study of one model at a time when no job of the run needs them.
def deletable(path):
    return temp(path) if study.one_model_at_a_time else path


@cache
def planned():
    try:
        return {(one.rule, one.name): one for one in work(jobs)}
    except ShadowcoreError as error:  # one sentence, without the frames of a function that a rule asks
        raise WorkflowError(str(error))


# What rules ask the study about their wildcards: memory, GPUs and time of a job, by the size of its model and by how
# often it has been tried (`--retries`). A cluster that counts GPUs as `gres` says so in its profile's resource scopes.
def resources_of(rule, name):
    def asking(what):
        def answer(wildcards, attempt):
            key = rule, name.format(**wildcards)
            return planned().get(key, Work(*key)).resources(attempt)[what]

        return with_signature(answer)

    counted = "gres" if "gres" in workflow.resource_scopes else "gpu"
    return {what: asking(what) for what in ("mem_mb", "runtime", "devices", counted)}


def halving(batch):
    return with_signature(lambda wildcards, attempt: max(1, batch // 2 ** (attempt - 1)))


def teacher_of(file):
    return lambda wildcards: f"{root}/models/{study.models[wildcards.model].relufied.teacher}/{file}"


# ... and what is to be done. `slug`: the wildcard that names a predictor of a model and text.
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


# Traces and predictors are too large to be read once more for what is in them. They are `ancient`, as the models'
# weights are: the small files with their checksums say when they changed.
def unhashed(files):
    return with_signature(lambda wildcards: [ancient(path) for path in files(wildcards)])


def checksums_of(*files):
    return with_signature(lambda wildcards: [f"{path}.sha256" for of in files for path in of(wildcards)])


def evaluation(wildcards):
    return wildcards.model, wildcards.data, wildcards.pct


@with_signature
def benchmarks_of(wildcards):
    return jobs.gathered(wildcards.data)


# read by no one: nothing is measured before this check has passed
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
    """Remember Ctrl-C, which Snakemake does not tell from a failure when it calls `onerror`."""

    def remember(number, frame):
        interruptions.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, remember)


def interrupted():
    return bool(interruptions or workflow.scheduler._user_kill)


progress_lines = []


def show_progress():
    """One line of progress instead of pages on single jobs, unless `--verbose` asks for them."""
    if not workflow.output_settings.verbose:
        progress_lines.append(progress_line.install(logger, jobs))


def end_progress():
    for line in progress_lines:
        line.close()


def require_queue():
    """Without SLURM's commands, its executor would wait for ever."""
    if workflow.executor_plugin.name.startswith("slurm") and not shutil.which("sbatch"):
        raise WorkflowError(
            "this machine has no SLURM (there is no command `sbatch`); start on a login node of the cluster, or "
            "without `--workflow-profile` to run on this machine alone"
        )


def place_of(job):
    """What `Work.place` is: a job by its log."""
    return str(Path(job.log[0]).relative_to(jobs.root / "logs").with_suffix(""))


def report_what_there_is():
    """After a failure: make tables and page of what there is, and end with each failed job's own sentence."""
    single = [one for job in workflow.scheduler.failed for one in getattr(job, "jobs", [job])]
    unfinished = [job for job in workflow.dag.needrun_jobs() if job.log]
    failed = {place_of(job) for job in single if job in set(unfinished)}
    ended = incomplete.Ended(jobs, failed, {place_of(job) for job in unfinished})
    if not workflow.storage_settings.default_storage_provider:  # else what there is is not on this machine
        for job in unfinished:
            if job.rule.name in REPORT and place_of(job) not in failed:
                workflow.persistence.started(job)  # so that the next run makes it again, whatever its inputs say
        try:
            incomplete.report(ended, Path(workflow.basedir, "workflow", "report", "workflow.rst"))
        except OSError as error:  # a full disk, which may be why the jobs failed
            print(f"Tables and page cannot be made of the other jobs: {error}", file=sys.stderr)
    print("", *incomplete.end_of_run(ended), sep="\n", file=sys.stderr)
