"""Verdicts on the published claims: what was published as it was, and the rule at its borders."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import refused
from scipy.stats import t

from shadowcore.errors import ArtifactError
from shadowcore.measure import statistics
from shadowcore.report import PUBLISHED, claims, pairs, tables
from shadowcore.report.claims import CLAIMS
from shadowcore.report.figures.claims import MOST
from shadowcore.report.figures.claims import claims as drawn_claims
from shadowcore.report.outcomes import grouped
from shadowcore.report.select import STATIC_PLACE, distinct
from shadowcore.schemas import FINAL_TABLES, MEASURED_TABLES, OUTCOMES

PLACE = {"calibration": "c4", "policy": "global", "protocol": "lookahead", "units": "heads", "sparsity_pct": 50}
PLACE |= {"seed": 0, "model": "opt-1.3b"}
SIDES = {"shadow": ("shadow", "plainact", "small"), "own": ("layerwise_own", "l2_norm", "small")}
SIDES |= {"other preset": ("layerwise_own", "l2_norm", "large"), "dejavu": ("layerwise", "l2_norm", "small")}
SIDES |= {"own plainact": ("layerwise_own", "plainact", "small"), "magnitude": ("shadow", "l2_norm", "small")}
SIDES |= {"static": ("static", "plainact", None)}
DIFFICULT = np.linspace(-2, 2, 40)  # documents under all conditions, nats per word
NOISE = 0.02 * (-1.0) ** np.arange(40)  # of all conditions but static
ENDS = ["effect", "low", "high"]


def built(**rows):
    """The measured tables, those named with these rows and the others empty."""
    return {name: tables.frame(table.build(rows.get(name, []))) for name, table in MEASURED_TABLES.items()}


def outcomes(side, value, **keys):
    """Documents of wikitext under one condition, with this perplexity over words."""
    method, criterion, predictor = SIDES[side]
    row = PLACE | {"data": "wikitext", "task": "wikitext", "fewshot": 0, "metric": "word_nll", "weight": 9}
    row |= {"method": method, "criterion": criterion, "predictor": predictor, **keys}
    nats = math.log(value) + DIFFICULT + NOISE * (method != "static")
    rows = pd.DataFrame({"document": [f"{i:02d}" for i in range(40)], "value": 9 * nats}).assign(**row)
    return rows.reindex(columns=list(OUTCOMES.columns))


def study(model="opt-1.3b", winner=20.0, **place):
    """Documents with perplexities of shadow and of static, 40, both of plainact."""
    sides = {"shadow": winner, "static": 40.0}
    return pd.concat([outcomes(side, value, **{"model": model, **place}) for side, value in sides.items()])


def judged(rows):
    documents = grouped([rows])
    found = built(perplexity=tables.perplexity(documents), accuracy=tables.accuracy(documents))
    return claims.judge(found, documents)


def verdicts(rows, claim="context_over_static"):
    return [row for row in judged(rows) if row["claim"] == claim]


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


def test_an_effect_is_that_of_the_values_with_the_interval_of_their_comparison():
    rows = study()
    (row,) = verdicts(rows)
    assert (row["value_winner"], row["value_loser"]) == pytest.approx((20.0, 40.0)) and row["sparsity_pct"] == 50
    assert row["effect"] == pytest.approx(math.log(2)) and row["paired"]
    (compared,) = tables.comparisons(rows)  # shadow against static: a perplexity below is a negative difference
    assert [row["low"], row["high"]] == [pytest.approx(-compared[name]) for name in ("high", "low")]
    assert (row["published_value_winner"], row["published_value_loser"]) == (30.8, 42.8)
    assert verdicts(rows[::-1]) == [row]


@pytest.mark.parametrize("claim, loser", [
    ("context_over_static", {}), ("global_over_per_layer", {"policy": "per_layer"}), ("shadow_over_dejavu", {}),
    ("predicted_plainact", {}),
])  # fmt: skip
def test_how_difficult_a_document_is_changes_no_interval(claim, loser):
    """Of two policies, criteria or designs, too, all of which were measured on the same documents."""
    sides = {"global_over_per_layer": "shadow", "context_over_static": "static", "shadow_over_dejavu": "own"}
    rows = pd.concat([outcomes("shadow", 20.0), outcomes(sides.get(claim, "magnitude"), 30.0, **loser)])
    harder = rows.assign(value=rows["value"] + np.tile(50 * DIFFICULT**2, 2))
    (row,), (other,) = verdicts(rows, claim), verdicts(harder, claim)
    assert row["low"] < row["effect"] < row["high"]
    assert [row[name] for name in ENDS] == pytest.approx([other[name] for name in ENDS])


def voting(**winners):
    """A study with several texts: {text: perplexity of shadow}; LAMBADA's words are one a text and have no vote."""
    place = {"wikitext": {}, "lambada": {"task": "lambada_openai"}, "c4": {"task": "perplexity", "metric": "nll"}}
    return pd.concat([study(winner=winner, data=text, **place[text]) for text, winner in winners.items()])


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
SPEARMAN = {"metric": "spearman", "layer": 1, "stderr": 0.001, "n": 24}


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
    assert set(pairs._rank_correlations(found, [])["predictor"]) == {"small", "tuned"}


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


