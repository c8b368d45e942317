"""Estimate the jobs of a study with their time, disk and memory before it starts."""

from collections.abc import Sequence
from functools import cache
from itertools import chain

from shadowcore import rates
from shadowcore.config import Study
from shadowcore.costs import Costs
from shadowcore.errors import ConfigError
from shadowcore.jobs import Jobs
from shadowcore.rates import Rate
from shadowcore.rules import RULES, name_of
from shadowcore.work import LOADED, START, Work


def work(jobs: Jobs, strict: bool = False) -> list[Work]:
    """All jobs of a study. Jobs of a model of unknown size have no cost, or raise ConfigError if `strict`."""
    costs = Costs(jobs)
    if unknown := sorted(model for model, size in costs.sizes.items() if strict and size is None):
        raise ConfigError(
            f"models.{unknown[0]}: its size is not known before it is fetched; fetch it first (`snakemake "
            f"{jobs.root}/models/{unknown[0]}/card.json`), or add its size to shadowcore/models/published.py"
        )
    return [
        Work(rule, name_of(rule, *values), **costs.of(rule, *values))
        for rule, every in jobs.names.items()
        for values in every
    ]


def chains(jobs: Jobs, works: Sequence[Work], known: Sequence[Rate] = ()) -> dict[tuple[str, str], float]:
    """Seconds from each job's start to the end of the longest chain of jobs that wait for it, by rule and name.

    works: of all jobs; known: rates of the device that they run on. A study with few cores ends sooner if jobs with
    long chains start first.
    """
    values_of = {(rule, name_of(rule, *values)): values for rule, every in jobs.names.items() for values in every}
    made = {path: key for key, values in values_of.items() for path in jobs.outputs(key[0], *values).values()}
    read_by: dict[tuple[str, str], set[tuple[str, str]]] = {key: set() for key in values_of}
    for key, values in values_of.items():
        for path in chain.from_iterable(jobs.inputs(key[0], *values).values()):
            if path in made:
                read_by[made[path]].add(key)
    own = {(one.rule, one.name): one.seconds(rates.of(one.rule, one.weights, known)) for one in works}

    @cache
    def longest(key: tuple[str, str]) -> float:
        return own[key] + max(map(longest, read_by[key]), default=0)

    return {key: longest(key) for key in values_of}


def disk(study: Study, works: Sequence[Work]) -> float:
    """The most bytes that a study has on its disk at once: all outputs, unless it runs one model at a time."""
    if not study.one_model_at_a_time:
        return sum(job.written for job in works)
    by_model = [[job for job in works if job.name.split("/")[0] == model] for model in study.models]
    kept = [sum(job.written for job in part if not RULES[job.rule].temporary) for part in by_model]
    return max(sum(kept[:i]) + sum(job.written for job in part) for i, part in enumerate(by_model))


def measured_rates(jobs: Jobs) -> dict[str, float]:
    """Multiply-adds per second by rule, from `benchmark:` files of jobs that computed for longer than they started."""
    done: dict[str, list[tuple[float, float]]] = {}
    for job in work(jobs):
        measured = job.measured_seconds(jobs.root)
        if job.flops and measured is not None:
            before = START + job.weights / LOADED
            if (seconds := measured - before) > before:
                done.setdefault(job.rule, []).append((job.flops, seconds))
    return {rule: sum(flops for flops, _ in pairs) / sum(s for _, s in pairs) for rule, pairs in done.items()}
