"""Tables and figures on a made-up study: invariances, bad input, and every figure on full and on sparse tables."""

import io
import itertools
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from rich.console import Console

from shadowcore import artifacts
from shadowcore.errors import ArtifactError
from shadowcore.measure import statistics
from shadowcore.provenance import file_sha256
from shadowcore.report import answer, blocks, budgets, checks, claims, show, style, tables
from shadowcore.report import drawn as records
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.captions import CAPTIONS
from shadowcore.report.figures import FIGURES, TIMED_FIGURES, save
from shadowcore.report.figures.bytes import undominated
from shadowcore.report.figures.lines import best_predictors, contextual, lines, over_seeds, trained_alike
from shadowcore.report.outcomes import grouped
from shadowcore.schemas import BEST_AT_BYTES, CONDITION, FINAL_TABLES, OUTCOMES
from shadowcore.stages import draw

MODEL, LAYERS, UNITS = "smollm2-135m", 12, {"heads": 9, "neurons": 96}
LEVELS = (30, 50, 70)
# made-up perplexity over dense at LEVELS
COST = {
    "random": (13.0, 250.0, 3000.0),
    "static": (2.05, 3.9, 9.0),
    "shadow": (1.65, 2.7, 7.3),
    "layerwise": (1.5, 2.3, 7.0),
    "oracle": (1.01, 1.05, 1.25),
}
CALIBRATION = "wikipedia-train"
HEADER = {"stage": "draw", "spec": {"model": 'a (b) \\ "c" é'}, "inputs": {"tables": ["0" * 64]}}


def condition(method="dense", criterion=None, policy=None, units=None, sparsity=0, **more):
    """Keys and measured sparsity of one condition."""
    trained = method in ("shadow", "layerwise")
    removed = sparsity / 100 * (LAYERS - 1) / LAYERS
    heads, neurons = (removed if units in (kind, "both") else 0.0 for kind in ("heads", "neurons"))
    return {
        "model": MODEL, "data": "wikipedia", "calibration": None if method in ("dense", "random") else CALIBRATION,
        "method": method, "criterion": criterion, "predictor": "small" if trained else None, "policy": policy,
        "protocol": None if method == "dense" else "token", "units": units, "sparsity_pct": sparsity, "seed": 0,
        "sparsity_measured": removed, "sparsity_heads": heads, "sparsity_neurons": neurons,
        "sparsity_weights": 0.6 * neurons + 0.1 * heads, "read_bytes": 1e8 * (1 - 0.6 * neurons - 0.1 * heads),
        "read_share": 1 - 0.6 * neurons - 0.1 * heads,
    } | more  # fmt: skip


def conditions():
    """Every condition of the made-up study with the factor its perplexity has over dense."""
    yield condition(), 1.0
    for level, sparsity in enumerate(LEVELS):
        for method, cost in COST.items():
            criteria = ("random",) if method == "random" else ("plainact", "l2_norm")
            for criterion in criteria:
                worse = 1.15 if criterion == "l2_norm" else 1.0
                yield condition(method, criterion, "per_layer", "neurons", sparsity), cost[level] * worse
        for method in ("static", "shadow"):
            yield condition(method, "plainact", "global", "neurons", sparsity), COST[method][level] * 0.85
    for units, method in itertools.product(("both", "heads"), ("random", "static", "shadow")):
        criterion = "random" if method == "random" else "plainact"
        yield condition(method, criterion, "per_layer", units, 50), COST[method][1] * (1.4 if units == "both" else 0.6)


def outcomes(model=MODEL, windows=64, documents=400):
    """Documents of the made-up study: one difficulty each, shared by all conditions, and some noise."""
    random = np.random.default_rng(1)
    hardness, margin = random.normal(2.92, 0.25, windows), random.normal(0, 1, documents)
    parts = []
    for keys, factor in conditions():
        nll = 255 * (hardness + math.log(factor) + random.normal(0, 0.05, windows) * (factor > 1))
        noise = random.normal(0, 0.5, documents) * (factor > 1)
        rows = {
            "perplexity": ("nll", nll, 255, windows),
            "true_continuation": ("acc", (margin + noise < 0.3 - 0.45 * math.log(factor)).astype(float), 1, documents),
        }
        for task, (metric, value, weight, count) in rows.items():
            part = pd.DataFrame({"document": [f"{task}-{i:04d}" for i in range(count)], "value": value})
            shots = 0 if metric == "acc" else None
            parts.append(part.assign(**keys, task=task, fewshot=shots, metric=metric, weight=weight))
    table = pd.concat(parts, ignore_index=True).assign(model=model)[list(OUTCOMES.columns)]
    return pa.Table.from_pandas(table, preserve_index=False)


def quality_rows():
    good = {"static": (0.55, 0.30), "shadow": (0.68, 0.45), "layerwise": (0.75, 0.55)}
    for kind, criterion, method in itertools.product(UNITS, ("plainact",), good):
        rank, gain = good[method]
        for layer in range(1, LAYERS):
            keys = {
                "model": MODEL, "calibration": CALIBRATION, "method": method, "criterion": criterion, "seed": 0,
                "predictor": None if method == "static" else "small", "kind": kind, "layer": layer, "n": 4096,
                "stderr": 0.004,
            }  # fmt: skip
            bend = 0.1 * math.cos(layer / 5)
            yield keys | {"sparsity_pct": None, "metric": "spearman", "value": rank + bend}
            for sparsity in LEVELS:
                value = 1 - sparsity / 100 * (1 - gain - bend / 2)
                for metric, policy in itertools.product(("recall", "precision"), ("global", "per_layer")):
                    told = {"sparsity_pct": sparsity, "policy": policy, "metric": metric}
                    yield keys | told | {"value": value if policy == "per_layer" else 0.9 * value}


def criteria_rows():
    random = np.random.default_rng(2)
    for kind, count in UNITS.items():
        for layer in range(LAYERS):
            for unit, mean in enumerate(random.lognormal(0.05 * layer - 3, 1.2, count)):
                yield {
                    "model": MODEL, "calibration": CALIBRATION, "criterion": "plainact", "kind": kind,
                    "layer": layer, "unit": unit, "mean": mean, "deviation": mean / 3, "n": 64,
                }  # fmt: skip


