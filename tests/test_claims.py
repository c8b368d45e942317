"""Verdicts on the published claims: what was published as it was, and the rule at its borders."""

import math

import pandas as pd
import pytest

from shadowcore.errors import ArtifactError
from shadowcore.report import claims, tables
from shadowcore.report.claims import CLAIMS, PUBLISHED
from shadowcore.schemas import FINAL_TABLES, MEASURED_TABLES

PLACE = {"calibration": "c4", "policy": "global", "protocol": "token", "units": "heads", "sparsity_pct": 50, "seed": 0}
ERROR = 0.01


def study(model="opt-1.3b", **place):
    """Tables with a perplexity of shadow (plainact) twice as low as static's, both above dense."""
    found = {name: [] for name in MEASURED_TABLES}
    for method, value in (("shadow", 20.0), ("static", 40.0)):
        keys = PLACE | {"model": model, "data": "wikitext", "method": method, "criterion": "plainact", **place}
        keys |= {"predictor": "small" if method == "shadow" else None, "task": "wikitext", "fewshot": 0, "n": 62}
        found["perplexity"].append(keys | {"metric": "word_perplexity", "value": value})
        difference = {"difference": math.log(value / 10), "stderr": ERROR, "reference": "dense"}
        found["comparisons"].append(keys | {"metric": "log_word_perplexity"} | difference)
    return {name: tables.frame(MEASURED_TABLES[name].build(rows)) for name, rows in found.items()}


def verdicts(found, claim="context_over_static"):
    return [row for row in claims.judge(found) if row["claim"] == claim]


def test_every_claim_holds_in_what_was_published():
    for name, claim in CLAIMS.items():
        theirs = claims.published(PUBLISHED, claim)
        assert len(theirs) and (theirs["effect"] >= 0).all() and (theirs["effect"] > 0.005).any(), name
        assert theirs["source"].notna().all()


def test_published_values_are_those_cited():
    rows = pd.read_csv(PUBLISHED)
    assert not rows.drop(columns=["value", "source"]).duplicated().any()
    assert (rows["value"] > 0).all() and rows["source"].str.contains("arXiv 2406.16635").all()
    theirs = claims.published(PUBLISHED, CLAIMS["shadow_over_magnitude"])
    assert theirs["effect"].max() == pytest.approx(math.log(35.1 / 12.1))  # OPT-30B at 50 %
    theirs = claims.published(PUBLISHED, CLAIMS["faster_than_layerwise"])
    assert set(theirs["model"]) == {"opt-1.3b", "opt-6.7b", "opt-13b", "opt-30b", "opt-66b"}


def test_an_effect_is_that_of_the_values_with_both_errors():
    (row,) = verdicts(study())
    assert (row["value_winner"], row["value_loser"], row["sparsity_pct"]) == (20.0, 40.0, 50)
    assert row["effect"] == pytest.approx(math.log(2))
    assert row["high"] - row["effect"] == pytest.approx(1.96 * math.hypot(ERROR, ERROR))
    assert (row["published_value_winner"], row["published_value_loser"]) == (30.8, 42.8)


def test_only_wikitext_has_the_published_words():
    """Another benchmark's words (LAMBADA's are one a text) neither are judged nor hide the windows of text."""
    found = study()
    words = {name: found[name][found[name]["task"] == "wikitext"] for name in ("perplexity", "comparisons")}
    windows = {
        name: rows.assign(task="perplexity", data="wikipedia", metric=rows["metric"].str.replace("word", "token"))
        for name, rows in words.items()
    }
    windows["comparisons"] = windows["comparisons"].assign(metric="log_perplexity")
    lambada = {name: rows.assign(task="lambada_openai", data="lambada_openai") for name, rows in words.items()}
    alone = found | windows
    both = found | {name: pd.concat([lambada[name], windows[name]]) for name in words}
    assert verdicts(alone) == verdicts(both) != []