def against(*opponents):
    """Documents of one predictor of plainact, 20, and of opponents, 40."""
    return pd.concat([outcomes("shadow", 20.0), *(outcomes(side, 40.0) for side in opponents)])


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


def test_a_predictor_of_tokens_is_not_judged_by_masks_of_whole_inputs():
    documents, ranked = grouped([study()]), {"method": "shadow", "criterion": "plainact", "predictor": "small"}
    found = {"perplexity": tables.perplexity(documents), "accuracy": tables.accuracy(documents)}
    for metric, verdict in (("spearman", "not comparable"), ("spearman_of_examples", "reproduced")):
        quality = [SPEARMAN | RANKED | ranked | {"metric": metric, "value": 0.5}]
        rows = claims.judge(built(**found, quality=quality), documents)
        (row,) = [row for row in rows if row["claim"] == "context_over_static"]
        assert row["verdict"] == verdict and row["vote"] == "as claimed"


def test_two_static_masks_are_one_pair_under_every_protocol():
    static = {"claim": "plainact_over_magnitude", "side_winner": "static plainact", "side_loser": "static l2_norm"}
    shadow = {"claim": "predicted_plainact", "side_winner": "shadow plainact", "side_loser": "shadow l2_norm"}
    protocols = ("token", "lookahead")
    rows = pd.DataFrame([sides | {"protocol": protocol} for sides in (static, shadow) for protocol in protocols])
    found = distinct(rows.reindex(columns=[*rows, *STATIC_PLACE[1:6]]))
    assert list(found["protocol"].fillna("")) == ["", *protocols]


def test_a_figure_of_claims_has_the_pairs_closest_to_the_published_ones():
    keys = {"model": "smollm2-135m", "calibration": "wikipedia-train"}
    pairs = [("neurons", "token", 5.0), ("neurons", "lookahead", 20.0), ("heads", "lookahead", 25.0)]
    sides = {"shadow": 20.0, "static": 40.0, "own plainact": 30.0}
    rows = pd.concat([
        outcomes(side, value if side != "shadow" else winner, **keys, units=units, protocol=protocol, sparsity_pct=pct)
        for side, value in sides.items() for pct in (30, 50) for units, protocol, winner in pairs
    ])  # fmt: skip
    found = tables.frame(FINAL_TABLES["claims"].build(judged(rows)))
    (axes,) = drawn_claims({"claims": found}, "smollm2-135m").axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sum("lookahead" in name for name in names) == 2 * MOST and len(names) == 2 * MOST + 2
    # nothing was published about the design alone
    published = sum(line.get_marker() == "|" for line in axes.lines)
    assert published == MOST


@pytest.mark.parametrize("metric, verdict", [("spearman", "not comparable"), ("spearman_of_examples", "reproduced")])
def test_a_correlation_is_compared_with_the_same_kind(metric, verdict):
    values = {"shadow": 0.6, "layerwise_own": 0.5}
    keys = [RANKED | {"method": method, "predictor": "small"} for method in values]
    quality = [one | SPEARMAN | {"metric": metric, "value": values[one["method"]]} for one in keys]
    found = built(quality=quality, predictors=[one | {"rounds": 0} for one in keys])
    (row,) = claims.judge(found, [])
    assert row["verdict"] == verdict and row["effect"] == pytest.approx(0.12)  # with the margin
    assert row["high"] - row["effect"] == pytest.approx(t.ppf(0.975, 23) * 0.002) and not row["paired"]


def test_seeds_make_one_pair_with_an_interval_that_covers_all_of_theirs():
    more = study(winner=24.0)
    (row,) = verdicts(pd.concat([study(), more[more["method"] == "shadow"].assign(seed=1)]))
    ones = verdicts(study()) + verdicts(more)
    assert row["value_winner"] == pytest.approx(22.0)
    low, high = min(one["low"] for one in ones), max(one["high"] for one in ones)
    assert [row[name] for name in ENDS] == pytest.approx([np.mean([one["effect"] for one in ones]), low, high])


RIGHT = {"piqa": (28, 24), "copa": (32, 24)}  # right answers of shadow and of layerwise_own


def answered(right):
    """Answers of shadow and layerwise_own to 40 questions of each task: {task: right ones}, None where not asked."""
    keys = {"model": "m", "metric": "acc", "weight": 1}
    return pd.concat([
        outcomes(side, 1.0, data=task, task=task, **keys).assign(value=(np.arange(40) < count).astype(float))
        for task, counts in right.items() for side, count in zip(("shadow", "own"), counts, strict=True)
        if count is not None
    ])  # fmt: skip


