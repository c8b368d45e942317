import re
import shlex
import shutil
import signal
import sys
from contextlib import suppress
from functools import cache
from os.path import relpath
from pathlib import Path

from snakemake.logging import logger

from shadowcore import machine, manifests, progress_line, rates
from shadowcore.errors import ShadowcoreError
from shadowcore.jobs import options
from shadowcore.plan import chains, work
from shadowcore.provenance import fingerprint
from shadowcore.report import PUBLISHED
from shadowcore.report.captions import CAPTIONS
from shadowcore.rules import RULES, name_of
from shadowcore.schemas import FINAL_TABLES
from shadowcore.work import Work


# Snakemake takes braces in a path for wildcards, and the folder of a clone may have braces in its name.
def escaped(path):
    return str(path).replace("{", "{{").replace("}", "}}")


def named(values):
    """A pattern that matches exactly these values; without values it matches nothing."""
    return "|".join(map(re.escape, dict.fromkeys(values))) or "(?!)"


ENVIRONMENT = escaped(f"{workflow.basedir}/environment.yml")


@cache
def planned():
    try:
        return {(one.rule, one.name): one for one in work(jobs)}
    except ShadowcoreError as error:  # one sentence, without a traceback
        raise WorkflowError(str(error))


@cache
def longest_chains():
    return chains(jobs, planned().values(), rates.read() if gpus_here() else rates.read(device=rates.CORE))


# Bytes of the GPUs of this machine, if jobs run here.
@cache
def gpus_here():
    return machine.gpu_memory() if workflow.resource_settings.nodes is None else ()


# ---- what a rule is made of

# inputs that are files of this repository, which are never in an object store
REPOSITORY = {
    "judge_claims": {"published": relpath(PUBLISHED)},
    "write_page": {"introduction": relpath(f"{workflow.basedir}/workflow/report/workflow.rst")},
}
# where Snakemake's report shows an output
REPORTED = {
    "figures": {
        "category": "Figures",
        "caption": "../report/figure.rst",
        "patterns": ["{figure}.png"],
        "labels": {"figure": "{figure}", "model": "{model}"},  # the second label becomes a switch between models
    },
    "page": {"category": "Page", "caption": "../report/page.rst", "labels": {"page": "the study on one page"}},
    **{name: {"category": "Tables", "caption": "../report/tables.rst"} for name in FINAL_TABLES},
}


def values(rule, wildcards):
    return [wildcards[name] for name in RULES[rule].wildcards]


def key_of(rule, wildcards):
    return rule, name_of(rule, *values(rule, wildcards))


# Traces, predictors and weights are too large to be hashed by Snakemake. They are `ancient`; the small files with their
# checksums are inputs, which show when they have changed. The hashes of weights are in the model's card.
def inputs_of(rule):
    def files(wildcards):
        named, checksums = {}, []
        for option, paths in jobs.inputs(rule, *values(rule, wildcards)).items():
            named[option] = [ancient(path) if Path(path).suffix in ("", ".safetensors") else path for path in paths]
            checksums += [f"{path}.sha256" for path in paths if path.endswith(".safetensors")]
        return named | {"checksums": checksums}

    return files


def outputs_of(rule):
    made = {}
    for option, path in RULES[rule].outputs.items():
        made[option] = path = f"{root}/{path}".format(name=RULES[rule].job or rule)
        if path.endswith(".safetensors"):
            made["checksum"] = f"{path}.sha256"
        if not Path(path).suffix:
            made[option] = directory(path)
        if RULES[rule].temporary and option in ("weights", "trace") and study.one_model_at_a_time:
            made[option] = temp(made[option])
        if RULES[rule].joins and option in REPORTED:
            made[option] = report(made[option], **REPORTED[option])
    return made


# Memory, time limit and GPUs of a rule's jobs, from the size of the model and the number of attempts (`--retries`);
# `batches` is for the job's command line. GPUs are named `gres` if the cluster's profile has it as a scope.
def resources_of(rule):
    gpus = "gres" if "gres" in workflow.resource_scopes else "gpu"

    def needed(wildcards, attempt):
        key = key_of(rule, wildcards)
        return planned().get(key, Work(*key)).resources(attempt, gpus_here())

    def batches(wildcards, attempt):
        halved = {name: max(1, batch // 2 ** (attempt - 1)) for name, batch in jobs.batches(rule).items()}
        return shlex.join(options(halved))

    def amount(name):
        return lambda wildcards, attempt: needed(wildcards, attempt)[name]

    return {name: amount(name) for name in ("mem_mb", "runtime", "devices", gpus)} | {"batches": batches}


# A study ends sooner if those jobs start first that most work waits for.
def priority_of(rule):
    return lambda wildcards: longest_chains().get(key_of(rule, wildcards), 0)


def params_of(rule):
    def files(wildcards, input):  # Snakemake runs no job again because of a parameter that is made from its inputs
        read = jobs.inputs(rule, *values(rule, wildcards)) | REPOSITORY.get(rule, {})
        return shlex.join(options(read | jobs.outputs(rule, *values(rule, wildcards))))

    params = {
        "stage": rule.replace("_", "-"),
        "spec": lambda wildcards: jobs.spec(rule, *values(rule, wildcards)),
        "code": fingerprint(f"shadowcore.stages.{rule}"),
        "files": files,
    }
    return params | ({"captions": CAPTIONS} if rule == "draw" else {})


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
            if RULES[job.rule.name].joins and place_of(job) not in failed:
                workflow.persistence.started(job)  # marks its outputs as incomplete, so the next run makes them again
        try:
            incomplete.report(ended, Path(workflow.basedir, "workflow", "report", "workflow.rst"))
        except OSError as error:  # a full disk, which may be why the jobs failed
            print(f"The tables and the page of the other jobs could not be written: {error}", file=sys.stderr)
    print("", *incomplete.end_of_run(ended), sep="\n", file=sys.stderr)
