# A rule for every stage of a study. Which stages there are, their outputs and what they need of a machine is in
# shadowcore/rules.py; their specifications and inputs are in shadowcore/jobs.py.
import shlex
from os.path import relpath

from shadowcore.jobs import options
from shadowcore.report.captions import CAPTIONS
from shadowcore.report.claims import PUBLISHED
from shadowcore.rules import RULES, name_of
from shadowcore.schemas import FINAL_TABLES
from shadowcore.work import Work

# A job's outcome files, one per condition, are in the folder of its manifest. Snakemake does not know them, so it never
# deletes them. If one of them is missing, the manifest is deleted here, so that the job runs again.
for path in map(Path, jobs.manifests() if workflow.is_main_process else ()):
    if path.is_file() and manifests.absent(path):
        with suppress(OSError):  # a read-only folder
            path.unlink()

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


# Traces, predictors and weights are too large to be hashed by Snakemake. They are `ancient`; the small files with their
# checksums are inputs, which show when they have changed. The hashes of weights are in the model's card.
def inputs_of(rule):
    def files(wildcards):
        found = jobs.inputs(rule, *values(rule, wildcards))
        found = {option: [paths] if isinstance(paths, str) else paths for option, paths in found.items()}
        large = [path for paths in found.values() for path in paths if path.endswith(".safetensors")]
        unhashed = {*large, *(path for path in sum(found.values(), []) if path.endswith("/weights"))}
        marked = {
            name: [ancient(path) if path in unhashed else path for path in paths] for name, paths in found.items()
        }
        return marked | {"checksums": [f"{path}.sha256" for path in large]}

    return with_signature(files)


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
# `options` tells them to the job. GPUs are named `gres` if the cluster's profile has it as a scope.
def resources_of(rule):
    facts, gpus = RULES[rule], "gres" if "gres" in workflow.resource_scopes else "gpu"

    def needed(wildcards, attempt):
        key = rule, name_of(rule, *values(rule, wildcards))
        return planned().get(key, Work(*key)).resources(attempt)

    def runtime(wildcards, attempt):
        words = [f"--devices {needed(wildcards, attempt)['devices']}"] if facts.torch == "gpu" else []
        for name in facts.batches:
            batch = getattr(study.traces if name == "batch" else study.evaluation, name)
            words.append(f"--{name.replace('_', '-')} {max(1, batch // 2 ** (attempt - 1))}")
        return " ".join(words)

    def function(name):
        return with_signature(lambda wildcards, attempt: needed(wildcards, attempt)[name])

    amounts = {name: function(name) for name in ("mem_mb", "runtime", "devices", gpus)}
    return amounts | {"options": with_signature(runtime)}


def params_of(rule):
    def files(wildcards, input):  # Snakemake runs no job again because of a parameter that is made from its inputs
        read = jobs.inputs(rule, *values(rule, wildcards)) | REPOSITORY.get(rule, {})
        return shlex.join(options(read | jobs.outputs(rule, *values(rule, wildcards))))

    params = {
        "stage": rule.replace("_", "-"),
        "spec": with_signature(lambda wildcards: jobs.spec(rule, *values(rule, wildcards))),
        "code": fingerprint(f"shadowcore.stages.{rule}"),
        "files": with_signature(files),
    }
    return params | ({"captions": CAPTIONS} if rule == "draw" else {})


for name, facts in RULES.items():
    place = f"{name.removesuffix('_oracle')}/{facts.job}" if facts.job else name

    rule:
        name:
            name
        input:
            unpack(inputs_of(name)),
            **{option: local(escaped(path)) for option, path in REPOSITORY.get(name, {}).items()},
        output:
            **outputs_of(name),
        log:
            f"{root}/logs/{place}.log",
        benchmark:
            f"{root}/benchmarks/{place}.tsv"
        # two rules make models
        wildcard_constraints:
            **{"model": named(sum(jobs.names[name], ()))} if "weights" in facts.outputs else {},
        priority: int(facts.early)
        conda:
            ENVIRONMENT
        threads: workflow.cores if facts.timed else 1
        resources:
            **resources_of(name),
        params:
            **params_of(name),
        shell:
            "python -m shadowcore {params.stage} --spec {params.spec:q} "
            "--threads {threads} {resources.options} {params.files} &> {log:q}"


rule tables:
    input:
        jobs.tables(),
        jobs.made_by("check_tables", "record"),


rule figures:
    input:
        jobs.made_by("draw", "drawn"),
