"""The configuration is strict: what does not exist stops before any job, in one sentence with the near miss."""

import copy
import json
from dataclasses import replace

import pytest
from conftest import QUICK as BASE
from conftest import ROOT, refused

from shadowcore.config import load_study, parse_study
from shadowcore.jobs import Jobs, as_json
from shadowcore.measure.methods import METHODS
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.policies import POLICIES
from shadowcore.method.training import SCALINGS, TARGETS
from shadowcore.recipes import RECIPES, PredictorConfig
from shadowcore.sections import TASKS

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
QUICK = copy.deepcopy(BASE)
QUICK["traces"]["criteria"].append("jacov")
QUICK["latency_random"] = {
    "models": ["opt-tiny"], "dtype": "float32", "units": "both", "sparsities_pct": [50], "designs": [],
    "baselines": [], "active": 0.1, "prompt_tokens": 4, "short_tokens": 2, "new_tokens": 4, "repeats": 1, "warmup": 0,
}  # fmt: skip
SMALL = QUICK["predictors"]["small"]
SHADOW, PROXY = {"method": "shadow", "rank_heads": 4}, {"method": "proxy4"}


def changed(path, value):
    data = copy.deepcopy(QUICK)
    *parents, last = path
    here = data
    for key in parents:
        here = here[key]
    here[last] = value
    return data


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_their_conditions_distinct(path):
    jobs = Jobs(load_study(path))
    assert jobs.manifests() and len(jobs.conditions) == len(set(jobs.conditions))