def test_ranking_is_judged_by_the_dense_models_scores():
    """Tuned or not; a later round's predictors are held against another model's scores."""
    keys = {"model": "opt-1.3b", "calibration": "c4", "method": "shadow", "criterion": "plainact", "seed": 0}
    keys |= {"kind": "neurons", "metric": "spearman", "layer": 1}
    made = {"small": (0, False), "tuned": (0, True), "again": (1, False), "again_tuned": (1, True)}
    rows = [keys | {"predictor": name, "value": 0.5, "stderr": ERROR, "n": 9} for name in made]
    predictors = [
        {name: row[name] for name in ("model", "calibration", "method", "criterion", "predictor", "seed", "kind")}
        | dict(zip(("rounds", "tuned"), made[row["predictor"]], strict=True))
        for row in rows
    ]
    found = {
        name: tables.frame(MEASURED_TABLES[name].build(part))
        for name, part in (("quality", rows), ("predictors", predictors))
    }
    assert set(claims._rank_correlations(found)["predictor"]) == {"small", "tuned"}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "reproduced"),
        ({"model": "opt-6.7b"}, "direction only"),
        ({"units": "neurons"}, "direction only"),
        # published: log(42.8 / 30.8) = 0.33
        ({"winner": 40 / math.exp(0.15)}, "direction only"),
        ({"winner": 40 / math.exp(0.18)}, "reproduced"),
        ({"winner": 39.5}, "not reproduced"),  # within the error
        ({"winner": 60.0}, "not reproduced"),
        ({"sparsity_pct": 55}, "not attempted"),  # nothing was published there
        ({"criterion": "snip"}, "not attempted"),
    ],
)
def test_the_rule_of_a_verdict(change, verdict):
    place = dict(change)
    winner = place.pop("winner", 20.0)
    found = study(**place)
    perplexity = found["perplexity"]
    perplexity.loc[perplexity["method"] == "shadow", "value"] = winner
    (row,) = verdicts(found)
    assert row["verdict"] == verdict
    assert ("effect" in row) == (verdict != "not attempted")


def test_the_best_of_several_presets_stands_for_a_method():
    found = study()
    for name, column, worse in (("perplexity", "value", 3.0), ("comparisons", "difference", 1.0)):
        more = found[name][found[name]["method"] == "shadow"].assign(predictor="other")
        found[name] = pd.concat([more.assign(**{column: more[column] * worse}), found[name]], ignore_index=True)
    (row,) = verdicts(found)
    assert row["side_winner"] == "shadow plainact small"


def test_seeds_make_one_side_with_the_spread_between_them_in_its_error():
    found = study()
    for name, column, more in (("perplexity", "value", 24.0), ("comparisons", "difference", math.log(2.4))):
        rows = found[name][found[name]["method"] == "shadow"].assign(seed=1, **{column: more})
        found[name] = pd.concat([found[name], rows], ignore_index=True)
    (row,) = verdicts(found)
    assert row["value_winner"] == pytest.approx(22.0) and row["effect"] == pytest.approx(math.log(40 / 22))
    seeds = math.sqrt(8) / math.sqrt(2) / 22  # deviation of 20 and 24, of their mean, relative to it
    assert row["high"] - row["effect"] == pytest.approx(1.96 * math.hypot(ERROR, ERROR, seeds))


def answered(right):
    """Accuracies of shadow and layerwise: {task: (shadow's, layerwise's)}, None where one was not asked."""
    found = {name: [] for name in MEASURED_TABLES}
    for task, values in right.items():
        for (method, criterion), value in zip((("shadow", "plainact"), ("layerwise", "l2_norm")), values, strict=True):
            if value is None:
                continue
            keys = PLACE | {"model": "m", "data": task, "method": method, "criterion": criterion, "predictor": "small"}
            keys |= {"task": task, "fewshot": 0, "metric": "acc", "n": 100}
            found["accuracy"].append(keys | {"value": value})
            found["comparisons"].append(keys | {"difference": value - 0.9, "stderr": 0.01, "reference": "dense"})
    return {name: tables.frame(MEASURED_TABLES[name].build(rows)) for name, rows in found.items()}


def test_accuracy_is_a_mean_over_tasks_on_the_same_scale():
    (row,) = verdicts(answered({"piqa": (0.70, 0.60), "copa": (0.80, 0.60)}), "more_accurate")
    assert row["value_winner"] == pytest.approx(0.75) and row["effect"] == pytest.approx(math.log(0.75 / 0.60))
    error = math.hypot(0.01, 0.01) / 2
    assert row["high"] - row["effect"] == pytest.approx(1.96 * math.hypot(error / 0.75, error / 0.60))
    assert row["verdict"] == "direction only" and row["published_effect"] == pytest.approx(math.log(1.15))


def test_means_over_other_tasks_are_not_compared():
    (row,) = verdicts(answered({"piqa": (0.70, 0.60), "copa": (0.80, None)}), "more_accurate")
    assert row["verdict"] == "not attempted"


def test_a_model_without_rows_for_a_claim_is_said_to_have_none():
    rows = claims.judge(study())
    assert {row["claim"] for row in rows} == set(CLAIMS)
    assert {row["verdict"] for row in rows if row["claim"] != "context_over_static"} == {"not attempted"}
    nothing = {name: tables.frame(table.build([])) for name, table in FINAL_TABLES.items()}
    assert claims.judge(nothing) == []


def test_another_model_changes_nothing():
    both = {name: pd.concat([rows, study("other")[name]], ignore_index=True) for name, rows in study().items()}
    build = FINAL_TABLES["claims"].build
    assert build(row for row in claims.judge(both) if row["model"] == "opt-1.3b") == build(claims.judge(study()))


