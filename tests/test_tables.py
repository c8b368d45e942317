"""The final tables of a made-up study: estimates, comparisons, the best at a budget of bytes, and impossible values."""

import math
import re
from dataclasses import fields
from pathlib import Path

import join_outcomes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import refused
from made_study import CALIBRATION, MODEL, condition, conditions, final_tables, outcomes, write_tables

from shadowcore import artifacts, cli, manifests
from shadowcore.errors import ArtifactError, ConfigError
from shadowcore.report import checks, tables
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.outcomes import grouped
from shadowcore.rules import RULES
from shadowcore.schemas import FINAL_TABLES, OUTCOMES
from shadowcore.stages import aggregate

ROW_KEYS = ("model", "method", "criterion", "policy", "units", "sparsity_pct", "metric")
MAKERS = {"accuracy": tables.accuracy, "perplexity": tables.perplexity, "comparisons": tables.comparisons}
INTERVAL = ["difference", "low", "high"]
RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
REFERENCE = Path(__file__).parents[1] / "results" / "reference"
LARGE = ("relu", "smollm2")  # studies whose estimates take half a minute


def by(rows, *keys):
    """A mapping from the keys of rows to the rows, floats as they are."""
    return {tuple(row[key] for key in keys): row for row in rows}


def picked(rows, **equal):
    """Rows whose columns equal the values, or are among them."""
    for name, value in equal.items():
        rows = rows[rows[name].isin(value if isinstance(value, (list, tuple)) else [value])]
    return rows


@pytest.fixture(scope="module")
def rows(documents):
    return documents.to_pandas()


# ---- estimates and comparisons


def test_every_condition_has_its_rows(documents):
    count = sum(1 for _ in conditions())
    assert len(tables.accuracy(documents)) == len(tables.perplexity(documents)) == count
    found = pd.DataFrame(tables.comparisons(documents))
    across = found["reference_criterion"].notna() & (found["reference_criterion"] != found["criterion"])
    # at 3 sparsities: static, shadow, layerwise and oracle with another criterion, and layerwise with either of shadow
    assert across.sum() == 2 * 3 * (4 + 2)
    # of each metric; at 3 sparsities 4 methods of 2 criteria and random, and shadow and static under the global policy;
    # "both" and "heads" have random, static and shadow
    expected = {"dense": count - 1, "random": 3 * 4 * 2 + 2 * 2, "static": 3 * (3 * 2 + 1) + 2}
    expected |= {"shadow": 3 * 2 * 2, "layerwise": 3 * 2}
    assert found[~across]["reference"].value_counts().to_dict() == {name: 2 * n for name, n in expected.items()}