def latency_rows():
    time = {"static": (0, 0.55), "shadow": (0.5, 0.52), "layerwise": (2.4, 0.5)}
    modes = [("dense", None, 0, 9.2), ("huggingface", None, 0, 14.0)]
    for mode, (overhead, gain) in time.items():
        modes += [(mode, "neurons", level, 9.2 * (1 - gain * level / 100) + overhead) for level in LEVELS]
    for mode, units, sparsity, ms in modes:
        yield {
            "model": MODEL, "device": "Processor, 2 cores", "backend": "torch", "weights": "pretrained",
            "dtype": "float32", "threads": 2, "mode": mode, "units": units, "sparsity_pct": sparsity, "kv": "kept",
            "batch": 1, "prompt_tokens": 64, "new_tokens": 64, "ms_per_token": ms, "ms_p10": ms * 0.97,
            "ms_p90": ms * 1.06, "ttft_ms": 60.0, "gb_per_token": 0.5, "gb_per_s": 0.5 / ms * 1000, "repeats": 10,
            "predictor_rank": 512 if mode in ("shadow", "layerwise") else None,
        }  # fmt: skip


def predictor_rows():
    for method, groups in (("shadow", 1), ("layerwise", LAYERS - 1)):
        yield {
            "model": MODEL, "calibration": CALIBRATION, "method": method, "criterion": "plainact", "seed": 0,
            "predictor": "small", "base": "small", "rounds": 0, "tuned": False, "kind": "neurons", "rank": 512,
            "groups": groups, "bits": 16, "block": 1,
            "parameters": 23_000_000, "step_bytes": 46_000_000 + 10_000 * groups, "tokens": 100_000,
            "epochs": 10, "best_epoch": 7, "loss_constant": 1.02, "loss": 0.71,
        }  # fmt: skip


def final_tables(documents):
    """All final tables as the stages write them."""
    rows = {
        "accuracy": tables.accuracy(documents), "perplexity": tables.perplexity(documents),
        "comparisons": tables.comparisons(documents), "best_at_bytes": best_at_bytes(grouped([documents])),
        "quality": quality_rows(), "predictors": predictor_rows(),
        "criteria": criteria_rows(), "latency": latency_rows(), "latency_repeats": [], "refused": [],
    }  # fmt: skip
    measured = {name: FINAL_TABLES[name].build(values) for name, values in rows.items()}
    judged = claims.judge({name: tables.frame(table) for name, table in measured.items()})
    return measured | {"claims": FINAL_TABLES["claims"].build(judged)}


@pytest.fixture(scope="module")
def documents():
    return outcomes()


@pytest.fixture(scope="module")
def built(documents):
    return final_tables(documents)


@pytest.fixture(scope="module")
def frames(built):
    """The final tables of the study, and of one that showed examples and trained a predictor in rounds."""
    frames = {name: tables.frame(table) for name, table in built.items()}
    accuracy = frames["accuracy"]
    more = [accuracy.assign(fewshot=4), accuracy.assign(task="copa", data="copa")]
    frames["accuracy"] = pd.concat([accuracy, *more], ignore_index=True)
    for table in ("perplexity", "predictors"):
        rows = frames[table]
        kinds = {"rank256": {"rank": 256}, "rank128": {"rank": 128}, "less": {"rank": 128, "tokens": 10_000}}
        others = [rows[rows["method"] == "shadow"].assign(predictor=name, **kind) for name, kind in kinds.items()]
        frames[table] = pd.concat([rows, *others], ignore_index=True)[list(rows)]
    return frames


def ordered(rows, *keys):
    """A mapping from the keys of rows to the rows, floats as they are."""
    return {tuple(row[key] for key in keys): row for row in rows}


ESTIMATED = ("difference", "stderr", "low", "high", "n")
PLACE = ("data", "task", "units", "policy", "criterion", "sparsity_pct")
ROW_KEYS = ("model", "method", "criterion", "policy", "units", "sparsity_pct", "metric")
MAKERS = {"accuracy": tables.accuracy, "perplexity": tables.perplexity, "comparisons": tables.comparisons}


def test_every_condition_has_its_rows(documents):
    count = sum(1 for _ in conditions())
    assert len(tables.accuracy(documents)) == len(tables.perplexity(documents)) == count
    found = pd.DataFrame(tables.comparisons(documents))
    across = found["reference_criterion"].notna() & (found["reference_criterion"] != found["criterion"])
    # at 3 sparsities: static, shadow, layerwise and oracle with another criterion, and layerwise with either of shadow
    assert across.sum() == 2 * 3 * (4 + 2)
    references = found[~across].value_counts("reference")
    assert references["dense"] == 2 * (count - 1)
    # the 3 sparsities have 4 methods of 2 criteria beside random, and shadow beside static under the global policy;
    # "both" and "heads" have static and shadow beside random
    assert references["random"] == 2 * (3 * 4 * 2 + 2 * 2)
    assert references["static"] == 2 * (3 * (3 * 2 + 1) + 2)
    assert references["shadow"] == 2 * (3 * 2 * 2) and references["layerwise"] == 2 * (3 * 2)


