"""Rates of known devices: what a plan takes where nothing has run, and how they are made of measured jobs."""

import sys
from io import StringIO

import pytest
from conftest import ROOT
from rich.console import Console

from shadowcore import machine, rates
from shadowcore.commands.plan import print_totals, totals
from shadowcore.rates import Rate
from shadowcore.work import START, Work

sys.path.insert(0, str(ROOT / "benchmarks"))
import chain  # noqa: E402

KNOWN = [
    Rate("a GPU", "trace", 2e9, 1e13, "x"), Rate("a GPU", "trace", 60e9, 9e13, "x"),
    Rate("a GPU", "train_predictor", 0, 2e13, "x"),
]  # fmt: skip
LARGE, MEDIUM, SMALL = (Work("trace", "one", flops=1e16, weights=gb * 1e9) for gb in (60, 6, 1))


def hours(work, here=None):
    return totals([work], here or {}, KNOWN)[work.rule].hours * 3600


def job(stage="trace", weights=2e9, multiplications=1e15, seconds=20.0):
    return {"device": "GPU", "stage": stage, "weights_bytes": weights} | {
        "multiplications": multiplications, "seconds": seconds
    }  # fmt: skip


def test_the_rate_is_that_of_the_model_nearest_in_size():
    assert hours(LARGE) == pytest.approx(LARGE.seconds({"trace": 9e13}))
    assert hours(MEDIUM) == pytest.approx(MEDIUM.seconds({"trace": 1e13}))


def test_what_was_measured_here_goes_before_a_devices_rate():
    assert hours(LARGE, {"trace": 1e12}) == pytest.approx(LARGE.seconds({"trace": 1e12}))


def test_a_small_models_job_is_not_planned_at_the_rate_of_a_gpu_that_it_does_not_ask_for():
    light = Work("trace", "one", flops=1e14, weights=1e9)
    assert light.gpus == 0 and hours(light) == pytest.approx(light.seconds({}))
    training = Work("train_predictor", "one", flops=1e14)
    assert hours(training) == pytest.approx(START + 5)


@pytest.mark.parametrize(("gpus", "here", "warned"), [
    ([], {}, "no GPU"), (["b GPU"], {}, "b GPU"), (["a GPU"], {}, None), ([], {"trace": 1e12}, None),
])  # fmt: skip
def test_plan_warns_that_hours_are_those_of_another_machine(monkeypatch, gpus, here, warned):
    monkeypatch.setattr(machine, "gpu_names", lambda: gpus)
    out = StringIO()
    print_totals(totals([LARGE], here, KNOWN), here, Console(file=out, width=160), KNOWN)
    assert ("[10 to 90]" in out.getvalue()) != bool(here)
    warning = out.getvalue().partition("WARNING")[2]
    assert bool(warned) == bool(warning)
    assert not warned or all(words in warning for words in ("trace", "one a GPU", warned, "rates.csv"))


def test_loading_a_model_is_not_in_the_rate():
    """A job takes 10 s to load and makes 1e14 multiplications a second."""
    (row,) = chain.rates_of([job(multiplications=1e15, seconds=20), job(multiplications=4e15, seconds=50)], "x")
    assert row == dict(zip(rates.COLUMNS, ("GPU", "trace", "2.0", "100", "x"), strict=True))


def test_where_jobs_are_alike_everything_that_they_do_is_in_the_rate():
    alike = [job("train-predictor", 0, 1e15, 20), job("train-predictor", 0, 4e15, 30)]
    (row,) = chain.rates_of(alike, "x")
    assert row["stage"] == "train_predictor" and row["tflops"] == "100"
    assert chain.rates_of([job(multiplications=0)], "x") == []


def test_the_committed_rates_can_be_read():
    for rate in rates.read():
        assert rate.per_second > 1e11 and rate.source