def test_estimates_are_those_of_the_documents(documents, rows):
    chosen = picked(rows, method="shadow", policy="global", sparsity_pct=50)
    windows, answers = picked(chosen, metric="nll"), picked(chosen, metric="acc")
    name = (MODEL, "shadow", "plainact", "global", "neurons", 50)
    perplexity = by(tables.perplexity(documents), *ROW_KEYS)[*name, "token_perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(windows["value"].sum() / windows["weight"].sum()))
    assert (perplexity["n"], perplexity["counted"]) == (64, 64 * 255)
    assert by(tables.accuracy(documents), *ROW_KEYS)[*name, "acc"]["value"] == answers["value"].mean()


def test_differences_are_differences_of_estimates(documents):
    accuracy, perplexity = (by(make(documents), *ROW_KEYS) for make in (tables.accuracy, tables.perplexity))
    dense = (MODEL, "dense", None, None, None, 0)
    compared = tables.comparisons(documents)
    for key, row in by([row for row in compared if row["reference"] == "dense"], *ROW_KEYS).items():
        if key[-1] == "acc":
            expected = accuracy[key]["value"] - accuracy[*dense, "acc"]["value"]
        else:
            values = [perplexity[*name, "token_perplexity"]["value"] for name in (key[:-1], dense)]
            expected = math.log(values[0] / values[1])
        assert row["difference"] == pytest.approx(expected) and row["low"] <= row["difference"] <= row["high"]
    # and of two methods, the difference of their differences to dense
    keys = ("method", "criterion", "policy", "units", "sparsity_pct", "metric", "reference", "reference_criterion")
    found = by(compared, *keys)
    for (method, criterion, *place, reference, other_criterion), row in found.items():
        if reference != "dense":
            other = found[reference, other_criterion or "random", *place, "dense", None]["difference"]
            apart = found[method, criterion, *place, "dense", None]["difference"] - other
            assert row["difference"] == pytest.approx(apart, abs=1e-12)
    shown = {row["predictor"] for row in compared if (row["method"], row["reference"]) == ("oracle", "shadow")}
    assert shown == {"small"}


def test_corrected_p_values_are_those_of_their_family(documents):
    found = pd.DataFrame(tables.comparisons(documents)).query("metric == 'acc'")
    for _, family in found.groupby("reference"):
        smallest = family.loc[family["p_value"].idxmin()]
        assert smallest["p_holm"] == min(1, len(family) * smallest["p_value"])
        assert (family["p_value"] <= family["p_holm"]).all() and (family["p_holm"] <= 1).all()


def test_perplexities_over_tokens_words_and_bytes_are_of_one_likelihood(rows):
    rows = picked(rows, metric="nll").assign(task="wikitext", data="wikitext", fewshot=0)
    counts = {"nll": 1, "word_nll": 0.75, "byte_nll": 4}
    rolling = [rows.assign(metric=name, weight=(rows["weight"] * per).astype(int)) for name, per in counts.items()]
    found = pd.DataFrame(tables.perplexity(pd.concat(rolling)))
    assert checks.check({"perplexity": found}) == []
    wide = found.pivot(index=[*ROW_KEYS[1:-1]], columns="metric", values="value")
    words = 255 / int(255 * 0.75)
    assert np.log(wide["word_perplexity"]).to_numpy() == pytest.approx(np.log(wide["token_perplexity"]) * words)
    found.loc[7, "value"] *= 1.001
    refused("must agree", checks.check, {"perplexity": found})


@pytest.mark.parametrize("name", MAKERS)
def test_order_of_documents_and_another_model_change_nothing(name):
    few = outcomes(windows=8, documents=16)
    alone = MAKERS[name](few)
    assert MAKERS[name](few.to_pandas().sample(frac=1, random_state=0)) == alone
    both = MAKERS[name](pa.concat_tables([few, outcomes("another", 8, 16)]))
    assert [row for row in both if row["model"] == MODEL] == alone and len(both) == 2 * len(alone)


def test_rows_fit_their_schemas_and_survive_a_file(built, tmp_path):
    empty = tables.read(tmp_path / "tables")  # tables that were not written
    assert {name: list(table) for name, table in empty.items()} == {n: list(t.columns) for n, t in FINAL_TABLES.items()}
    assert not any(map(len, empty.values()))
    write_tables(tmp_path, built)
    for name, table in tables.read(tmp_path / "tables").items():
        pd.testing.assert_frame_equal(table, tables.frame(built[name]))


def test_dense_is_paired_by_seed_and_not_needed(rows):
    compared = tables.comparisons(rows[rows["method"] != "dense"])
    assert compared and not any(row["reference"] == "dense" for row in compared)
    pair = picked(rows, method=["dense", "oracle"], sparsity_pct=[0, 30])
    other = pair.assign(seed=1)
    both = tables.comparisons(pd.concat([pair, other]))
    assert [row for row in both if row["seed"] == 0] == tables.comparisons(pair)
    with pytest.raises(ArtifactError, match=r"its seed is 2, where dense was run with \[0, 1\]"):
        tables.comparisons(pd.concat([pair, other, picked(pair, method="oracle").assign(seed=2)]))
    with pytest.raises(ArtifactError, match="dense .*seed 0"):
        tables.comparisons(pd.concat([pair, picked(pair, method="dense").assign(calibration=CALIBRATION)]))


def test_trained_seeds_are_compared_with_what_is_not_trained_and_their_spread_is_told(rows):
    rows = picked(rows, method=["dense", "static", "shadow", "layerwise"], criterion=["plainact", None], metric="nll")
    rows = picked(rows, sparsity_pct=[0, 50], units=["neurons", None], policy=["per_layer", None])
    again = picked(rows, method=["shadow", "layerwise"]).assign(seed=7)
    both = pd.concat([rows, again.assign(value=again["value"] * 1.1)])
    found = pd.DataFrame(tables.comparisons(both)).set_index(["method", "reference", "seed"]).sort_index()
    # every seed beside dense and static of the study's seed, trained methods beside those of their own seed
    assert set(found.index) == {
        ("static", "dense", 0), *(("shadow", other, seed) for other in ("dense", "static") for seed in (0, 7)),
        *(("layerwise", other, seed) for other in ("dense", "static", "shadow") for seed in (0, 7)),
    }  # fmt: skip
    once = pd.DataFrame(tables.comparisons(rows)).set_index(["method", "reference"])["difference"]
    for (method, reference, _), row in found.iterrows():
        first, second = found.loc[(method, reference)]["difference"].iloc[[0, -1]]
        assert first == once[method, reference] and row["seeds"] == (1 if method == "static" else 2)
        assert math.isnan(row["seed_deviation"]) or row["seed_deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    measured = by(tables.perplexity(both), "method", "seed")
    assert (measured["static", 0]["seeds"], measured["static", 0]["seed_deviation"]) == (1, None)
    assert measured["shadow", 7]["seeds"] == 2 and measured["shadow", 7]["seed_deviation"] > 0


# ---- the file with the outcomes of all documents


# this study has no tasks, and only conditions under lookahead, which are never the best
EMPTY = {"heads-cpu": ("accuracy", "best_at_bytes")}


def computed_again(folder):
    """Every estimate and interval of a folder of tables is what docs/results.md computes from its outcomes."""
    example = re.search(r"```python\n(from pathlib[^`]*outcomes.parquet.*?)```", RESULTS.read_text(), re.DOTALL)[1]
    exec(example.replace("results/quick/tables", str(folder)), names := {})
    assert names["again"].keys() == {"accuracy", "perplexity", "comparisons", "best_at_bytes"}
    for name, table in names["again"].items():
        assert table.equals(FINAL_TABLES[name].read(folder / f"{name}.parquet")), folder
        assert table.num_rows or name in EMPTY.get(folder.parent.name, ()), folder


KEPT = sorted(path.parts[-3] for path in REFERENCE.glob("*/tables/outcomes.parquet"))


@pytest.mark.parametrize("study", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in KEPT])
def test_intervals_of_our_runs_can_be_computed_again_from_their_outcomes(study):
    computed_again(REFERENCE / study / "tables")


def test_every_interval_can_be_computed_again_from_kept_outcomes(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(aggregate, "AT_ONCE", 1500)  # several parts
    documents = documents.cast(OUTCOMES.arrow)
    size, files = len(documents) // 9 + 1, {}
    for start in range(0, len(documents), size):
        files[str(start)] = tmp_path / f"{start}.parquet"
        artifacts.write_table(files[str(start)], OUTCOMES.schema, documents.slice(start, size), {})
    manifests.write(tmp_path / "all.json", files, {})
    folder = tmp_path / "study" / "tables"
    folder.mkdir(parents=True)
    outputs = {name: folder / f"{name}.parquet" for name in RULES["aggregate"].outputs}
    nothing = {one.name: () for one in fields(aggregate.Inputs)} | {"evaluations": (tmp_path / "all.json",)}
    aggregate.run(aggregate.Spec(), aggregate.Inputs(**nothing), aggregate.Outputs(**outputs))
    computed_again(folder)
    # an answer that is another one is seen
    table = OUTCOMES.read(outputs["outcomes"]).to_pandas()
    last = table.index[(table["metric"] == "acc") & (table["method"] == "shadow")][0]
    table.loc[last, "value"] = 1 - table.loc[last, "value"]
    changed = aggregate.estimates([table], FINAL_TABLES["predictors"].build([]))
    assert not changed["accuracy"].equals(FINAL_TABLES["accuracy"].read(outputs["accuracy"]))


def test_conditions_measured_later_replace_those_of_named_predictors(documents, tmp_path):
    built = final_tables(documents) | {"outcomes": documents.cast(OUTCOMES.arrow)}
    later = write_tables(tmp_path / "later", built, {"commit": "b"})[0].parent
    schemas = {name: join_outcomes.TABLES[name] for name in join_outcomes.JOINED}
    old = {}
    for name, schema in schemas.items():  # all of one method is missing, and a predictor has other values
        table = built[name].to_pandas()
        table = table[table["method"] != "oracle"]
        if "value" in table:
            table["value"] = table["value"].where(table["predictor"] != "small", 0.0)
        old[name] = pa.Table.from_pandas(table, schema.arrow, preserve_index=False)

    def joined(*again):
        folder = write_tables(tmp_path, built | old, {"commit": "a"})[0].parent
        join_outcomes.join(folder, later, again)
        return folder

    def rows(table):
        return table.to_pandas().sort_values(table.column_names, ignore_index=True)

    folder = joined("small")
    for name in ("accuracy", "perplexity", "comparisons", "best_at_bytes"):
        assert FINAL_TABLES[name].read(folder / f"{name}.parquet").equals(built[name]), name
    for name, schema in schemas.items():
        pd.testing.assert_frame_equal(rows(schema.read(folder / f"{name}.parquet")), rows(built[name]))
        assert artifacts.read_header(folder / f"{name}.parquet")["parts"] == [{"commit": "a"}, {"commit": "b"}]
    # without its name, the older values of the predictor stay
    found = OUTCOMES.read(joined() / "outcomes.parquet").to_pandas()
    assert set(found.loc[found["predictor"] == "small", "value"]) == {0.0}
    before = (folder / "outcomes.parquet").read_bytes()
    with pytest.raises(ConfigError, match="no predictor smal$"):
        join_outcomes.join(folder, later, ["smal"])
    assert (folder / "outcomes.parquet").read_bytes() == before


# ---- predictors of other names


def designs(rows, *named):
    """Documents of dense and of predictors, (method, predictor) each, in one place, every one with noise of its own."""
    place = picked(rows, method="shadow", criterion="plainact", policy="per_layer", units="neurons", sparsity_pct=50)
    parts = [picked(rows, method="dense")]
    for seed, (method, predictor) in enumerate(named):
        random = np.random.default_rng(seed)
        noise = random.normal(1, 0.05, len(place)), random.integers(0, 2, len(place))
        value = place["value"] * np.where(place["metric"] == "nll", *noise)
        parts.append(place.assign(method=method, predictor=predictor, value=value))
    return pd.concat(parts, ignore_index=True)


ROUNDS = {"": (0, False), "1": (1, False), "1_tuned": (1, True), "2": (2, False), "3": (3, False), "tuned": (0, True)}
DESIGNS = [
    *(("layerwise", name) for name in ("each", "each_1", "each_1_tuned", "each_3", "plain")),
    *(("segments", name) for name in ("wide", "wide_1", "wide_1_tuned", "wide_2", "wide_tuned", "bare")),
    ("shadow", "wide"),
]
SIDES = ["method", "predictor", "reference", "reference_predictor"]
ALIKE = [("segments", f"wide{end}", "layerwise", f"each{end}") for end in ("", "_1", "_1_tuned")]


def trainings(named, model=MODEL):
    """Rows of PREDICTORS on what each of these began with."""
    for method, predictor in named:
        base, _, more = predictor.partition("_")
        training = dict(zip(("rounds", "tuned"), ROUNDS[more], strict=True))
        yield {"model": model, "method": method, "predictor": predictor, "base": base} | training


def test_predictors_of_other_names_are_compared_where_they_were_trained_alike(rows):
    def sides(windows, made):
        compared = tables.comparisons(windows, made)
        return sorted(tuple(row[name] for name in SIDES) for row in compared if row["reference"] != "dense")

    windows = picked(designs(rows, *DESIGNS), metric="nll")
    made = list(trainings(DESIGNS))
    same = ("segments", "wide", "shadow", "wide")
    assert sides(windows, made) == sorted([*ALIKE, same])
    # without a round that predictors of both had, nothing says that these two are meant
    apart = windows[~windows["predictor"].isin(["each_1", "wide_1_tuned"])]
    assert sides(apart, made) == [same]
    # nor does another model's
    both = pd.concat([apart, windows.assign(model="another")])
    assert sides(both, [*made, *trainings(DESIGNS, "another")]) == sorted([*ALIKE, same, same])


# ---- documents and tables that cannot be


@pytest.mark.parametrize(("column", "change", "message"), [
    ("document", lambda old: [old.iloc[1], *old.iloc[1:]], "63 in common"),
    ("document", lambda old: ["elsewhere", *old.iloc[1:]], "63 in common"),
    ("weight", lambda old: old - 1, "token counts"),
])  # fmt: skip
def test_documents_that_cannot_be_compared_name_their_condition(rows, column, change, message):
    rows, oracle = rows.copy(), (rows["method"] == "oracle") & (rows["sparsity_pct"] == 50)
    rows.loc[oracle, column] = change(rows.loc[oracle, column])
    refused(f"{MODEL} wikipedia oracle .*{message}", tables.comparisons, rows)


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("accuracy", "value", math.nan, "value is nan"), ("accuracy", "value", 0.12345, "k/n"),
        ("accuracy", "value", 1.0025, "k/n"), ("accuracy", "n", 800, "n is 800"),
        ("perplexity", "value", 0.99, "at least 1"), ("perplexity", "value", math.inf, "finite"),
        ("perplexity", "n", 63, "n is 63"), ("comparisons", "difference", math.nan, "finite"),
        ("latency", "ms_per_token", math.nan, "finite"),
    ],
)  # fmt: skip
def test_unattainable_values_name_table_and_row(frames, name, column, value, message):
    wrong = frames[name].copy()
    wrong.loc[5, column] = value
    refused(f"^table '{name}', row 5 \\({MODEL} .*{message}", checks.check, {name: wrong})


