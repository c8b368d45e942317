"""`shadowcore plan`: what a study will take, or a refusal of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shadowcore import plan
from shadowcore.commands import console
from shadowcore.config import load_study
from shadowcore.jobs import Jobs


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a configuration, such as config/paper.yaml")
    parser.add_argument("--measured", type=Path, metavar="CONFIG", help="one that ran here: its times count")
    parser.add_argument("--budget-hours", type=float, metavar="N", help="refuse more hours of jobs than this")
    parser.add_argument("--budget-gb", type=float, metavar="N", help="refuse more disk than this, 10^9 bytes")


def run(parsed: argparse.Namespace) -> None:
    jobs, ran = (Jobs(load_study(path)) for path in (parsed.config, parsed.measured or parsed.config))
    rates = plan.measured_rates(ran)
    planned = plan.totals(plan.work(jobs, strict=True), rates)
    plan.print_totals(planned, rates, console())
    plan.check_budget(planned, parsed.budget_hours, parsed.budget_gb)