WIDTHS = (("shadow", 256, 10.0), ("layerwise", 256, 10.5), ("layerwise", 1000, 13.0))  # 1000: DejaVu's own, with 512
AS_PUBLISHED = (("shadow", 2048, 14.0), ("layerwise", 2048, 16.8))


def timed(modes=(*WIDTHS, *AS_PUBLISHED), model="opt-30b", ceilings=None, **place):
    """Modes (method, rank, milliseconds) with random weights and nothing else; ceilings: other runs, by method."""
    found = {name: [] for name in MEASURED_TABLES}
    for mode, rank, ms in modes:
        row = {"model": model, "device": "GPU", "dtype": "bfloat16", "mode": mode, "units": "both", "batch": 1}
        row |= {"sparsity_pct": 50, "prompt_tokens": 128, "new_tokens": 128, "predictor_rank": rank}
        row |= {"predictor_rank_heads": 512 if rank == 1000 else rank, "predictor_bits": 16}
        row |= {"ceiling_gb_s": (ceilings or {}).get(mode, 4000.0)} | place
        found["latency"].append(row | {"ms_per_token": ms, "ms_p10": ms * 0.99, "ms_p90": ms * 1.01})
    return {name: tables.frame(MEASURED_TABLES[name].build(rows)) for name, rows in found.items()}


def test_speed_is_compared_at_the_published_ranks():
    (row,) = claims.judge(timed())  # what was only timed has no claims about quality
    assert (row["claim"], row["predictor_rank"]) == ("faster_than_layerwise", 2048)
    assert (row["value_winner"], row["value_loser"]) == (14.0, 16.8)
    assert row["effect"] == pytest.approx(math.log(1.2))
    assert row["published_effect"] == pytest.approx(math.log(2099 / 1808))
    assert row["verdict"] == "reproduced"
    assert claims.judge(timed(model="mine"))[0]["verdict"] == "direction only"
    assert FINAL_TABLES["claims"].build([row]).num_rows == 1


@pytest.mark.parametrize(
    "found",
    [
        timed(WIDTHS),
        timed((*WIDTHS, AS_PUBLISHED[0])),  # as the reference tables of the H100 are
        timed((*WIDTHS, AS_PUBLISHED[1])),
        timed(AS_PUBLISHED, predictor_rank_heads=512),
        timed(AS_PUBLISHED, ceilings={"shadow": 3999.0}),  # in two runs
    ],
)
def test_other_ranks_and_other_runs_say_nothing_about_the_published_speed(found):
    assert claims.judge(found) == []


def test_published_times_name_their_ranks_and_gpus():
    rows = pd.read_csv(PUBLISHED).query("quantity == 'latency'")
    predicted = rows["method"] != "static"
    for column in ("predictor_rank", "predictor_rank_heads"):
        assert (rows.loc[predicted, column] == 2048).all() and rows.loc[~predicted, column].isna().all()
    gpus = {"opt-1.3b": 1, "opt-6.7b": 2, "opt-13b": 4, "opt-30b": 4, "opt-66b": 4}
    assert (rows["gpus"] == rows["model"].map(gpus)).all()
    ratios = {model: one["effect"].iloc[0] for model, one in _half().groupby("model")}
    for model, ratio in {"opt-1.3b": 1.213, "opt-6.7b": 1.146, "opt-13b": 1.140}.items():
        assert math.exp(ratios[model]) == pytest.approx(ratio, abs=5e-4)


def _half():
    theirs = claims.published(PUBLISHED, CLAIMS["faster_than_layerwise"])
    return theirs[theirs["sparsity_pct"] == 50]


def test_withdrawn_rank_correlations_are_not_used():
    """The authors withdrew the file with .871 and .884 (plainact), .954 and .956 (l2_norm); these replace it."""
    rows = pd.read_csv(PUBLISHED).query("quantity == 'rank_correlation' and units == 'heads'")
    values = rows.set_index(["criterion", "method"])["value"].to_dict()
    assert values == {
        ("plainact", "shadow"): 0.865, ("plainact", "layerwise_own"): 0.823,
        ("l2_norm", "shadow"): 0.932, ("l2_norm", "layerwise_own"): 0.896,
    }  # fmt: skip


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "No columns to parse"),
        (b"quantity,value\nlatency,1\n", "no column criterion, method, metric"),
        (
            PUBLISHED.read_bytes().replace(b",17.1,", b",seventeen,", 1),
            "could not convert string to float: 'seventeen'",
        ),
        (PUBLISHED.read_bytes() + b"1" + 20 * b",1" + b"\n", "Expected 15 fields"),
        (b"\xff\xfe\x00", "can't decode"),
    ],
)
def test_a_table_of_published_values_that_is_none(content, says, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"mine.csv: .*{says}.*published.csv would fit") as raised:
        claims.published(path, CLAIMS["context_over_static"])
    assert "\n" not in str(raised.value)