def test_an_impossible_table_ends_its_stage_without_a_record(built, tmp_path, capsys):
    wrong = FINAL_TABLES["accuracy"].build(row | {"value": 0.123} for row in built["accuracy"].to_pylist())
    (path,) = write_tables(tmp_path, {"accuracy": wrong})
    assert cli.main(["check-tables", "--tables", str(path), "--record", str(tmp_path / "record.json")]) == 2
    assert "table 'accuracy', row 0" in capsys.readouterr().err and not (tmp_path / "record.json").exists()


def test_attainable_tables_pass_and_a_model_below_chance_is_a_warning(built, frames):
    assert checks.check(built) == []
    weak = frames["accuracy"].copy()
    dense = (weak["method"] == "dense") & (weak["fewshot"] == 0) & (weak["task"] == "true_continuation")
    weak.loc[dense, "value"] = 0.2
    (warning,) = checks.check({"accuracy": weak})
    assert "dense" in warning and "below chance" in warning


# ---- the best at a budget of bytes

BYTES = {  # method: {sparsity: (share of dense, factor of perplexity)}
    "dense": {0: (1.0, 1.0)},
    "shadow": {30: (0.95, 1.1), 50: (0.8, 1.3)},
    "layerwise": {30: (0.85, 1.2), 50: (0.75, 1.4)},
    "static": {30: (0.8, 1.3), 50: (0.7, 2.0)},  # at 80 % as good as shadow
    "oracle": {50: (0.5, 1.0)},
}