MODEL, ON_POLICY = "models.smollm2-135m", {"units": "neurons", "lowest_pct": 60, "highest_pct": 30}
# a place, what is written there, and the words that the sentence has
MISTAKES = [
    # misspelt keys and names, with the near miss
    ("sede", 1, "config: 'sede' 'seed'"), ("traces.window", 1, "traces: 'window' 'windows'"),
    ("traces.criteria", ["plainct"], "'plainct' 'plainact'"),
    ("conditions.0.methods", ["ramdom"], "conditions[0].methods 'ramdom' 'random'"),
    ("conditions.0.models", ["smollm"], "conditions[0].models 'smollm' 'smollm2-135m'"),
    ("conditions.1.policies", ["per_layr"], "'per_layr' 'per_layer'"),
    ("conditions.1.protocols", ["lokahead"], "'lokahead' 'lookahead'"),
    ("conditions.1.predictors", ["smal"], "'smal' 'small'"),
    ("predictors.small.epoch", 1, "predictors.small: 'epoch' 'epochs'"),
    ("predictors.small", {"recipe": "publishd"}, "recipe: 'publishd' 'published'"),
    ("predictors.small", {"recipe": ["best"]}, "predictors.small.recipe"),
    ("predictors.small.scaling", "minmax", "'minmax' 'min_max'"),
    ("evaluation.tasks", ["piqua"], "'piqua' 'piqa'"), ("evaluation.texts", ["wikipdia"], "'wikipedia'"),
    (f"{MODEL}.source", {"packge": "x"}, "'packge' 'package'"),
    (f"{MODEL}.source", {"folder": {"pth": "x"}}, "'pth' 'path'"), (f"{MODEL}.dtype", "float31", "'float31' 'float32'"),
    # methods and what they cannot be combined with
    ("conditions.1.policies", ["global"], "layerwise global"),
    ("conditions.0.methods", ["griffin"], "conditions[0].protocols: 'token' griffin; ['prompt']"),
    ("conditions.0.methods", ["relu"], "sparsities_pct: 30 relu; [0]"),
    ("conditions.2.methods", ["threshold"], "policies: 'global' threshold; ['per_layer']"),
    ("conditions.3.methods", ["threshold"], "units: 'both' threshold; ['neurons']"),
    ("conditions.3.methods", ["dejavu"], "units: 'both' dejavu; ['neurons']"),
    ("conditions.1.methods", ["static_tuned"], "static_tuned ['small'] `tuned_from`"),
    ("conditions.1.methods", ["proxy3_tuned"], "proxy3_tuned ['small'] `tuned_from`"),
    ("conditions.1.predictors", [], "`predictors`"), ("conditions.1.criteria", ["snip"], "snip token plainact"),
    ("conditions.0.seeds", [0, 1], "conditions[0].seeds: shadow ['random']"),
    ("latency.methods", ["dejavu"], "latency.methods 'dejavu'"),
    ("predictors.small.scaling", "per_example", "latency.predictor: standard min_max"),
    # predictors that begin with others, and how versions before wrote them
    ("predictors", {"first": SMALL, "small": {"retrained_from": "first"}}, "small: `traces.on_policy`"),
    ("predictors", {"first": SMALL, "small": {"tuned_from": "first"}}, "predictors.small: `tuning`"),
    ("predictors.more", {"tuned_from": "smal"}, "predictors.more: 'smal' 'small'"),
    ("predictors.more", {"tuned_from": "small", "retrained_from": "small"}, "predictors.more: either"),
    ("predictors.more", {"tuned_from": "small", "epoch": 1}, "predictors.more: 'epoch' tuned_from"),
    ("predictors.more", {"tuned_fom": "small"}, "more: 'tuned_fom' 'tuned_from'"),
    ("predictors.more", {"retrained_from": "small", "tuning_rate": 0.1}, "more.tuning_rate: tuned_from"),
    ("predictors", {"small": {"tuned_from": "small"}}, "predictors.small: itself small"),
    ("conditions.1.predictors", ["small@tuned@1"], "'small@tuned@1' Known: small"),
    ("traces.on_policy", ON_POLICY, "60 highest_pct 30"),
    # sections that are null, or of another kind; empty and repeated lists
    *((name, None, f"config: {name}: mapping") for name in ("models", "traces", "evaluation")),
    ("conditions", None, "conditions: list"), ("conditions.0", None, "conditions[0]: mapping"),
    (f"{MODEL}.source", None, f"{MODEL}.source: mapping package"),
    (f"{MODEL}.source", {"folder": "/tmp"}, "source.folder: mapping path"),
    (f"{MODEL}.source", {"hub": {"repo": "a/b"}}, "source.hub: 'revision'"),
    (f"{MODEL}.source", {"folder": {"path": 3}}, "source.folder.path: 3"),
    ("evaluation.tasks", "piqa", "evaluation.tasks: list 'piqa'"),
    *((name, [], f"{shown}: 1 or more") for name, shown in (
        ("conditions.0.methods", "conditions[0].methods"), ("conditions.1.units", "conditions[1].units"),
        ("latency.sparsities_pct", "latency.sparsities_pct"), ("evaluation.texts", "evaluation.texts"))),
    ("models", {}, "models: 1 or more"), ("calibration", ["wikipedia"] * 2, "calibration: 'wikipedia' twice"),
    ("conditions.0.sparsities_pct", [0, 50, 0], "sparsities_pct: 0 twice"),
    # sizes and fractions
    *((f"{part}.{key}", value, f"{part}.{key}: 1 or more {value}") for value in (0, -3)
      for part, key in (("traces", "shards"), ("evaluation", "windows"), ("latency", "repeats"))),
    ("conditions.0.sparsities_pct", [100], "conditions[0].sparsities_pct[0]: 100 integer percent"),
    ("conditions.0.sparsities_pct", [0.5], "0.5 integer percent 50"),
    ("conditions.1.seeds", [-1], "conditions[1].seeds[0]: 0 or more -1"),
    ("predictors.small.rank_heads", -1, "predictors.small.rank_heads: 1 or more"),
    ("predictors.small.learning_rate", -0.1, "predictors.small.learning_rate: greater than 0"),
    ("predictors.small.bits", 4, "predictors.small.bits: 16 8 4"),
    ("predictors.small", SMALL | {"examples": "windows", "batch": 65}, "small.batch: 65 64 windows"),
    ("predictors.small.batch", 4097, "predictors.small.batch: 4097 4096 tokens"),
    ("predictors.small.tokens", 4097, "predictors.small.tokens: 4097 4096 tokens"),
    ("predictors.small.tokens", 9, "predictors.small.batch: 64 tokens 9"),
    ("evaluation.limit", {"piqa": -1}, "evaluation.limit.piqa: 1 or more"),
    ("evaluation.limit", {"piqa": 5}, "evaluation.limit.piqa: evaluation.tasks"),
    ("evaluation.fewshot", [-1], "evaluation.fewshot[0]: 0 or more"),
    ("seed", -1, "seed: 0 or more"), ("seed", 2**70, "seed: less than"),
    ("traces.windows", 64.0, "traces.windows: whole number 64.0"), ("traces.windows", True, "traces.windows: whole"),
    ("traces.shards", 65, "traces.shards: 65 windows 64"),
    ("traces.tokens_per_window", 128, "traces.tokens_per_window: 128 window_tokens"),
    ("traces.heldout_tokens_per_window", 128, "traces.heldout_tokens_per_window: 128 window_tokens"),
    ("traces.window_tokens", 70, "traces.window_tokens: 70 jacov 73"),
    ("traces.criteria", ["plainact"], "traces.criteria: 'l2_norm'"),
    ("evaluation.window_tokens", 1, "evaluation.window_tokens: 2 or more"),
    ("latency.prompt_tokens", 1, "latency.prompt_tokens: 2 or more"),
    ("texts.wikipedia.heldout_fraction", 0.7, "texts.wikipedia.heldout_fraction: 0.7 less than 1"),
    ("texts.wikipedia.evaluation_fraction", 0, "evaluation_fraction: greater than 0"),
    ("texts.wikipedia.evaluation_fraction", "a third", "evaluation_fraction: number"),
    ("conditions.1.calibration", ["wikipedia_1"], "conditions[1].calibration: 'wikipedia_1' wikipedia"),
    ("texts.wikipedia.training_draw", "again", "texts.wikipedia.training_draw: whole number"),
    ("texts.wikipedia.true_continuation", None, "texts.wikipedia.true_continuation missing"),
    # what is timed with random weights
    ("latency_random.models", [], "latency_random.models: 1 or more"),
    ("latency_random.models", ["opt-66"], "latency_random.models[0]: 'opt-66' 'opt-66b'"),
    ("latency_random.sparsities_pct", [0.5], "latency_random.sparsities_pct[0]: 0.5 50"),
    ("latency_random.prompt_tokens", 0, "latency_random.prompt_tokens: 2 or more"),
    ("latency_random.new_tokens", -4, "latency_random.new_tokens: 1 or more"),
    ("latency_random.short_tokens", 4, "latency_random.short_tokens: 4 new_tokens (4)"),
    ("latency_random.also", [{"new_tokens": 2}], "latency_random.short_tokens: 2"),
    ("latency_random.also", [{"batch": 65}], "latency_random.also[0].batch: 64 or less 65"),
    ("latency_random.also", [{"batch": 2}, {"batch": 2}], "latency_random.also twice"),
    ("latency_random.active", 1.5, "latency_random.active: less than 1"),
    ("latency_random.designs", [SHADOW | {"rank_heads": 0, "rank_neurons": 4}], "designs[0].rank_heads: 1"),
    ("latency_random.designs", [SHADOW], "designs[0].rank_neurons: given"),
    ("latency_random.designs", [PROXY | {"rank_heads": 4}], "designs[0].rank_heads left out proxy4"),
    ("latency_random.designs", [PROXY | {"bits": 8}], "designs[0].method: proxy4 bits"),
    ("latency_random", QUICK["latency_random"] | {"designs": [PROXY], "units": "heads"}, "designs: proxy4 heads"),
    ("latency_random.desing", [], "latency_random: 'desing' 'designs'"),
    # names
    ("study", "my study", "study: 'my study' not a name"), ("models", {"../up": SMALL}, "models: '../up' not a name"),
    ("predictors", {"a@1": SMALL}, "predictors: 'a@1' not a name"),
    *(("offline", value, "config: offline: true, false folder") for value in ("no", "None", "", 0, None, ["a"])),
    ("run_anyway", "yes", "run_anyway: 'yes' true false"),
    ("offline", "true", "network"),  # as it arrives from the command line
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "words"), MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_place_what_was_found_and_what_is_allowed(path, value, words):
    keys = [int(key) if key.isdigit() else key for key in path.split(".")]
    said = refused(words.split(), parse_study, changed(keys, value), "config")
    assert not any(code in said for code in ("[A-Z", "valid dictionary", "Field required", "Input should"))


