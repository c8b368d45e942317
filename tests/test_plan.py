"""The plan: sizes and bytes as they are, rates as they were measured, and a budget that is kept."""

import copy
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT, refused

from shadowcore import artifacts, cli, plan
from shadowcore.commands.plan import totals
from shadowcore.config import load_study, parse_study
from shadowcore.jobs import Jobs
from shadowcore.models.families import dimensions_of
from shadowcore.models.published import PUBLISHED, Size
from shadowcore.schemas import LATENCY
from shadowcore.work import START, TFLOPS

CONFIG = ROOT / "config"
QUICK = yaml.safe_load((CONFIG / "quick.yaml").read_text())


def jobs_of(data, folder):
    return Jobs(parse_study(data, "config"), folder)


def test_weights_are_counted_as_they_are(tiny):
    size = Size(tiny.config.model_type, dimensions_of(tiny.config))
    matrices = {name: p.numel() for name, p in tiny.named_parameters() if p.ndim == 2 and "embed" not in name}
    output = size.dimensions.vocabulary * size.dimensions.width  # tied to the input's embedding
    assert size.multiplied == sum(matrices.values()) + output


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("opt-1.3b", 1.316e9), ("opt-6.7b", 6.66e9), ("opt-30b", 29.97e9),
     ("llama-2-7b", 6.738e9), ("llama-2-13b", 13.016e9), ("smollm2-135m", 134.5e6)],
)  # fmt: skip
def test_published_sizes_are_those_of_the_models(name, parameters):
    assert PUBLISHED[name].parameters == pytest.approx(parameters, rel=0.002)


def test_more_of_everything_costs_more(tmp_path):
    def total(**changes):
        data = copy.deepcopy(QUICK)
        for key, value in changes.items():
            part, name = key.split("__")
            data[part][name] = value
        found = plan.work(jobs_of(data, tmp_path), strict=True)
        return sum(one.flops for one in found), sum(one.written for one in found)

    flops, written = total()
    windows = {part: QUICK[part]["windows"] + 1 for part in ("traces", "evaluation")}
    for change in (
        {"traces__windows": windows["traces"]},
        {"traces__criteria": [*QUICK["traces"]["criteria"], "grasp"]},
    ):
        more = total(**change)
        assert more[0] > flops and more[1] > written
    assert total(evaluation__windows=windows["evaluation"])[0] > flops
    tasks = ["true_continuation", "piqa"]
    assert total(evaluation__tasks=tasks)[0] > flops
    asked, shown = (total(evaluation__tasks=tasks, evaluation__fewshot=shots)[0] - flops for shots in ([0], [0, 3]))
    assert 2 * asked < shown < 5 * asked  # prompts are five times as long, and choices are scored twice


def test_prompts_cost_once_for_conditions_that_are_measured_side_by_side(tmp_path):
    def cost(**grid):
        data = copy.deepcopy(QUICK)
        data["evaluation"]["tasks"] = ["true_continuation", "boolq"]  # whose prompts are a hundred times its choices
        data["conditions"] = [{"methods": ["random"], "sparsities_pct": [50]} | grid]
        (job,) = (one for one in plan.work(jobs_of(data, tmp_path)) if one.name.endswith("/50"))
        return job.flops

    one, three = cost(), cost(units=["heads", "neurons", "both"])
    assert one < three < 1.5 * one
    assert cost(protocols=["lookahead"]) > 1.5 * one  # every choice runs with its own prompt


def test_a_job_has_a_longer_chain_than_every_job_that_waits_for_it(tmp_path):
    jobs = jobs_of(QUICK, tmp_path)
    chains = plan.chains(jobs, plan.work(jobs))
    place = "smollm2-135m/wikipedia"
    waiting = [
        ("fetch_model", "smollm2-135m"), ("trace", f"{place}/train-0"),
        ("train_predictor", f"{place}/shadow+plainact+small"),
        ("tune_predictor", f"{place}/shadow+plainact+small_tuned"), ("evaluate", f"{place}/50-1"),
        ("aggregate", "aggregate"),
        ("write_page", "write_page"),
    ]  # fmt: skip
    lengths = [chains[key] for key in waiting]
    assert lengths == sorted(set(lengths), reverse=True)
    # nothing is tuned from the other predictors; more conditions are measured at 50 % than at 30 %
    assert chains["train_predictor", f"{place}/shadow+plainact+published"] < lengths[2]
    assert chains["evaluate", f"{place}/30"] < chains["evaluate", f"{place}/50"]


def test_only_conditions_of_a_predictor_that_begins_with_another_wait_for_it(tmp_path):
    jobs = jobs_of(QUICK, tmp_path)
    predictors = {key[2]: {one.predictor for one in found.values()} for key, found in jobs.evaluations.items()}
    assert {part for part, names in predictors.items() if "small_tuned" in names} == {"30-1", "50-1", "70-1"}
    assert all(predictors[part] == {"small_tuned"} for part in ("30-1", "50-1", "70-1"))


def write_seconds(jobs, one, seconds):
    path = jobs.root / "benchmarks" / f"{one.place}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")


def test_rates_are_those_of_an_earlier_run(tmp_path):
    jobs, rate = jobs_of(QUICK, tmp_path), 1e11
    traced = [one for one in plan.work(jobs) if one.rule == "trace"]
    for one in traced:
        write_seconds(jobs, one, one.seconds({"trace": rate}))
    assert plan.measured_rates(jobs) == {"trace": pytest.approx(rate)}
    hours = totals(traced, {"trace": rate})["trace"].hours
    assert hours > totals(traced, {})["trace"].hours > len(traced) * START / 3600
    assert rate < TFLOPS * 1e12