def counted():
    """Documents of conditions whose bytes and perplexities over dense are those of BYTES."""
    easy, parts = np.random.default_rng(3).normal(3, 0.3, 40), []
    for method, line in BYTES.items():
        for sparsity, (share, factor) in line.items():
            place = () if method == "dense" else ("plainact", "per_layer", "neurons", sparsity)
            keys = condition(method, *place) | {"read_share": share, "read_bytes": 1e8 * share}
            noise = np.random.default_rng(sparsity).normal(0, 0.01, 40) * (method != "dense")
            values = 9 * (easy + np.log(factor) + noise)
            part = pd.DataFrame({"document": [f"{i:02d}" for i in range(40)], "article": None, "value": values})
            parts.append(part.assign(**keys, task="perplexity", fewshot=None, metric="nll", weight=9))
    return pd.concat(parts, ignore_index=True)[list(OUTCOMES.columns)]


def at_budgets(rows=None):
    return {row["budget_pct"]: row for row in best_at_bytes(grouped([counted() if rows is None else rows]))}


def test_the_best_at_a_budget_reads_no_more_and_is_paired_with_the_next_method():
    found = at_budgets()
    places = {budget: (row.get("method"), row.get("sparsity_pct")) for budget, row in found.items()}
    assert places == {90: ("layerwise", 30), 80: ("shadow", 50), 70: ("static", 50), 60: (None, None)}
    assert [row["verdict"] for row in found.values()] == ["significant", "undecided", "only method", "none"]
    compared = by(tables.comparisons(counted()), "method", "sparsity_pct", "reference")
    for row in (found[90], found[80]):
        pair = compared[row["method"], row["sparsity_pct"], "dense"]
        assert [row[name] for name in INTERVAL] == [pair[name] for name in INTERVAL]
        assert row["ratio"] == math.exp(row["difference"])
        other = compared[row["next_method"], row["next_sparsity_pct"], "dense"]
        assert row["next_difference"] == pytest.approx(pair["difference"] - other["difference"])
    assert (found[90]["next_method"], found[90]["next_sparsity_pct"]) == ("shadow", 50)
    assert found[90]["p_holm"] == 2 * found[90]["p_value"] and found[90]["next_high"] < 0