def test_accuracy_is_a_mean_over_tasks_on_the_same_scale():
    (row,) = verdicts(answered(RIGHT), "more_accurate")
    assert row["value_winner"] == pytest.approx(0.75) and row["effect"] == pytest.approx(math.log(0.75 / 0.60))
    won = [np.arange(40) < one - other for one, other in RIGHT.values()]  # no question was lost
    error = math.hypot(*(statistics.accuracy_difference(one, 0 * one)[0].stderr for one in won)) / 2
    low, high = (math.log((0.75 + sign * statistics.Z * error) / 0.60) for sign in (-1, 1))
    assert (row["low"], row["high"]) == pytest.approx((low, high)) and row["paired"]
    assert row["verdict"] == "transfers" and row["published_effect"] == pytest.approx(math.log(1.049))
    # over benchmarks that both sides have
    both = {"piqa": (28, 24), "copa": (32, None), "true_continuation": (36, 4)}
    (row,) = verdicts(answered(both), "more_accurate")
    assert (row["value_winner"], row["value_loser"]) == (0.70, 0.60)


def test_a_model_without_rows_for_a_claim_is_said_to_have_none():
    rows = judged(study())
    assert {row["claim"] for row in rows} == set(CLAIMS)
    assert {row["verdict"] for row in rows if row["claim"] != "context_over_static"} == {"not attempted"}
    assert claims.judge(built(), []) == []
    # another model changes nothing
    build = FINAL_TABLES["claims"].build
    both = judged(pd.concat([study(), study("other")]))
    assert build(row for row in both if row["model"] == "opt-1.3b") == build(rows)


WIDTHS = (("shadow", 256, 10.0), ("layerwise", 256, 10.5), ("layerwise", 1000, 13.0))  # 1000: DejaVu's own, with 512
AS_PUBLISHED = (("shadow", 2048, 14.0), ("layerwise", 2048, 16.8))


CLOCKS = (1.0, 1.1, 1.2)  # the same for all modes of a repeat


def timed(modes=(*WIDTHS, *AS_PUBLISHED), model="opt-30b", ceilings=None, slower=(1.0, 1.0, 1.0), **place):
    """Modes (method, rank, milliseconds) with random weights and nothing else.

    ceilings: other runs, by method; slower: how much slower layerwise is in each repeat.
    """
    rows, repeats = [], []
    for mode, rank, ms in modes:
        row = {"model": model, "device": "GPU", "mode": mode, "units": "both", "batch": 1}
        row |= {"sparsity_pct": 50, "prompt_tokens": 128, "new_tokens": 128, "predictor_rank": rank}
        row |= {"predictor_rank_heads": 512 if rank == 1000 else rank, "predictor_bits": 16} | place
        times = [
            ms * clock * (factor if mode == "layerwise" else 1) for clock, factor in zip(CLOCKS, slower, strict=True)
        ]
        repeats += [row | {"repeat": number, "ms_per_token": time} for number, time in enumerate(times)]
        ceiling = (ceilings or {}).get(mode, 4000.0)
        rows.append(row | {"dtype": "bfloat16", "ceiling_gb_s": ceiling, "ms_per_token": sorted(times)[1]})
    return built(latency=rows, latency_repeats=repeats)


def test_speed_is_compared_at_the_published_ranks():
    (row,) = claims.judge(timed(), [])  # what was only timed has no claims about quality
    assert (row["claim"], row["predictor_rank"]) == ("faster_than_layerwise", 2048)
    assert (row["value_winner"], row["value_loser"]) == pytest.approx((15.4, 18.48))
    assert row["effect"] == pytest.approx(math.log(1.2))
    assert row["published_effect"] == pytest.approx(math.log(2099 / 1808))
    assert row["verdict"] == "reproduced"
    assert claims.judge(timed(model="mine"), [])[0]["verdict"] == "transfers"
    assert FINAL_TABLES["claims"].build([row]).num_rows == 1


def test_times_are_paired_by_repeat():
    """A clock that slows both designs alike does not widen the interval of their ratio."""
    (row,) = claims.judge(timed(), [])
    assert row["paired"] and row["high"] - row["low"] == pytest.approx(0, abs=1e-9)
    slower = (1.0, 1.01, 1.03)
    (row,) = claims.judge(timed(slower=slower), [])
    assert row["effect"] == pytest.approx(math.log(row["value_loser"] / row["value_winner"]))
    reach = t.ppf(0.975, 2) * np.log(slower).std(ddof=1) / 3**0.5
    assert [row["effect"] - row["low"], row["high"] - row["effect"]] == pytest.approx([reach, reach])


@pytest.mark.parametrize("found", [
    timed(WIDTHS),
    timed((*WIDTHS, AS_PUBLISHED[0])),  # as the reference tables of the H100 are
    timed((*WIDTHS, AS_PUBLISHED[1])), timed(AS_PUBLISHED, predictor_rank_heads=512),
    timed(AS_PUBLISHED, ceilings={"shadow": 3999.0}),  # in two runs
])  # fmt: skip
def test_other_ranks_and_other_runs_say_nothing_about_the_published_speed(found):
    assert claims.judge(found, []) == []


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
