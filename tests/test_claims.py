"""Verdicts on the published claims: what was published as it was, and the rule at its borders."""

import math

import pandas as pd
import pytest
from conftest import refused

from shadowcore.errors import ArtifactError
from shadowcore.report import PUBLISHED, claims, pairs, tables
from shadowcore.report.claims import CLAIMS
from shadowcore.schemas import FINAL_TABLES, MEASURED_TABLES

PLACE = {"calibration": "c4", "policy": "global", "protocol": "lookahead", "units": "heads", "sparsity_pct": 50}
PLACE |= {"seed": 0}
ERROR, PAIRED = 0.01, 0.004


def built(**rows):
    """The measured tables, those named with these rows and the others empty."""
    return {name: tables.frame(table.build(rows.get(name, []))) for name, table in MEASURED_TABLES.items()}


def study(model="opt-1.3b", winner=20.0, **place):
    """Tables with perplexities of shadow and of static, 40, both of plainact, and their paired comparison."""
    values, compared = [], []
    for method, value in (("shadow", winner), ("static", 40.0)):
        keys = PLACE | {"model": model, "data": "wikitext", "method": method, "criterion": "plainact", **place}
        keys |= {"predictor": "small" if method == "shadow" else None, "task": "wikitext", "fewshot": 0, "n": 62}
        values.append(keys | {"metric": "word_perplexity", "value": value})
        difference = {"difference": math.log(value / 10), "stderr": ERROR, "reference": "dense"}
        compared.append(keys | {"metric": "log_word_perplexity"} | difference)
    static = {"reference": "static", "reference_criterion": "plainact", "difference": math.log(winner / 40)}
    return built(perplexity=values, comparisons=[*compared, compared[0] | static | {"stderr": PAIRED}])


def verdicts(found, claim="context_over_static"):
    return [row for row in claims.judge(found) if row["claim"] == claim]


def test_every_claim_holds_in_what_was_published():
    for name, claim in CLAIMS.items():
        theirs = claims.published(PUBLISHED, claim)
        assert len(theirs) and (theirs["effect"] >= 0).all() and (theirs["effect"] > 0.005).any(), name


def test_published_values_are_those_cited():
    rows = pd.read_csv(PUBLISHED)
    assert not rows.drop(columns=["value", "source"]).duplicated().any()
    assert (rows["value"] > 0).all() and rows["source"].str.contains("arXiv 2406.16635").all()
    theirs = claims.published(PUBLISHED, CLAIMS["shadow_over_dejavu"])
    half = theirs[(theirs["model"] == "opt-30b") & (theirs["sparsity_pct"] == 50)].set_index("policy")["effect"]
    assert half.to_dict() == pytest.approx({"per_layer": math.log(95.5 / 13.0), "global": math.log(35.1 / 12.1)})


def test_an_effect_is_that_of_the_values_with_the_error_of_their_paired_difference():
    found = study()
    (row,) = verdicts(found)
    assert (row["value_winner"], row["value_loser"], row["sparsity_pct"]) == (20.0, 40.0, 50)
    assert row["effect"] == pytest.approx(math.log(2)) and row["paired"]
    assert row["high"] - row["effect"] == pytest.approx(1.96 * PAIRED)
    assert (row["published_value_winner"], row["published_value_loser"]) == (30.8, 42.8)
    # without a paired difference the interval holds whatever both sides share
    compared = found["comparisons"]
    (row,) = verdicts(found | {"comparisons": compared.query("reference == 'dense'")})
    assert not row["paired"] and row["high"] - row["effect"] == pytest.approx(1.96 * 2 * ERROR)
    # the order of a comparison does not matter
    turned = compared.assign(
        method=compared["method"].replace({"shadow": "static"}), predictor=None, reference="shadow",
        reference_criterion="plainact", reference_predictor="small",
    )  # fmt: skip
    assert verdicts(found | {"comparisons": pd.concat([compared[:2], turned[2:]])}) == verdicts(study())


TOKENS = {"word_perplexity": "token_perplexity", "log_word_perplexity": "log_perplexity"}


def voting(**winners):
    """A study with several texts: {text: perplexity of shadow}; LAMBADA's words are one a text and have no vote."""
    parts = []
    for text, winner in winners.items():
        part = study(winner=winner)
        if text != "wikitext":
            task = {"data": text, "task": "lambada_openai" if text == "lambada" else "perplexity"}
            for name in ("perplexity", "comparisons"):
                metric = part[name]["metric"].replace({} if text == "lambada" else TOKENS)
                part[name] = part[name].assign(metric=metric, fewshot=None, **task)
        parts.append(part)
    return {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}