@pytest.mark.parametrize("seconds", [0.5, START, START + 1, 2 * START])
def test_a_job_that_only_started_says_nothing_about_rates(tmp_path, seconds):
    """What is left of seconds after the start is chance: a rate of it planned years, or nothing."""
    jobs = jobs_of(QUICK, tmp_path)
    for one in plan.work(jobs):
        path = jobs.root / "benchmarks" / f"{one.place}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")
    assert plan.measured_rates(jobs) == {}


def test_decoding_is_planned_as_slow_as_it_was_measured(tmp_path):
    """Every assumed rate is at most what our dense decoder reached on one H100 (results/reference/gpu-h100)."""
    path = CONFIG.parent / "results" / "reference" / "gpu-h100" / "tables" / "latency.parquet"
    measured = artifacts.read_table(path, LATENCY.schema).to_pandas()
    measured = measured.query("mode == 'dense' and batch == 1 and prompt_tokens == 128 and new_tokens == 128")
    dense = measured.set_index("model")["ms_per_token"]
    for one in plan.work(Jobs(load_study(CONFIG / "gpu.yaml"), tmp_path)):
        model = one.name.split("/")[0]
        if one.rule == "latency_random" and model in dense:
            tokens = one.flops / (2 * PUBLISHED[model].multiplied)
            assert one.seconds({}) > tokens * dense[model] / 1000
            assert 60 * one.resources()["runtime"] >= 3 * tokens * dense[model] / 1000


def test_the_papers_grid_fits_a_cluster(tmp_path):
    study = load_study(CONFIG / "paper.yaml")
    found = plan.work(Jobs(study, tmp_path), strict=True)
    by_rule = totals(found, {})
    assert by_rule["trace"].gpus == by_rule["evaluate"].gpus == 1  # OPT-30B in 16 bits on 80 GB
    assert by_rule["fetch_model"].gpus == by_rule["aggregate"].gpus == 0
    assert by_rule["trace"].disk < 700e9  # what was published
    assert plan.disk(study, found) < 200e9 < by_rule["all"].disk
    assert {"opt-1.3b", "opt-30b", "llama-2-13b"} <= set(study.models)


def test_one_model_at_a_time_needs_the_disk_of_its_largest_model_and_of_what_was_kept_before(tmp_path):
    works = [
        plan.Work("prepare_text", "words"),
        *(plan.Work("fetch_model", name, written=weights) for name, weights in (("large", 50), ("small", 30))),
        *(plan.Work("trace", f"{name}/words/train-0", written=20) for name in ("large", "small")),
        *(plan.Work("train_predictor", f"{name}/words/p", written=4) for name in ("large", "small")),
    ]

    def disk(one_model_at_a_time, *names):
        sources = {"models": {name: next(iter(QUICK["models"].values())) for name in names}}
        key = {"one_model_at_a_time": one_model_at_a_time}
        return plan.disk(parse_study(copy.deepcopy(QUICK) | sources | key, "config"), works)

    assert disk(False, "large", "small") == 50 + 30 + 2 * (20 + 4)
    assert disk(True, "large", "small") == 50 + 20 + 4
    assert disk(True, "small", "large") == 4 + 50 + 20 + 4  # with the small one's predictor


def test_a_small_model_asks_for_no_gpu(tmp_path):
    for one in plan.work(jobs_of(QUICK, tmp_path)):
        asked = one.resources()
        assert asked["gpu"] == 0 and 1000 <= asked["mem_mb"] <= 5000 and asked["runtime"] == 30


def test_memory_has_what_a_trace_collects_and_without_a_gpu_what_a_batch_keeps(tmp_path):
    traces = [one for one in plan.work(jobs_of(QUICK, tmp_path)) if one.rule == "trace"]
    for one in traces:
        bare = replace(one, read=0, activations=0)
        assert one.memory == bare.memory + 2 * one.written + one.activations
        assert replace(one, flops=1e16).memory == bare.memory + 2 * one.written  # on a GPU
    assert traces and all(one.written and one.activations for one in traces)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--budget-hours", "10"], "--budget-hours 10: the study takes about"),
    (["--budget-gb", "100"], "GB, most of it in trace"),
])  # fmt: skip
def test_over_budget_is_one_sentence(capsys, arguments, message):
    assert cli.main(["plan", str(CONFIG / "paper.yaml"), *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and len(said.err.splitlines()) == 1 and "evaluate" in said.out
    assert cli.main(["plan", str(CONFIG / "paper.yaml"), "--budget-hours", "10000"]) == 0


def test_a_model_of_unknown_size_stops_the_plan_and_not_the_study(tmp_path):
    data = copy.deepcopy(QUICK)
    data["models"] = {"mine": {"source": {"hub": {"repo": "someone/mine", "revision": "0" * 40}}}}
    jobs = jobs_of(data, tmp_path)
    assert plan.work(jobs)
    refused("models.mine: its size is not known before it is fetched", plan.work, jobs, strict=True)
    card = {"model_type": "opt", "dimensions": vars(PUBLISHED["opt-30b"].dimensions), "files": {}}
    artifacts.write_record(jobs.root / "models" / "mine" / "card.json", "model_card/1", card, {})
    # the number of GPUs follows from those that are here: a trace needs 120 GB, and latency one GPU
    for rule, counts in (("trace", (2, 2, 1, 3)), ("latency", (1, 1, 1, 1))):
        (one, *_) = [one for one in plan.work(jobs, strict=True) if one.rule == rule]
        here = ((), [80e9] * 2, [150e9], [80e9, 60e9, 80e9, 80e9])
        assert tuple(one.resources(here=gpus)["devices"] for gpus in here) == counts and one.gpus == counts[0]
        assert one.resources(here=[20e9])["devices"] == 1  # the study is to run anyway
