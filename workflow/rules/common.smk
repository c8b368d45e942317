import gc
from functools import cache
from inspect import signature

from shadowcore.plan import Work, work
from shadowcore.provenance import fingerprint

# Snakemake's jobs live as long as it does: to look for garbage among ten thousand of them takes a fifth of its time.
gc.set_threshold(500_000)


# Snakemake asks every function for its signature, for every job: it is found once, here.
def signed(function):
    function.__signature__ = signature(function)
    return function


@cache
def works():
    return {(one.rule, one.name): one for one in work(jobs)}


# What rules ask the study about their wildcards: memory, GPUs and time of a job, by the size of its model and by how
# often it has been tried (`--retries`). A cluster that counts GPUs as `gres` says so in its profile's resource scopes.
def asked(rule, name):
    def asking(what):
        def answer(wildcards, attempt):
            key = rule, name.format(**wildcards)
            return works().get(key, Work(*key)).resources(attempt)[what]

        return signed(answer)

    counted = "gres" if "gres" in workflow.resource_scopes else "gpu"
    return {what: asking(what) for what in ("mem_mb", "runtime", "devices", counted)}


def halving(batch):
    return signed(lambda wildcards, attempt: max(1, batch // 2 ** (attempt - 1)))


# ... and what is to be done.
def trained(wildcards):
    return jobs.train_predictor(
        wildcards.model, wildcards.calibration, wildcards.method, wildcards.criterion, wildcards.predictor
    )


def tuned(wildcards):
    return jobs.tune_predictor(
        wildcards.model, wildcards.calibration, wildcards.method, wildcards.criterion, wildcards.predictor
    )


def traced_on_policy(wildcards):
    return jobs.trace_on_policy(
        wildcards.model,
        wildcards.split,
        wildcards.shard,
        wildcards.method,
        wildcards.criterion,
        wildcards.predictor,
    )


def trained_on(split):
    def traces(wildcards):
        design = f"{wildcards.method}+{wildcards.criterion}"
        return jobs.traces(wildcards.model, wildcards.calibration, design, wildcards.predictor, split)

    return traces


def condition_key(wildcards):
    return wildcards.model, wildcards.data, wildcards.setup, int(wildcards.pct)


@signed
def benchmarks_of(wildcards):
    return jobs.benchmarks(wildcards.data)


# read by no one: nothing is measured before this check has passed
@signed
def disjoint_of(wildcards):
    return jobs.disjoint(condition_key(wildcards))


@signed
def scores_of(wildcards):
    one = jobs.conditions[condition_key(wildcards)]
    return [f"{root}/scores/{one.model}/{one.calibration}.parquet"] if one.method == "static" else []


@signed
def thresholds_of(wildcards):
    one = jobs.conditions[condition_key(wildcards)]
    return [f"{root}/thresholds/{one.model}/{one.calibration}.parquet"] if one.method == "threshold" else []


@signed
def predictor_of(wildcards):
    stem = jobs.predictor_of(jobs.conditions[condition_key(wildcards)])
    return [f"{stem}.safetensors"] if stem else []