@pytest.mark.parametrize(("winners", "verdict", "votes"), [
    ({"wikitext": 20.0, "c4": 20.0}, "reproduced", {"as claimed"}),
    ({"wikitext": 20.0, "c4": 38.0}, "direction only", {"as claimed"}),
    ({"wikitext": 20.0, "c4": 60.0}, "undecided", {"as claimed", "opposite"}),
    ({"wikitext": 20.0, "c4": 40.0}, "undecided", {"as claimed", "undecided"}),
    ({"wikitext": 60.0, "c4": 60.0}, "contradicted", {"opposite"}),
    ({"wikitext": 20.0, "lambada": 60.0}, "reproduced", {"as claimed"}),
])  # fmt: skip
def test_every_text_votes(winners, verdict, votes):
    rows = verdicts(voting(**winners))
    assert {row["data"] for row in rows} == set(winners) - {"lambada"}
    assert {row["verdict"] for row in rows} == {verdict} and {row["vote"] for row in rows} == votes
    if len(votes) > 1:
        assert all("c4" in row["reason"] and "wikitext as claimed" in row["reason"] for row in rows)


RANKED = {"model": "opt-1.3b", "calibration": "c4", "criterion": "plainact", "seed": 0, "kind": "heads"}
SPEARMAN = {"metric": "spearman", "layer": 1, "stderr": 0.001}


def ranked(values, metric="spearman"):
    """Tables of rank correlations: {(method, predictor, rounds, tuned): value}."""
    keys, made = [], []
    for method, predictor, rounds, tuned in values:
        keys.append(RANKED | {"method": method, "predictor": predictor})
        made.append(keys[-1] | {"rounds": rounds, "tuned": tuned})
    rows = zip(keys, values.values(), strict=True)
    return built(quality=[one | SPEARMAN | {"metric": metric, "value": value} for one, value in rows], predictors=made)


def test_ranking_is_judged_by_the_dense_models_scores():
    """Tuned or not; a later round's predictors are held against another model's scores."""
    made = {"small": (0, False), "tuned": (0, True), "again": (1, False), "again_tuned": (1, True)}
    found = ranked({("shadow", name, *training): 0.5 for name, training in made.items()})
    assert set(pairs._rank_correlations(found)[0]["predictor"]) == {"small", "tuned"}


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "reproduced"), ({"model": "opt-6.7b"}, "transfers"), ({"units": "neurons"}, "transfers"),
    ({"protocol": "token"}, "transfers"), ({"protocol": "token", "winner": 60.0}, "does not transfer"),
    ({"policy": "per_layer"}, "transfers"),  # static was published with global
    # published: log(42.8 / 30.8) = 0.33
    ({"winner": 40 / math.exp(0.15)}, "direction only"), ({"winner": 40 / math.exp(0.18)}, "reproduced"),
    ({"winner": 39.9}, "undecided"),  # within the error
    ({"winner": 60.0}, "contradicted"),
    ({"sparsity_pct": 55}, "not attempted"),  # nothing was published there
    ({"criterion": "snip"}, "not attempted"),
])  # fmt: skip
def test_the_rule_of_a_verdict(change, verdict):
    (row,) = verdicts(study(**change))
    assert row["verdict"] == verdict
    assert ("effect" in row) == (verdict != "not attempted")
    if "transfer" in verdict:
        (key,) = set(change) - {"winner"}
        assert row["reason"].endswith(f": {key}")


SIDES = {"shadow": ("shadow", "plainact", "small"), "own": ("layerwise_own", "l2_norm", "small")}
SIDES |= {"other preset": ("layerwise_own", "l2_norm", "large"), "dejavu": ("layerwise", "l2_norm", "small")}
SIDES |= {"own plainact": ("layerwise_own", "plainact", "small"), "magnitude": ("shadow", "l2_norm", "small")}


def against(*opponents):
    """Perplexities of one predictor of plainact, 20, and of opponents, 40."""
    found = study()
    for name, column in (("perplexity", "value"), ("comparisons", "difference")):
        row, rows = found[name].iloc[0], []
        for side in ("shadow", *opponents):
            keys = dict(zip(("method", "criterion", "predictor"), SIDES[side], strict=True))
            rows.append({**row, **keys, column: row[column] * (1 + (side != "shadow"))})
        found[name] = pd.DataFrame(rows)
    return found