@pytest.mark.parametrize("share, best", [(0.8, "shadow"), (0.79, "static")])
def test_of_equals_the_one_that_reads_less_is_the_best_then_the_first_by_name(share, best):
    rows = counted()
    static = (rows["method"] == "static") & (rows["sparsity_pct"] == 30)
    rows.loc[static, "value"] = picked(rows, method="shadow", sparsity_pct=50)["value"].to_numpy()
    rows.loc[static, "read_share"] = share
    row = at_budgets(rows)[80]
    assert (row["method"], row["next_difference"], row["verdict"]) == (best, 0, "undecided")


def test_seeds_are_one_candidate_with_an_interval_over_all():
    rows = counted()
    other = picked(rows, method="layerwise").assign(seed=7)
    once, twice = at_budgets()[90], at_budgets(pd.concat([rows, other.assign(value=other["value"] * 1.001)]))[90]
    assert twice["value"] == pytest.approx(once["value"] * 1.0005) and twice["low"] == once["low"]
    assert twice["high"] > once["high"] and twice["p_value"] >= once["p_value"]


@pytest.mark.parametrize("method, factor, won", [("layerwise", 1.5, 1), ("layerwise", 0.5, 2), ("shadow", 0.1, 1)])
def test_another_draw_is_no_candidate_but_counts_how_often_the_best_wins(method, factor, won):
    rows, once = counted(), at_budgets()
    again = picked(rows, method=["layerwise", "shadow"], sparsity_pct=[30, 50]).assign(calibration="a draw")
    again["value"] *= np.where(again["method"] == method, factor, 1)
    twice = at_budgets(pd.concat([again, rows]))
    assert (twice[90].pop("next_pairs"), twice[90].pop("next_pairs_won")) == (2, won)
    for budget, row in once.items():
        pairs = {"next_pairs": 1, "next_pairs_won": 1} if budget == 90 else {}
        assert row == twice[budget] | pairs
    # of as many conditions of two texts those of the first by name
    every = rows.assign(calibration=rows["calibration"].replace(CALIBRATION, "z"), value=rows["value"] * 0.9)
    every = every[every["method"] != "dense"]
    assert {budget: row.get("calibration") for budget, row in at_budgets(pd.concat([every, rows])).items()} == {
        budget: row.get("calibration") for budget, row in once.items()
    }


def test_a_condition_whose_bytes_were_not_counted_is_no_candidate():
    rows = counted()
    assert at_budgets(rows.assign(read_share=None)) == {}
    some = at_budgets(rows.assign(read_share=rows["read_share"].where(rows["method"] != "layerwise")))
    assert some[90]["method"] == "shadow"
