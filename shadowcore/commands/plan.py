"""`shadowcore plan`: check a study and estimate its jobs, hours, disk and memory."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from shadowcore import machine, plan, preflight, rates
from shadowcore.commands import console, new_table, say
from shadowcore.config import load_study
from shadowcore.errors import ConfigError
from shadowcore.jobs import Jobs
from shadowcore.rates import Rate
from shadowcore.rules import RULES
from shadowcore.work import DECODING, TFLOPS, Work


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a configuration, such as config/paper.yaml")
    parser.add_argument("--measured", type=Path, metavar="CONFIG", help="use the times of this study, which ran here")
    parser.add_argument("--budget-hours", type=float, metavar="N", help="fail if the jobs need more hours")
    parser.add_argument("--budget-gb", type=float, metavar="N", help="fail if the study needs more disk (10^9 bytes)")


def run(parsed: argparse.Namespace) -> None:
    jobs, ran = (Jobs(load_study(path)) for path in (parsed.config, parsed.measured or parsed.config))
    preflight.check(jobs)
    here, known = plan.measured_rates(ran), rates.read()
    works = plan.work(jobs, strict=True)
    core = () if machine.gpu_memory() else rates.read(device=rates.CORE)
    planned = totals(works, here, known, plan.disk(jobs.study, works), core)
    print_totals(planned, here, console(), known, core)
    if shortage := preflight.shortage(jobs):
        say(console(), f"{shortage[0].upper()}{shortage[1:]}.")
    check_budget(planned, parsed.budget_hours, parsed.budget_gb)


class Total(NamedTuple):
    """The cost of the jobs of one rule or of all. disk: bytes of all jobs; memory, gpus: of the largest job."""

    jobs: int
    hours: float
    gpu_hours: float
    disk: float
    memory: float
    gpus: int


def totals(
    works: Sequence[Work], here: Mapping[str, float], known: Sequence[Rate] = (), at_once: float = math.inf,
    core: Sequence[Rate] = (),
) -> dict[str, Total]:  # fmt: skip
    """Totals by rule, in the order of the stages, and of all jobs as "all", whose disk is at most `at_once` bytes.

    here: rates measured on this machine; known: rates of a GPU, for jobs with a GPU of their own and jobs without a
    model; core: rates of a core, for jobs without a GPU of their own on a machine without a GPU.
    """

    def hours_of(one: Work) -> float:
        serving = rates.serving(one.gpus, one.weights > 0, known, core)
        on_device = rates.of(one.rule, one.weights, serving)
        return one.seconds({**on_device, **here}) / 3600

    def total(part: Sequence[Work]) -> Total:
        hours = [hours_of(one) for one in part]
        on_gpu = sum(one.gpus * time for one, time in zip(part, hours, strict=True))
        disk, memory = sum(one.written for one in part), max(one.memory for one in part)
        return Total(len(part), sum(hours), on_gpu, disk, memory, max(one.gpus for one in part))

    by_rule = {rule: [one for one in works if one.rule == rule] for rule in RULES}
    whole = total(works)
    whole = whole._replace(disk=min(whole.disk, at_once))
    return {rule: total(part) for rule, part in by_rule.items() if part} | {"all": whole}


def check_budget(planned: Mapping[str, Total], hours: float | None, gb: float | None) -> None:
    """Raise ConfigError if all jobs together take more hours or disk than allowed."""
    whole = planned["all"]
    for name, needed, unit, limit in (
        ("budget-hours", whole.hours, "hours", hours), ("budget-gb", whole.disk / 1e9, "GB", gb)
    ):  # fmt: skip
        if limit is not None and needed > limit:
            field = "hours" if unit == "hours" else "disk"
            most = max((rule for rule in planned if rule != "all"), key=lambda rule: getattr(planned[rule], field))
            raise ConfigError(
                f"--{name} {limit:g}: the study takes about {needed:,.4g} {unit}, most of it in {most}; make that "
                f"stage smaller, or allow {math.ceil(needed):,}"
            )


def print_totals(
    planned: Mapping[str, Total], here: Mapping[str, float], console: Console, known: Sequence[Rate] = (),
    core: Sequence[Rate] = (),
) -> None:  # fmt: skip
    """Print a line per rule, and the source of the rates: measured on this machine (`here`), a GPU or a core."""
    names = ("jobs", "hours", "GPU-hours", "disk, GB", "memory of a job, GB", "GPUs of a job", "TFLOP/s")
    table = new_table("stage", *names)
    elsewhere: dict[str, list[str]] = {}  # rules, by the other machine whose rates they have
    for rule, one in planned.items():
        loads = rule in RULES and RULES[rule].copies > 0
        own = [rate for rate in rates.serving(one.gpus, loads, known, core) if rate.stage == rule]
        speeds, rate = sorted(rate.per_second / 1e12 for rate in own), ""
        if rule in here:
            rate = f"{here[rule] / 1e12:.3g} measured"
        elif own:
            rate = f"[{' to '.join(dict.fromkeys(f'{speed:.3g}' for speed in (speeds[0], speeds[-1])))}]"
            elsewhere.setdefault(own[0].device, []).append(rule)
        numbers = [f"{one.jobs:,}", f"{one.hours:,.2f}", f"{one.gpu_hours:,.1f}", f"{one.disk / 1e9:,.2f}"]
        table.add_row(rule, *numbers, f"{one.memory / 1e9:.1f}", str(one.gpus), rate)
    console.print(table)
    if sum(one.disk for rule, one in planned.items() if rule != "all") > planned["all"].disk + 1:
        console.print("Disk of `all` is the most at once: models run one at a time, and their large files are deleted.")
    traces = sum(one.disk for rule, one in planned.items() if rule.startswith("trace"))
    console.print(
        f"Traces: {traces / 1e9:,.1f} GB. Stages without a rate in the last column are assumed to make {TFLOPS:g} "
        f"TFLOP/s per job, or {DECODING:g} if they decode token by token; `--measured CONFIG` uses the times of a "
        "study that ran.",
        highlight=False,
    )
    gpus = machine.gpu_names()
    for device, rules in elsewhere.items():
        if device not in gpus:
            one, has = ("", "") if device == rates.CORE else ("one ", f", which has {' and '.join(gpus) or 'no GPU'}")
            console.print(
                f"WARNING: the hours of {', '.join(rules)} are those of {one}{device}, not of this machine{has} "
                "(rates in brackets, from shadowcore/rates.csv).",
                highlight=False, markup=False,
            )  # fmt: skip