def test_one_mask_for_a_prompt_needs_documents_with_prompts():
    study = changed(["conditions", 1, "protocols"], ["prompt"])
    parse_study(study, "config")
    study["evaluation"]["tasks"] = ["wikitext"]
    refused("protocol prompt needs a task whose documents have prompts", parse_study, study, "config")


def test_seeds_repeat_what_is_trained_and_leave_the_other_paths_alone():
    once, again = (Jobs(parse_study(changed(["conditions", 1, "seeds"], seeds), "config")) for seeds in ([], [0, 3]))
    assert once.conditions == Jobs(parse_study(QUICK, "config")).conditions
    more = set(again.conditions) - set(once.conditions)
    repeated = [one for one in once.conditions if one.predictor and one.policy == "per_layer"]
    assert more == {replace(one, seed=3) for one in repeated if one.units == "neurons"}
    assert set(again.conditions) == set(once.conditions) | more
    assert all("+small+seed3+" in one.slug(0) for one in more)
    # the windows that are read stay those of the study
    one = next(iter(more))
    key = next(key for key, conditions in again.evaluations.items() if one in conditions.values())
    spec = json.loads(as_json(again.evaluate(*key)))
    assert spec["conditions"][f"{one.slug(0)}/{one.sparsity_pct}"]["seed"] == 3 and spec["text_seed"] == 0
    trained = again.train_predictor(one.model, one.calibration, one.predictor_id.slug(0))
    assert {"seed": 3, "text_seed": 0, "predictor": "small"}.items() <= trained.items()