def test_estimates_are_those_of_the_documents(documents):
    rows = documents.to_pandas()
    chosen = rows[(rows["method"] == "shadow") & (rows["policy"] == "global") & (rows["sparsity_pct"] == 50)]
    windows, answers = chosen[chosen["metric"] == "nll"], chosen[chosen["metric"] == "acc"]
    name = (MODEL, "shadow", "plainact", "global", "neurons", 50)
    perplexity = ordered(tables.perplexity(documents), *ROW_KEYS)[*name, "token_perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(windows["value"].sum() / windows["weight"].sum()))
    assert (perplexity["n"], perplexity["counted"]) == (64, 64 * 255)
    assert ordered(tables.accuracy(documents), *ROW_KEYS)[*name, "acc"]["value"] == answers["value"].mean()


def test_differences_are_differences_of_estimates(documents):
    accuracy, perplexity = (ordered(make(documents), *ROW_KEYS) for make in (tables.accuracy, tables.perplexity))
    dense = (MODEL, "dense", None, None, None, 0)
    compared = [row for row in tables.comparisons(documents) if row["reference"] == "dense"]
    for key, row in ordered(compared, *ROW_KEYS).items():
        if key[-1] == "acc":
            expected = accuracy[key]["value"] - accuracy[*dense, "acc"]["value"]
        else:
            values = [perplexity[*name, "token_perplexity"]["value"] for name in (key[:-1], dense)]
            expected = math.log(values[0] / values[1])
            assert row["p_value"] == statistics.paired_p(statistics.Estimate(*(row[name] for name in ESTIMATED)))
        assert row["difference"] == pytest.approx(expected)
        assert row["low"] <= row["difference"] <= row["high"]


def test_methods_are_compared_as_their_differences_to_dense_are(documents):
    rows = tables.comparisons(documents)
    keys = ("method", "criterion", "policy", "units", "sparsity_pct", "metric", "reference", "reference_criterion")
    found = ordered(rows, *keys)
    for key, row in found.items():
        method, criterion, *place, reference, other_criterion = key
        if reference != "dense":
            other = (reference, other_criterion or "random", *place, "dense", None)
            apart = found[method, criterion, *place, "dense", None]["difference"] - found[other]["difference"]
            assert row["difference"] == pytest.approx(apart, abs=1e-12)
    assert {row["predictor"] for row in rows if row["method"] == "oracle" and row["reference"] == "shadow"} == {"small"}


def test_corrected_p_values_are_those_of_their_family(documents):
    rows = [row for row in tables.comparisons(documents) if row["metric"] == "acc"]
    for reference in {row["reference"] for row in rows}:
        family = [row for row in rows if row["reference"] == reference]
        smallest = min(family, key=lambda row: row["p_value"])
        assert smallest["p_holm"] == min(1, len(family) * smallest["p_value"])
        assert all(row["p_value"] <= row["p_holm"] <= 1 for row in family)


def three_perplexities(documents):
    """Outcomes of a rolling task: one likelihood over tokens, words and bytes."""
    rows = documents.to_pandas().query("metric == 'nll'").assign(task="wikitext", data="wikitext", fewshot=0)
    counts = {"nll": 1, "word_nll": 0.75, "byte_nll": 4}
    parts = [rows.assign(metric=name, weight=(rows["weight"] * per).astype(int)) for name, per in counts.items()]
    return pd.concat(parts)


def test_perplexities_over_tokens_words_and_bytes_are_of_one_likelihood(documents):
    rows = pd.DataFrame(tables.perplexity(three_perplexities(documents)))
    assert checks.check({"perplexity": rows}) == []
    wide = rows.pivot(index=[*ROW_KEYS[1:-1]], columns="metric", values="value")
    words = 255 / int(255 * 0.75)
    assert np.log(wide["word_perplexity"]).to_numpy() == pytest.approx(np.log(wide["token_perplexity"]) * words)
    rows.loc[7, "value"] *= 1.001
    with pytest.raises(ArtifactError, match="must agree"):
        checks.check({"perplexity": rows})


@pytest.mark.parametrize("name", MAKERS)
def test_order_of_documents_changes_nothing(documents, name):
    shuffled = documents.to_pandas().sample(frac=1, random_state=0)
    assert MAKERS[name](shuffled) == MAKERS[name](documents)


@pytest.mark.parametrize("name", MAKERS)
def test_another_model_changes_nothing(documents, name):
    rows = MAKERS[name](pa.concat_tables([documents, outcomes("another")]))
    assert [row for row in rows if row["model"] == MODEL] == MAKERS[name](documents)
    assert sum(row["model"] == "another" for row in rows) == len(rows) / 2


def test_rows_fit_their_schemas_and_survive_a_file(built, tmp_path):
    for name, table in built.items():
        artifacts.write_table(tmp_path / f"{name}.parquet", FINAL_TABLES[name].schema, table, {})
    for name, table in tables.read(tmp_path).items():
        pd.testing.assert_frame_equal(table, tables.frame(built[name]))


def test_a_table_that_was_not_written_is_read_as_empty(tmp_path):
    found = tables.read(tmp_path)
    assert {name: list(table) for name, table in found.items()} == {n: list(t.columns) for n, t in FINAL_TABLES.items()}
    assert not any(map(len, found.values()))


def test_without_dense_nothing_is_compared_with_it(documents):
    rows = documents.to_pandas()
    compared = tables.comparisons(rows[rows["method"] != "dense"])
    assert compared and not any(row["reference"] == "dense" for row in compared)


def test_dense_of_several_seeds_is_paired_by_seed(documents):
    rows = documents.to_pandas()
    pair = rows[(rows["method"] == "dense") | ((rows["method"] == "oracle") & (rows["sparsity_pct"] == 30))]
    other = pair.assign(seed=1)
    both = tables.comparisons(pd.concat([pair, other]))
    assert [row for row in both if row["seed"] == 0] == tables.comparisons(pair)
    with pytest.raises(ArtifactError, match=r"its seed is 2, where dense was run with \[0, 1\]"):
        tables.comparisons(pd.concat([pair, other, pair[pair["method"] != "dense"].assign(seed=2)]))


def test_trained_seeds_are_compared_with_what_is_not_trained_and_their_spread_is_told(documents):
    rows = documents.to_pandas()
    chosen = rows["method"].isin(["dense", "static", "shadow", "layerwise"]) & (rows["criterion"] != "l2_norm")
    rows = rows[chosen & rows["sparsity_pct"].isin([0, 50]) & (rows["units"] != "both") & (rows["policy"] != "global")]
    rows = rows[rows["metric"] == "nll"]
    again = rows[rows["method"].isin(["shadow", "layerwise"])].assign(seed=7)
    again["value"] *= 1.1
    found = pd.DataFrame(tables.comparisons(pd.concat([rows, again])))
    found = found[found["units"] == "neurons"].set_index(["method", "reference", "seed"]).sort_index()
    # every seed beside dense and static of the study's seed, trained methods beside those of their own seed
    assert set(found.index) == {
        ("static", "dense", 0), *(("shadow", other, seed) for other in ("dense", "static") for seed in (0, 7)),
        *(("layerwise", other, seed) for other in ("dense", "static", "shadow") for seed in (0, 7)),
    }  # fmt: skip
    once = pd.DataFrame(tables.comparisons(rows)).set_index(["units", "method", "reference"])["difference"]
    for (method, reference, _), row in found.iterrows():
        first, second = found.loc[(method, reference)]["difference"].iloc[[0, -1]]
        assert found.loc[(method, reference, 0), "difference"] == once["neurons", method, reference]
        assert row["seeds"] == (1 if method == "static" else 2)
        assert math.isnan(row["seed_deviation"]) or row["seed_deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    measured = {row["method"]: row for row in tables.perplexity(pd.concat([rows, again])) if row["units"] == "neurons"}
    assert (measured["static"]["seeds"], measured["static"]["seed_deviation"]) == (1, None)
    assert measured["shadow"]["seeds"] == 2 and measured["shadow"]["seed_deviation"] > 0


def designs(documents, *named):
    """Documents of dense and of predictors, (method, predictor) each, in one place, every one with noise of its own."""
    rows = documents.to_pandas()
    place = rows[(rows["method"] == "shadow") & (rows["criterion"] == "plainact") & (rows["policy"] == "per_layer")]
    place = place[(place["units"] == "neurons") & (place["sparsity_pct"] == 50)]
    windows = place["metric"] == "nll"
    parts = [rows[rows["method"] == "dense"]]
    for seed, (method, predictor) in enumerate(named):
        random = np.random.default_rng(seed)
        noise = np.where(windows, random.normal(1, 0.05, len(place)), random.integers(0, 2, len(place)))
        parts.append(place.assign(method=method, predictor=predictor, value=place["value"] * noise))
    return pd.concat(parts, ignore_index=True)


ROUNDS = {"": (0, False), "_1": (1, False), "_1_tuned": (1, True), "_2": (2, False), "_3": (3, False)}
ROUNDS["_tuned"] = (0, True)
DESIGNS = [
    ("layerwise", "each"), ("layerwise", "each_1"), ("layerwise", "each_1_tuned"), ("layerwise", "each_3"),
    ("layerwise", "plain"), ("segments", "wide"), ("segments", "wide_1"), ("segments", "wide_1_tuned"),
    ("segments", "wide_2"), ("segments", "wide_tuned"), ("segments", "bare"), ("shadow", "wide"),
]  # fmt: skip
SIDES = ["method", "predictor", "reference", "reference_predictor"]


def trainings(named, model=MODEL):
    """Rows of PREDICTORS on what each of these began with."""
    for method, predictor in named:
        base, mark, more = predictor.partition("_")
        rounds, tuned = ROUNDS[mark + more]
        yield {"model": model, "method": method, "predictor": predictor, "base": base, "rounds": rounds, "tuned": tuned}


def sides(rows):
    """What is compared with what but dense, sorted, as often as it is."""
    return sorted(tuple(row[name] for name in SIDES) for row in rows if row["reference"] != "dense")


def test_predictors_of_other_names_are_compared_where_they_were_trained_alike(documents):
    windows = designs(documents, *DESIGNS).query("metric == 'nll'")
    made = list(trainings(DESIGNS))
    alike = [("segments", f"wide{end}", "layerwise", f"each{end}") for end in ("", "_1", "_1_tuned")]
    same = ("segments", "wide", "shadow", "wide")
    assert sides(tables.comparisons(windows, made)) == sorted([*alike, same])
    # without a round that predictors of both had, nothing says that these two are meant
    apart = windows[~windows["predictor"].isin(["each_1", "wide_1_tuned"])]
    assert sides(tables.comparisons(apart, made)) == [same]
    # nor does another model's
    both = sides(
        tables.comparisons(pd.concat([apart, windows.assign(model="another")]), [*made, *trainings(DESIGNS, "another")])
    )
    assert both == sorted([*alike, same, same])


def test_predictors_of_other_names_are_compared_document_by_document(documents):
    rows = designs(documents, *DESIGNS)
    found = ordered(tables.comparisons(rows, trainings(DESIGNS)), *SIDES, "metric")
    for end in ("", "_1", "_1_tuned"):
        pair = [
            rows[(rows["method"] == method) & (rows["predictor"] == preset + end)].sort_values("document")
            for method, preset in (("segments", "wide"), ("layerwise", "each"))
        ]
        windows, answers = ([part[part["metric"] == metric] for part in pair] for metric in ("nll", "acc"))
        values = [part["value"].to_numpy() for part in windows]
        expected = statistics.log_perplexity_difference(*values, windows[0]["weight"].to_numpy())
        row = found["segments", f"wide{end}", "layerwise", f"each{end}", "log_perplexity"]
        assert [row[name] for name in ("difference", "stderr", "low", "high")] == [
            expected.value, expected.stderr, expected.low, expected.high,
        ]  # fmt: skip
        expected, p_value = statistics.accuracy_difference(*(part["value"].to_numpy() for part in answers))
        row = found["segments", f"wide{end}", "layerwise", f"each{end}", "acc"]
        assert (row["difference"], row["p_value"]) == (expected.value, p_value)


def test_predictors_of_other_names_are_compared_seed_by_seed_each_once(documents):
    named = [("layerwise", "each_1"), ("layerwise", "also_1"), ("segments", "wide_1"), ("segments", "six_1")]
    rows = designs(documents, *named)
    again = designs(documents, *named[::-1])
    both = pd.concat([rows, again[again["method"] != "dense"].assign(seed=7)])
    found = pd.DataFrame(tables.comparisons(both, trainings(named)))
    keys = [*CONDITION, *tables.ASKED, "reference", "reference_predictor"]
    assert not found.duplicated(keys).any()
    found = found[found["reference"] == "layerwise"]
    assert len(found) == 2 * 4 * 2 and (found["seeds"] == 2).all()  # metrics, pairs, seeds
    for _, pair in found.groupby(["predictor", "reference_predictor", "metric"]):
        assert list(pair["seed"]) == [0, 7]
        assert pair["seed_deviation"].to_numpy() == pytest.approx(pair["difference"].std())
    # p-values are corrected among all predictors of the reference
    answers = found[(found["metric"] == "acc") & (found["seed"] == 0)]
    smallest = answers.loc[answers["p_value"].idxmin()]
    assert smallest["p_holm"] == min(1, 4 * smallest["p_value"])


def damaged(documents, change):
    rows = documents.to_pandas()
    change(rows, (rows["method"] == "oracle") & (rows["sparsity_pct"] == 50))
    return rows


def repeat_document(rows, oracle):
    first, second = rows.index[oracle][:2]
    rows.loc[first, "document"] = rows.loc[second, "document"]


def rename_document(rows, oracle):
    rows.loc[rows.index[oracle][0], "document"] = "elsewhere"


def score_fewer_tokens(rows, oracle):
    rows.loc[oracle, "weight"] -= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [(repeat_document, "63 in common"), (rename_document, "63 in common"), (score_fewer_tokens, "token counts")],
)
def test_conditions_on_other_documents_are_not_compared(documents, change, message):
    with pytest.raises(ArtifactError, match=f"{MODEL} wikipedia oracle .*{message}"):
        tables.comparisons(damaged(documents, change))


def test_impossible_documents_name_their_condition(documents):
    def change(rows, oracle):
        rows.loc[oracle & (rows["metric"] == "acc"), "value"] = 0.5

    with pytest.raises(ArtifactError, match=f"{MODEL} wikipedia oracle plainact.* 0 or 1"):
        tables.accuracy(damaged(documents, change))


def test_outcomes_without_a_column_are_refused(documents):
    with pytest.raises(ArtifactError, match="no column .'document'."):
        tables.accuracy(documents.drop_columns("document"))


def test_dense_found_twice_is_refused(documents):
    rows = documents.to_pandas()
    again = rows[rows["method"] == "dense"].assign(calibration=CALIBRATION)
    with pytest.raises(ArtifactError, match="dense .*seed 0"):
        tables.comparisons(pd.concat([rows, again]))


def test_attainable_tables_pass_without_warning(built):
    assert checks.check(built) == []


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("accuracy", "value", math.nan, "value is nan"),
        ("accuracy", "value", 0.12345, "k/n"),
        ("accuracy", "value", 1.0025, "k/n"),
        ("accuracy", "n", 800, "n is 800"),
        ("perplexity", "value", 0.99, "at least 1"),
        ("perplexity", "value", math.inf, "finite"),
        ("perplexity", "n", 63, "n is 63"),
        ("comparisons", "difference", math.nan, "finite"),
        ("latency", "ms_per_token", math.nan, "finite"),
    ],
)
def test_unattainable_values_name_table_and_row(frames, name, column, value, message):
    wrong = frames[name].copy()
    wrong.loc[5, column] = value
    with pytest.raises(ArtifactError, match=f"^table '{name}', row 5 \\({MODEL} .*{message}"):
        checks.check({name: wrong})