def test_a_pair_differs_in_what_the_claim_names_alone():
    compared = {
        name: verdicts(against("own", "other preset", "own plainact", "magnitude"), name)
        for name in ("shadow_over_dejavu", "one_over_many", "predicted_plainact")
    }
    sides = {name: [(row["side_winner"], row["side_loser"]) for row in rows] for name, rows in compared.items()}
    assert sides["shadow_over_dejavu"] == [("shadow plainact", "layerwise_own l2_norm")]  # not the other preset
    assert sides["one_over_many"] == 2 * [("shadow", "layerwise_own")]
    assert {row["criterion"] for row in compared["one_over_many"]} == {"l2_norm", "plainact"}
    assert sides["predicted_plainact"] == [("shadow plainact", "shadow l2_norm")]
    assert {row["predictor"] for rows in compared.values() for row in rows} == {"small"}
    # nothing was published about design or criterion alone
    assert {row["verdict"] for row in compared["one_over_many"]} <= {"transfers", "does not transfer", "undecided"}


def test_another_opponent_than_the_published_one_is_not_comparable():
    (row,) = verdicts(against("dejavu"), "shadow_over_dejavu")
    assert row["verdict"] == "not comparable" and "layerwise_own" in row["reason"] and row["vote"] == "as claimed"


@pytest.mark.parametrize("metric, verdict", [("spearman", "not comparable"), ("spearman_of_examples", "reproduced")])
def test_a_correlation_is_compared_with_the_same_kind(metric, verdict):
    values = {"shadow": 0.6, "layerwise_own": 0.5}
    keys = [RANKED | {"method": method, "predictor": "small"} for method in values]
    quality = [one | SPEARMAN | {"metric": metric, "value": values[one["method"]]} for one in keys]
    found = built(quality=quality, predictors=[one | {"rounds": 0} for one in keys])
    found["perplexity"] = study()["perplexity"]
    (row,) = verdicts(found, "one_ranks_as_well")
    assert row["verdict"] == verdict and row["effect"] == pytest.approx(0.12)  # with the margin


def test_seeds_make_one_pair_with_the_spread_between_them_in_its_error():
    found, more = study(), study(winner=24.0)
    for name in ("perplexity", "comparisons"):
        rows = more[name][more[name]["method"] == "shadow"].assign(seed=1)
        found[name] = pd.concat([found[name], rows], ignore_index=True)
    (row,) = verdicts(found)
    effects = [math.log(2), math.log(40 / 24)]
    assert row["value_winner"] == pytest.approx(22.0) and row["effect"] == pytest.approx(sum(effects) / 2)
    seeds = (effects[0] - effects[1]) / 2  # standard error of a mean of two
    assert row["high"] - row["effect"] == pytest.approx(1.96 * math.hypot(PAIRED, seeds))


def answered(right):
    """Accuracies of shadow and layerwise: {task: (shadow's, layerwise's)}, None where one was not asked."""
    rows = []
    for task, values in right.items():
        for side, value in zip(("shadow", "own"), values, strict=True):
            keys = dict(zip(("method", "criterion", "predictor"), SIDES[side], strict=True))
            keys |= PLACE | {"model": "m", "data": task, "task": task, "fewshot": 0, "metric": "acc", "n": 100}
            rows += [(keys, value)] if value is not None else []
    compared = [keys | {"difference": value - 0.9, "stderr": 0.01, "reference": "dense"} for keys, value in rows]
    return built(accuracy=[keys | {"value": value} for keys, value in rows], comparisons=compared)


def test_accuracy_is_a_mean_over_tasks_on_the_same_scale():
    (row,) = verdicts(answered({"piqa": (0.70, 0.60), "copa": (0.80, 0.60)}), "more_accurate")
    assert row["value_winner"] == pytest.approx(0.75) and row["effect"] == pytest.approx(math.log(0.75 / 0.60))
    error = math.hypot(0.02, 0.02) / 2  # a mean of two tasks, of unpaired differences
    assert row["high"] - row["effect"] == pytest.approx(1.96 * error / 0.60)
    assert row["verdict"] == "transfers" and row["published_effect"] == pytest.approx(math.log(1.049))
    # over benchmarks that both sides have
    both = {"piqa": (0.70, 0.60), "copa": (0.80, None), "true_continuation": (0.9, 0.1)}
    (row,) = verdicts(answered(both), "more_accurate")
    assert (row["value_winner"], row["value_loser"]) == (0.70, 0.60)