def test_a_grid_may_calibrate_on_another_draw_of_the_text():
    once, study = Jobs(parse_study(QUICK, "config")), changed(["conditions"], [*QUICK["conditions"]])
    study["texts"]["again"] = study["texts"]["wikipedia"] | {"training_draw": 1}
    grid = study["conditions"][1] | {
        "methods": ["random", "shadow"],
        "criteria": ["plainact"],
        "calibration": ["again"],
    }
    study["conditions"].append(grid)
    both = Jobs(parse_study(study, "config"))
    more = set(both.conditions) - set(once.conditions)
    shadow = [one for one in once.conditions if one.method == "shadow" and one.criterion == "plainact"]
    assert more == {
        replace(one, calibration="again") for one in shadow if one.units == "neurons" and one.policy == "per_layer"
    }
    assert set(both.conditions) == set(once.conditions) | more
    # it has traces and scores of its own, and must not have what is evaluated
    assert len(both.names["trace"]) == 2 * len(once.names["trace"]) and len(both.names["average"]) == 2
    assert ("again", "wikipedia") in both.names["check_disjoint"]
    specs = [json.loads(both.spec("prepare_text", name)) for name in ("wikipedia", "again")]
    assert specs[1] == specs[0] | {"training_draw": 1} and specs[0]["training_draw"] is None


def test_a_predictor_that_begins_with_another_shares_its_trainings_and_traces():
    data = changed(["traces", "on_policy"], {"units": "neurons", "lowest_pct": 30, "highest_pct": 60})
    data["tuning"] = {"units": "neurons", "lowest_pct": 30, "highest_pct": 60, "epochs": 1, "batch": 1} | {
        "learning_rate": 0.1, "temperature": 1
    }  # fmt: skip
    data["predictors"] |= {"once": {"retrained_from": "small"}, "twice": {"retrained_from": "once"}}
    data["predictors"] |= {"tuned": {"tuned_from": "once"}}
    data["conditions"] = [{"methods": ["shadow"], "criteria": ["plainact"], "predictors": ["twice", "tuned"],
                           "seeds": [3], "sparsities_pct": [50]}]  # fmt: skip
    jobs = Jobs(parse_study(data | {"latency": None}, "config"))
    slugs = {name: f"shadow+plainact+{name}+seed3" for name in ("small", "once", "twice", "tuned")}
    assert {key[2] for key in jobs.trained} == set(slugs.values())
    ids = {one.predictor: one for one in jobs.trained.values()}
    folder = "results/quick/traces/smollm2-135m/wikipedia"
    assert jobs.traces(ids["small"], "heldout") == [f"{folder}/heldout-0.safetensors"]  # the dense model's, of no seed
    assert jobs.traces(ids["once"], "heldout") == [f"{folder}/{slugs['small']}/heldout-0.safetensors"]
    assert jobs.traces(ids["twice"], "heldout") == [f"{folder}/{slugs['once']}/heldout-0.safetensors"]
    assert jobs.traces(ids["tuned"], "heldout") == jobs.traces(ids["once"], "heldout")
    place = "smollm2-135m", "wikipedia"
    traced = jobs.trace_on_policy(*place, slugs["small"], "train", "0")
    assert traced["seed"] == 3 and traced["trace"]["seed"] == 0  # the windows are those of the study
    specs = {name: jobs.train_predictor(*place, slug) for name, slug in slugs.items() if name != "tuned"}
    specs["tuned"] = jobs.tune_predictor(*place, slugs["tuned"])
    made = {name: [spec[key] for key in ("base", "rounds", "tuned", "traced_under")] for name, spec in specs.items()}
    assert made == {
        "small": ["small", 0, False, None], "once": ["small", 1, False, "shadow small"],
        "twice": ["small", 2, False, "shadow once"], "tuned": ["small", 1, True, "shadow small"],
    }  # fmt: skip
    assert len({str(spec["recipe"]) for spec in specs.values()}) == 1
    data["predictors"]["once"] = {"retrained_from": "twice"}
    refused("predictors.once: .*once from twice from once", parse_study, data, "config")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_and_may_be_bent(name):
    known = PredictorConfig(recipe=name).training_recipe()
    bent = PredictorConfig(recipe=name, rank_neurons=64, bits=8).training_recipe()
    assert bent == replace(known, rank={**known.rank, "neurons": 64}, bits=8)
    data = changed(["predictors", "small"], {"recipe": name})
    del data["latency"]  # a decoder does not scale every example
    jobs = Jobs(parse_study(data, "c"))
    assert jobs.train_predictor("smollm2-135m", "wikipedia", "shadow+plainact+small")["recipe"] == known