def test_a_model_below_chance_is_a_warning(frames):
    weak = frames["accuracy"].copy()
    dense = (weak["method"] == "dense") & (weak["fewshot"] == 0) & (weak["task"] == "true_continuation")
    weak.loc[dense, "value"] = 0.2
    (warning,) = checks.check({"accuracy": weak})
    assert "dense" in warning and "below chance" in warning


def dense_only(frames):
    """The tables of a study with nothing but the dense model."""
    kept = {"accuracy": "method", "perplexity": "method", "latency": "mode"}
    return {
        name: table[table[kept[name]] == "dense"] if name in kept else table.iloc[:0] for name, table in frames.items()
    }


def draw_all(figure):
    """Let every artist draw itself, without the search for a layout, which is most of the time."""
    if isinstance(figure, str):
        return
    figure.set_layout_engine("none")
    figure.draw_without_rendering()


def texts(figure):
    """Everything written in a figure."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.parametrize("name", FIGURES)
def test_figure_files_repeat_to_the_byte(frames, name, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    runs = []
    for run in ("1", "2"):
        figure = FIGURES[name](frames, MODEL)
        if name != "latency":  # the search for a layout takes most of the time: once is enough
            figure.set_layout_engine("none")
        runs.append(save(figure, tmp_path / run / name, HEADER))
    assert [path.name for path in runs[0]] == [f"{name}.pdf", f"{name}.png"]
    for one, other in zip(*runs, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert artifacts.read_origin(one) == {"schema": "figure/1", "header": HEADER}
        assert not any(word in one.read_bytes() for word in (b"CreationDate", b"Software", b"atplotlib"))


def test_only_figures_with_something_to_show_are_written_and_name_the_tables_they_were_drawn_from(built, tmp_path):
    paths = []
    for name, table in built.items():
        paths.append(tmp_path / f"{name}.parquet")
        artifacts.write_table(paths[-1], FINAL_TABLES[name].schema, table, {})
    stems = [tmp_path / "figures" / MODEL / name for name in ("perplexity", "latency", "fewshot", "tasks")]
    figures = tuple(stem.with_suffix(kind) for stem in stems for kind in (".pdf", ".png"))
    record = tmp_path / "figures" / f"{MODEL}.json"
    draw.run(draw.Spec(MODEL), draw.Inputs(tuple(paths)), draw.Outputs(record, figures))
    for path in figures[:4]:
        read = {"perplexity": ["perplexity", "predictors"], "latency": ["latency"]}[path.stem]
        hashes = {name: [file_sha256(tmp_path / f"{name}.parquet")] for name in read}
        assert artifacts.read_header(path)["inputs"] == hashes
    assert not any(path.exists() for path in figures[4:])
    (found,) = records.read([record])
    assert list(found.files.values()) == [figures[1], figures[3]] and set(found.left_out) == {"fewshot", "tasks"}
    assert MODEL in found.sentence() and all(
        f"{name} ({why})" in found.sentence() for name, why in found.left_out.items()
    )


def test_methods_are_shown_with_predictors_that_were_trained_alike():
    made = [("shadow", "a", 0, False), ("layerwise", "b", 0, False), ("layerwise", "c", 1, True)]
    predictors = pd.DataFrame(made, columns=["method", "predictor", "rounds", "tuned"]).assign(model=MODEL)
    rows = pd.DataFrame(
        [*((method, name) for method, name, *_ in made), ("static", None)], columns=["method", "predictor"]
    )
    assert list(trained_alike({"predictors": predictors}, MODEL, rows)["predictor"].fillna("")) == ["a", "b", ""]
    alone = rows[rows["method"] != "shadow"]
    assert list(trained_alike({"predictors": predictors}, MODEL, alone)["predictor"].fillna("")) == ["c", ""]
    assert len(trained_alike({}, MODEL, rows)) == 4  # nothing is known of how they were trained


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_full_tables_and_name_their_model(frames, name):
    figure = FIGURES[name](frames, MODEL)
    draw_all(figure)
    assert any(MODEL in text for text in texts(figure))


@pytest.mark.parametrize("name", FIGURES | TIMED_FIGURES)
def test_a_figure_with_nothing_to_show_says_why(frames, name):
    draw_one = (FIGURES | TIMED_FIGURES)[name]
    for nothing in ({}, {table: rows.iloc[:0] for table, rows in frames.items()}, dense_only(frames)):
        reason = draw_one({"latency": frames["latency"].iloc[:0]} | nothing, MODEL)
        assert isinstance(reason, str) and 10 < len(reason) < 80


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    "lacking",
    [{"method": ["dense", "static"], "mode": ["dense"]}, {"units": ["neurons"], "kind": ["neurons"]},
     {"criterion": ["plainact"], "metric": ["recall"]}, {"policy": ["per_layer"], "method": ["random"]}],
    ids=str,
)  # fmt: skip
def test_figures_draw_without_some_methods_units_or_criteria(frames, name, lacking):
    for column, values in lacking.items():
        frames = {table: rows[~rows[column].isin(values)] if column in rows else rows for table, rows in frames.items()}
    draw_all(FIGURES[name](frames, MODEL))


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_figures_draw_baselines_that_have_no_criterion(frames, name):
    changed = {}
    for table in ("accuracy", "perplexity"):
        rows = frames[table]
        rows = rows.replace({"criterion": {"l2_norm": "jacov"}})
        baseline = rows[rows["method"] == "oracle"].assign(method="threshold", criterion=np.nan)
        changed[table] = pd.concat([rows, baseline], ignore_index=True)
    draw_all(FIGURES[name](frames | changed, MODEL))


def several_seeds(frames):
    """Tables in which everything trained was trained with another seed, too, to the same values."""
    again = {}
    for table, rows in frames.items():
        if {"seed", "predictor"} <= set(rows):
            rows = pd.concat([rows, rows[rows["predictor"].notna()].assign(seed=5)], ignore_index=True)
        again[table] = rows
    return again


def another_model(frames):
    """Tables with the same rows of another model."""
    return {table: pd.concat([rows, rows.assign(model="another")]) for table, rows in frames.items()}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("change", [several_seeds, another_model])
def test_figures_draw_seeds_as_one_line_and_one_model_only(frames, name, change):
    if change is several_seeds and name in ("claims", "tasks"):
        pytest.skip("claims join seeds in another way; tests/test_claims.py")
    once, twice = FIGURES[name](frames, MODEL), FIGURES[name](change(frames), MODEL)
    assert texts(once) == texts(twice)
    for kind, data in ((Line2D, Line2D.get_xydata), (AxesImage, AxesImage.get_array)):
        ours, others = (list(map(data, figure.findobj(kind))) for figure in (once, twice))
        assert len(ours) == len(others) and all(map(np.allclose, ours, others))


def test_a_panel_has_at_most_seven_lines_and_every_method_of_its_own_is_among_them(frames):
    rows = frames["perplexity"].query("units != 'heads' and criterion != 'l2_norm'")
    extra = ["segments", "threshold", "griffin", "relu", "layerwise_own", "mine"]
    static = rows[rows["method"] == "static"]
    many = pd.concat([rows, *(static.assign(method=name, predictor=None) for name in extra)])
    methods = [line.method for line in lines(many)]
    assert len(methods) == 7 and "mine" in methods and not {"griffin", "relu", "random", "threshold"} & set(methods)
    assert methods[0] == "dense" and len(lines(many[many["method"] != "dense"])) == 6


def test_methods_differ_in_colour_and_in_marker():
    for one, other in itertools.combinations(style.METHODS.values(), 2):
        apart = np.subtract(*(matplotlib.colors.to_rgb(each.color) for each in (one, other)))
        assert np.linalg.norm(apart) > 0.25 and one.marker != other.marker, (one, other)


def test_labels_at_line_ends_do_not_overlap(frames):
    figure, (axes,) = style.panels(1)
    axes.plot([0, 1], [0, 1])
    style.end_labels(axes, [(1, value, f"m{number}", "k") for number, value in enumerate((0.5, 0.5, 0.5, 0.98, 1, 5))])
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert len(heights) == 5  # what lies outside the panel has no label there
    assert min(np.diff(heights)) >= 0.05 and heights[0] > 0.2 and heights[-1] < 1.1


def test_a_learning_curve_joins_predictors_that_differ_in_tokens_alone(frames):
    (axes,) = FIGURES["learning_curves"](frames, MODEL).axes
    (curve,) = (line for line in axes.lines if line.get_marker() == style.look("shadow").marker)
    assert list(curve.get_xdata()) == [10_000, 100_000]
    alone = frames["predictors"][frames["predictors"]["predictor"] != "less"]
    assert "differ only" in FIGURES["learning_curves"](frames | {"predictors": alone}, MODEL)


def test_of_several_predictors_the_one_measured_most_and_best_is_drawn(frames):
    rows = frames["perplexity"]
    rows = rows[(rows["method"] != "shadow") | (rows["predictor"] == "small")]
    shadow = rows[rows["method"] == "shadow"]
    more = [shadow.assign(predictor=f"p{i}", value=shadow["value"] * (1 + i / 10)) for i in range(1, 5)]
    once = shadow.iloc[:1].assign(predictor="best", value=1.0)  # in one place only
    many = pd.concat([rows, *more, once], ignore_index=True)
    for low_is_good, shown in ((True, "small"), (False, "p4")):
        found = best_predictors(many, low_is_good)
        assert set(found.loc[found["method"] == "shadow", "predictor"]) == {shown}
        others = many["method"] != "shadow"
        pd.testing.assert_frame_equal(found[found["method"] != "shadow"], many[others])
    assert any("shadow small" in text for text in texts(FIGURES["perplexity"](frames | {"perplexity": many}, MODEL)))


def test_criteria_that_only_fixed_units_go_by_are_left_to_their_own_figure(frames):
    rows = frames["perplexity"]
    static = rows[(rows["method"] == "static") & (rows["criterion"] == "l2_norm")].assign(criterion="nwot")
    baseline = rows[rows["method"] == "oracle"].iloc[:1].assign(method="threshold", criterion=None)
    found = contextual(pd.concat([rows, static, baseline], ignore_index=True))
    assert "nwot" not in set(found["criterion"]) and len(found) == len(rows) + 1
    assert len(contextual(static)) == len(static)
    # a baseline has no column among the criteria
    frames = frames | {"perplexity": pd.concat([rows, baseline.assign(policy="per_layer")], ignore_index=True)}
    draw_all(FIGURES["factorial"](frames, MODEL))


def test_seeds_are_drawn_at_their_mean_in_an_interval_over_all_theirs(frames):
    rows = frames["perplexity"]
    trained = rows[rows["predictor"].notna()]
    other = trained.assign(seed=5, value=trained["value"] + 2, low=trained["low"] - 1, high=trained["high"] + 3)
    joined = over_seeds(pd.concat([rows, other], ignore_index=True))
    assert len(joined) == len(rows) and list(joined) == list(rows)
    keys = ["method", "criterion", "predictor", "policy", "units", "sparsity_pct"]
    found, before = (table[table["predictor"].notna()].set_index(keys).sort_index() for table in (joined, rows))
    for name, change in (("value", 1), ("low", -1), ("high", 3), ("seed", 0)):
        assert np.allclose(found[name], before[name] + change)


def test_one_task_on_two_texts_is_two_panels(frames):
    rows = frames["accuracy"].query("task == 'true_continuation'")
    written = texts(FIGURES["accuracy"]({"accuracy": pd.concat([rows, rows.assign(data="c4")])}, MODEL))
    assert {"true_continuation, c4", "true_continuation, wikipedia"} <= set(written)


def test_estimates_without_an_interval_are_drawn(frames):
    bare = {name: rows.assign(low=None, high=None) if "low" in rows else rows for name, rows in frames.items()}
    bare = {name: rows.astype({"low": float, "high": float}) if "low" in rows else rows for name, rows in bare.items()}
    for name in ("perplexity", "accuracy", "differences"):
        draw_all(FIGURES[name](bare, MODEL))


def test_every_figure_has_a_caption():
    assert set(CAPTIONS) == set(FIGURES) and all(100 < len(text) < 600 for text in CAPTIONS.values())


def test_the_answer_is_the_best_method_of_every_question_and_what_it_differs_by(frames):
    for name, best in (("perplexity", min), ("accuracy", max)):
        rows = frames[name].query("fewshot != 4 and method not in ['dense', 'random', 'oracle']")
        answers = answer.ordered(answer.best(frames, MODEL, name))
        assert len(answers) == rows.groupby(["task", "units", "policy", "criterion", "sparsity_pct"]).ngroups
        for one in answers:
            same = rows[(rows[list(PLACE)] == [one.row[key] for key in PLACE]).all(axis=1)]
            assert one.row["value"] == best(same["value"])
            if one.row["task"] == "copa":  # this made-up task has no comparisons
                continue
            dense = frames[name].query("method == 'dense' and task == @one.row['task']")["value"].iloc[0]
            differs = math.log(one.row["value"] / dense) if name == "perplexity" else one.row["value"] - dense
            assert one.dense["difference"] == pytest.approx(differs)
            if one.against_next and one.runner_up["predictor"] in (None, "small"):
                other = one.runner_up["value"]
                differs = math.log(one.row["value"] / other) if name == "perplexity" else one.row["value"] - other
                assert one.against_next["difference"] == pytest.approx(differs)
                assert one.against_next["low"] <= one.against_next["difference"] <= one.against_next["high"]


def test_the_snippet_of_the_documentation_finds_the_best_method_and_its_pairs(results, frames, capsys):
    text = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "p_holm" in code)
    found = {}
    exec(code.replace("results/quick", str(results)), found)
    (same,) = (
        one for one in answer.leading(answer.ordered(answer.best(frames, MODEL, "perplexity")))
        if one.row["sparsity_pct"] == 50 and one.row["criterion"] == "plainact"
    )  # fmt: skip
    assert (found["best"]["method"], found["best"]["difference"]) == (same.row["method"], same.dense["difference"])
    pairs = pd.concat([found["won"], found["lost"]]).set_index(["reference", "reference_criterion"])["difference"]
    assert pairs["static", "plainact"] == same.static["difference"] and set(pairs[pairs > 0].index) <= {
        ("oracle", "plainact")
    }
    assert pairs["layerwise", "l2_norm"] < 0 and pairs["shadow", "l2_norm"] < 0


def test_answers_say_the_share_of_bytes_that_the_best_method_reads(frames):
    for block in blocks.answers(frames, everything=True):
        shares = [row[len(block.words) + block.numbers.index("% bytes read")] for row in block.rows]
        assert all(len(row) == len(block.words) + len(block.numbers) for row in block.rows)
        removed = [int(row[block.words.index("% removed")]) for row in block.rows]
        for share, pct in zip(shares, removed, strict=True):  # of neurons, of heads, of both
            assert min(abs(100 - weights * pct * 11 / 12 - float(share)) for weights in (0.6, 0.1, 0.7)) < 0.051


def test_a_short_answer_is_of_the_first_units_and_policy(frames):
    answers = answer.ordered(answer.best(frames, MODEL, "perplexity"))
    short = answer.leading(answers)
    assert {(one.row["units"], one.row["policy"]) for one in short} == {("neurons", "per_layer")} and len(short) == 6
    assert {one.row["sparsity_pct"] for one in answer.leading(short * 9)} == {50}


@pytest.fixture
def results(built, tmp_path):
    for name, table in built.items():
        artifacts.write_table(tmp_path / "tables" / f"{name}.parquet", FINAL_TABLES[name].schema, table, {})
    return tmp_path


def printed(folder, width=80, **options):
    console = Console(file=io.StringIO(), width=width)
    show.show(folder, console, **options)
    return console.file.getvalue()


def test_show_prints_every_table_whole_in_any_terminal(results, frames):
    text = printed(results, width=60, everything=True)
    assert "…" not in text
    assert text.count("\n") > len(frames["perplexity"]["method"]) / 3
    dense = frames["perplexity"].query("method == 'dense'").iloc[0]
    assert f"{dense['value']:.1f} ± {dense['stderr']:.1f}" in text
    for heading in ("perplexity", "Accuracy", "McNemar", "Recall", "Milliseconds", "not attempted", "figures in"):
        assert heading in text


def test_times_of_other_settings_are_lines_of_their_own_by_number(frames):
    once = frames["latency"]
    settings = [{"prompt_tokens": 1024}, {"prompt_tokens": 128, "predictor_rank": 64}, {"prompt_tokens": 128}]
    found = frames | {"latency": pd.concat([once.assign(**setting) for setting in settings])}
    (times,) = (block for block in blocks.measured(found) if block.title.startswith("Milliseconds"))
    assert not any(" / " in cell for row in times.rows for cell in row)
    places = [times.words.index(name) for name in ("prompt_tokens", "method", "predictor_rank")]
    ranks = [row[places[2]] for row in times.rows if row[places[0]] == "128" and "shadow" in row[places[1]]]
    assert times.rows[0][places[0]] == "128" and ranks == ["64", "512"]


def test_show_begins_with_the_answer_and_has_a_line_per_method(results):
    drawn = results / "figures" / f"{MODEL}.json"
    artifacts.write_record(drawn, records.SCHEMA, {"drawn": [], "left_out": {"tasks": "no task"}}, {})
    lines_shown = printed(results).splitlines()
    assert len(lines_shown) <= 50 and not any("…" in line for line in lines_shown)
    assert "model's bytes" in lines_shown[1] and "best method by perplexity" in "".join(lines_shown[:15])
    assert "layerwise small" in "".join(lines_shown[:15])
    methods = [line.split()[0] for line in lines_shown if line and line.split()[0] in (*COST, "dense", "huggingface")]
    assert methods == ["dense", "huggingface", *COST]
    assert any("tasks (no task)" in line for line in lines_shown) and "--all" in lines_shown[-1]
    assert len(printed(results, brief=True)) < len(printed(results)) < len(printed(results, everything=True))


def test_show_of_an_unfinished_or_missing_study(tmp_path):
    (tmp_path / "tables").mkdir()
    for options in ({}, {"brief": True}, {"everything": True}):
        assert "0 figures" in printed(tmp_path, **options)
        with pytest.raises(ArtifactError, match="no such folder; give a study's results folder"):
            printed(tmp_path / "elsewhere", **options)


BYTES = {  # method: {sparsity: (share of dense, factor of perplexity)}
    "shadow": {30: (0.95, 1.1), 50: (0.8, 1.3)},
    "layerwise": {30: (0.85, 1.2), 50: (0.75, 1.4)},
    "static": {30: (0.8, 1.3), 50: (0.7, 2.0)},  # at 80 % as good as shadow
    "oracle": {50: (0.5, 1.0)},
}


def counted(change=lambda rows: rows, metric="nll"):
    """Documents of conditions whose bytes and perplexities over dense are those of BYTES."""
    random, parts = np.random.default_rng(3), []
    easy = random.normal(3, 0.3, 40)
    for method, sparsity, share, factor in [
        ("dense", 0, 1.0, 1.0), *((name, pct, *pair) for name, line in BYTES.items() for pct, pair in line.items())
    ]:  # fmt: skip
        place = () if method == "dense" else ("plainact", "per_layer", "neurons", sparsity)
        keys = condition(method, *place) | {"read_share": share, "read_bytes": 1e8 * share}
        noise = np.random.default_rng(sparsity).normal(0, 0.01, 40) if method != "dense" else 0
        rows = pd.DataFrame({"document": [f"{i:02d}" for i in range(40)], "value": 9 * (easy + np.log(factor) + noise)})
        parts.append(rows.assign(**keys, task="perplexity", fewshot=None, metric=metric, weight=9))
    return change(pd.concat(parts, ignore_index=True))[list(OUTCOMES.columns)]


def at_budgets(change=lambda rows: rows):
    return {row["budget_pct"]: row for row in best_at_bytes(grouped([counted(change)]))}


def test_the_best_at_a_budget_reads_no_more_and_is_paired_with_the_next_method():
    found = at_budgets()
    places = {budget: tuple(row.get(name) for name in ("method", "sparsity_pct")) for budget, row in found.items()}
    assert places == {90: ("layerwise", 30), 80: ("shadow", 50), 70: ("static", 50), 60: (None, None)}
    assert [row["verdict"] for row in found.values()] == ["significant", "undecided", "only method", "none"]
    for row in (found[90], found[80]):
        compared = ordered(tables.comparisons(counted()), "method", "sparsity_pct", "reference")
        pair = compared[row["method"], row["sparsity_pct"], "dense"]
        assert [row[name] for name in ("difference", "low", "high")] == [
            pair[name] for name in ("difference", "low", "high")
        ]
        assert row["ratio"] == math.exp(row["difference"])
        other = compared[row["next_method"], row["next_sparsity_pct"], "dense"]
        assert row["next_difference"] == pytest.approx(pair["difference"] - other["difference"])
    assert (found[90]["next_method"], found[90]["next_sparsity_pct"]) == ("shadow", 50)
    assert found[90]["p_holm"] == 2 * found[90]["p_value"] and found[90]["next_high"] < 0


def test_of_equals_the_one_that_reads_less_is_the_best_then_the_first_by_name():
    def equal(rows, share):
        static = (rows["method"] == "static") & (rows["sparsity_pct"] == 30)
        values = rows.loc[(rows["method"] == "shadow") & (rows["sparsity_pct"] == 50), "value"].to_numpy()
        rows.loc[static, "value"] = values
        rows.loc[static, "read_share"] = share
        return rows

    for share, best in ((0.8, "shadow"), (0.79, "static")):
        row = at_budgets(lambda rows, share=share: equal(rows, share))[80]
        assert (row["method"], row["next_difference"], row["verdict"]) == (best, 0, "undecided")


def test_seeds_are_one_candidate_with_an_interval_over_all():
    def again(rows):
        other = rows[rows["method"] == "layerwise"].assign(seed=7)
        return pd.concat([rows, other.assign(value=other["value"] * 1.001)])

    once, twice = at_budgets()[90], at_budgets(again)[90]
    assert twice["value"] == pytest.approx(once["value"] * 1.0005) and twice["low"] == once["low"]
    assert twice["high"] > once["high"] and twice["p_value"] >= once["p_value"]


def test_a_condition_whose_bytes_were_not_counted_is_no_candidate():
    assert at_budgets(lambda rows: rows.assign(read_share=None)) == {}
    some = at_budgets(lambda rows: rows.assign(read_share=rows["read_share"].where(rows["method"] != "layerwise")))
    assert some[90]["method"] == "shadow"


def test_budgets_are_shown_with_their_bytes_and_a_row_where_nothing_reads_as_little(frames):
    rows = pd.DataFrame(BEST_AT_BYTES.build(best_at_bytes(grouped([counted()]))).to_pandas())
    (block,) = budgets.at_bytes(frames | {"best_at_bytes": rows})
    assert [row[1] for row in block.rows] == ["at most 90", "at most 80", "at most 70", "at most 60"]
    assert block.rows[0][2:6] == ["layerwise small", "neurons", "30", "85.0"] and "no condition" in block.rows[3][2]
    assert [row[-2] for row in block.rows] == ["shadow small p<.001", "static undecided", "only method", "-"]
    timed = frames["latency"].query("mode == 'static' and sparsity_pct == 50")["ms_per_token"].iloc[0]
    assert block.rows[2][-1].startswith(f"{timed:.2f} (9.2") and block.rows[0][-1] == "-"  # its bits were not timed


def test_bytes_are_drawn_where_they_were_counted_and_dominated_conditions_are_not(frames):
    rows = frames["perplexity"].assign(read_share=np.nan)
    reason = FIGURES["quality_per_byte"](frames | {"perplexity": rows}, MODEL)
    assert isinstance(reason, str) and "bytes" in reason
    rows = pd.DataFrame({"read_share": [0.9, 0.8, 0.7, 0.8], "value": [1.5, 1.2, 2.0, 1.3]})
    assert list(undominated(rows).index) == [1, 2]
    assert "oracle" not in texts(FIGURES["quality_per_byte"](frames, MODEL))


def test_the_published_designs_are_drawn_however_many_methods_are_better(frames):
    rows = frames["perplexity"]
    static = rows[rows["method"] == "static"]
    better = [static.assign(method=f"new{i}", value=static["value"] / (9 - i)) for i in range(7)]
    found = texts(FIGURES["quality_per_byte"](frames | {"perplexity": pd.concat([rows, *better])}, MODEL))
    drawn = {*rows["method"], *(f"new{i}" for i in range(7))} & set(found) - {"dense"}
    assert {"shadow", "layerwise", "new0"} <= drawn and len(drawn) == 6