def test_a_model_without_rows_for_a_claim_is_said_to_have_none():
    rows = claims.judge(study())
    assert {row["claim"] for row in rows} == set(CLAIMS)
    assert {row["verdict"] for row in rows if row["claim"] != "context_over_static"} == {"not attempted"}
    assert claims.judge(built()) == []
    # another model changes nothing
    both = {name: pd.concat([table, study("other")[name]], ignore_index=True) for name, table in study().items()}
    build = FINAL_TABLES["claims"].build
    assert build(row for row in claims.judge(both) if row["model"] == "opt-1.3b") == build(rows)


WIDTHS = (("shadow", 256, 10.0), ("layerwise", 256, 10.5), ("layerwise", 1000, 13.0))  # 1000: DejaVu's own, with 512
AS_PUBLISHED = (("shadow", 2048, 14.0), ("layerwise", 2048, 16.8))


def timed(modes=(*WIDTHS, *AS_PUBLISHED), model="opt-30b", ceilings=None, **place):
    """Modes (method, rank, milliseconds) with random weights and nothing else; ceilings: other runs, by method."""
    rows = []
    for mode, rank, ms in modes:
        row = {"model": model, "device": "GPU", "dtype": "bfloat16", "mode": mode, "units": "both", "batch": 1}
        row |= {"sparsity_pct": 50, "prompt_tokens": 128, "new_tokens": 128, "predictor_rank": rank}
        row |= {"predictor_rank_heads": 512 if rank == 1000 else rank, "predictor_bits": 16}
        row |= {"ceiling_gb_s": (ceilings or {}).get(mode, 4000.0)} | place
        rows.append(row | {"ms_per_token": ms, "ms_p10": ms * 0.99, "ms_p90": ms * 1.01})
    return built(latency=rows)


def test_speed_is_compared_at_the_published_ranks():
    (row,) = claims.judge(timed())  # what was only timed has no claims about quality
    assert (row["claim"], row["predictor_rank"]) == ("faster_than_layerwise", 2048)
    assert (row["value_winner"], row["value_loser"]) == (14.0, 16.8)
    assert row["effect"] == pytest.approx(math.log(1.2))
    assert row["published_effect"] == pytest.approx(math.log(2099 / 1808))
    assert row["verdict"] == "reproduced"
    assert claims.judge(timed(model="mine"))[0]["verdict"] == "transfers"
    assert FINAL_TABLES["claims"].build([row]).num_rows == 1


def test_times_are_paired_by_repeat():
    """A clock that slows both designs alike widens the times and not their ratio."""
    found = timed()
    times = found["latency"]["ms_per_token"]
    repeats = [found["latency"].assign(repeat=i, ms_per_token=times * clock) for i, clock in enumerate((1, 1.1, 1.2))]
    repeats = pd.concat(repeats).reindex(columns=list(MEASURED_TABLES["latency_repeats"].columns))
    found["latency_repeats"] = repeats.reset_index(drop=True)
    (row,) = claims.judge(found)
    assert row["paired"] and row["high"] - row["low"] == pytest.approx(0, abs=1e-9)
    (unpaired,) = claims.judge(timed())
    assert not unpaired["paired"] and unpaired["low"] < row["low"]


@pytest.mark.parametrize("found", [
    timed(WIDTHS),
    timed((*WIDTHS, AS_PUBLISHED[0])),  # as the reference tables of the H100 are
    timed((*WIDTHS, AS_PUBLISHED[1])), timed(AS_PUBLISHED, predictor_rank_heads=512),
    timed(AS_PUBLISHED, ceilings={"shadow": 3999.0}),  # in two runs
])  # fmt: skip
def test_other_ranks_and_other_runs_say_nothing_about_the_published_speed(found):
    assert claims.judge(found) == []


@pytest.mark.parametrize("content, says", [
    (b"", "No columns to parse"), (b"quantity,value\nlatency,1\n", "no column criterion, method, metric"),
    (PUBLISHED.read_bytes().replace(b",17.1,", b",seventeen,", 1), "to float: 'seventeen'"),
    (PUBLISHED.read_bytes() + b"1" + 20 * b",1" + b"\n", "Expected 16 fields"), (b"\xff\xfe\x00", "can't decode"),
])  # fmt: skip
def test_a_table_of_published_values_that_is_none(content, says, tmp_path):
    path = tmp_path / "mine.csv"
    refused("mine.csv: no such file", claims.published, path, CLAIMS["context_over_static"])
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"mine.csv: .*{says}.*published.csv") as raised:
        claims.published(path, CLAIMS["context_over_static"])
    assert "\n" not in str(raised.value)