def test_the_page_names_every_choice():
    page = (ROOT / "config" / "README.md").read_text()
    for name in (*METHODS, *CRITERIA, *POLICIES, *PROTOCOLS, *RECIPES, *SCALINGS, *TARGETS, *TASKS[:2]):
        assert name == "dense" or f"`{name}`" in page, name


def test_a_grid_may_be_for_some_models_only():
    study = changed(["conditions", 0], {"methods": ["relu"], "models": ["other"], "sparsities_pct": [0]})
    study["models"]["other"] = study["models"]["smollm2-135m"]
    conditions = Jobs(parse_study(study, "config")).conditions
    assert {one.model for one in conditions if one.method == "relu"} == {"other"}
    assert {one.model for one in conditions if one.method == "static"} == {"other", "smollm2-135m"}


def test_specifications_change_only_where_the_configuration_does():
    before = Jobs(parse_study(QUICK, "config"))
    after = Jobs(parse_study(changed(["evaluation", "windows"], 4), "config"))
    assert _spec_of_trace(before) == _spec_of_trace(after)
    key = next(iter(before.evaluations))
    assert before.evaluate(*key) != after.evaluate(*key)


def _spec_of_trace(jobs):
    return jobs.trace(*jobs.names["trace"][0])


def test_the_size_of_a_batch_makes_nothing_stale():
    before = Jobs(parse_study(QUICK, "config"))
    study = changed(["traces", "batch"], 1)
    study["evaluation"] |= {"window_batch": 1, "request_tokens": 1}
    after, key = Jobs(parse_study(study, "config")), next(iter(before.evaluations))
    assert _spec_of_trace(before) == _spec_of_trace(after)
    assert before.evaluate(*key) == after.evaluate(*key)


@pytest.mark.parametrize(("value", "meant"), [("true", True), ("True", True), ("false", False), (True, True)])
def test_run_anyway_arrives_as_text_and_changes_no_page(value, meant):
    study = parse_study(changed(["run_anyway"], value), "config")
    assert study.run_anyway is meant and Jobs(study).write_page() == Jobs(parse_study(QUICK, "config")).write_page()
    assert parse_study(changed(["offline"], "false"), "config").offline is False


@pytest.mark.parametrize(("place", "typed", "meant", "words"), [
    ([], "trace", "traces", "did you mean 'traces'"),
    (["traces"], "window_token", "window_tokens", "did you mean 'window_tokens'"),
    (["conditions", 1], "sparsity_pct", "sparsities_pct", "did you mean 'sparsities_pct'"),
    (["latency"], "criterium", "criterion", "did you mean 'criterion'"),
    (["texts", "wikipedia", "true_continuation"], "document", "documents", "did you mean 'documents'"),
    (["models", "smollm2-135m"], "sourse", "source", "did you mean 'source'"),
    (["traces"], "pizza", "shards", "Missing: shards"),
])  # fmt: skip
def test_a_misspelt_required_key_is_paired_with_the_missing_one_or_both_are_named(place, typed, meant, words):
    data = copy.deepcopy(QUICK)
    here = data
    for key in place:
        here = here[key]
    here[typed] = here.pop(meant)
    refused([f"unknown key '{typed}'", words], parse_study, data, "config")


def test_proxies_are_timed_without_a_predictor():
    study = changed(["latency", "methods"], ["proxy4", "shadow", "proxy3_ahead"])
    jobs = Jobs(parse_study(study, "config"))
    spec = jobs.latency("smollm2-135m")
    assert spec["predictors"] == ["shadow"] and spec["proxies"] == ["proxy4", "proxy3_ahead"]
    assert [one.method for one in jobs.latency_predictors("smollm2-135m")] == ["shadow"]
    study["latency"]["units"] = "heads"
    refused("latency.methods: proxy4 .*heads", parse_study, study, "config")


def test_examples_need_a_training_split_or_a_task_without_them():
    study = changed(["evaluation", "tasks"], ["true_continuation", "lambada_openai"])
    parse_study(study, "config")
    study["evaluation"]["fewshot"] = [0, 3]
    parse_study(study, "config")
    study["evaluation"]["fewshot"] = [3]
    refused("evaluation.fewshot: .*lambada_openai", parse_study, study, "config")
