"""Two runs beside each other: a run equals itself, paired shifts show, chance does not, bad input is told."""

import numpy as np
import pandas as pd
import pytest
from conftest import refused
from made_study import MODEL, criteria_rows, latency_rows, outcomes, predictor_rows, quality_rows

from shadowcore import artifacts, cli
from shadowcore.measure.statistics import two_sided_p
from shadowcore.report import changes, tables
from shadowcore.schemas import CONDITION, FINAL_TABLES, MEASURED, OUTCOMES


def write_study(folder, documents, kept=True, **more):
    """A study's folder of these outcomes, which it keeps or not, and of other tables by name."""
    rows = {"perplexity": tables.perplexity(documents), "accuracy": tables.accuracy(documents)} | more
    for name, made in rows.items():
        table = made if isinstance(made, pd.DataFrame) else pd.DataFrame(made)
        table = FINAL_TABLES[name].build(table.astype(object).where(table.notna(), None).to_dict("records"))
        artifacts.write_table(folder / f"tables/{name}.parquet", FINAL_TABLES[name].schema, table, {})
    if kept:
        table = OUTCOMES.build(documents.astype(object).where(documents.notna(), None).to_dict("records"))
        artifacts.write_table(folder / "tables/outcomes.parquet", OUTCOMES.schema, table, {})
    return folder


@pytest.fixture(scope="module")
def documents():
    rows = outcomes(windows=40, documents=60).to_pandas()
    return rows[rows["criterion"].isin(["plainact"]) | (rows["method"] == "dense")]


@pytest.fixture(scope="module")
def old(documents, tmp_path_factory):
    return write_study(
        tmp_path_factory.mktemp("old"), documents, quality=quality_rows(), predictors=predictor_rows(),
        criteria=criteria_rows(), latency=latency_rows(),
    )  # fmt: skip


def of(found, table):
    return next(one for one in found if one.table == table)


def shifted(documents, nats):
    """Shadow at 50 % worse by `nats` a token, in every window alike but for a tenth of it."""
    rows = documents.copy()
    chosen = (rows["method"] == "shadow") & (rows["sparsity_pct"] == 50) & (rows["metric"] == "nll")
    noise = np.random.default_rng(0).normal(1, 0.1, int(chosen.sum()))
    rows.loc[chosen, "value"] += nats * noise * rows.loc[chosen, "weight"]
    return rows, int(chosen.sum() / 40)


def test_a_run_equals_itself(old):
    for one in changes.compare(old, old):
        assert one.equal > 0 and (one.within, one.unknown, one.moved, one.appeared, one.vanished) == (0, 0, [], [], [])
    assert changes.verdicts(old, old) == []


def test_a_small_shift_shows_where_documents_are_paired_and_only_there(documents, old, tmp_path):
    rows, count = shifted(documents, 0.02)
    assert count == 4  # neurons under two policies, heads, both
    paired = of(changes.compare(old, write_study(tmp_path / "paired", rows)), "perplexity")
    assert len(paired.moved) == paired.paired == count and paired.within == 0
    for one in paired.moved:
        assert one.difference == pytest.approx(np.log(one.new / one.old)) and one.paired and one.p_value < 1e-6
        assert one.difference == pytest.approx(0.02, rel=0.1) and "shadow" in one.what and "50" in one.what
    alone = of(changes.compare(old, write_study(tmp_path / "alone", rows, kept=False)), "perplexity")
    assert (len(alone.moved), alone.within, alone.paired) == (0, count, 0)
    assert paired.equal == alone.equal == len(documents.groupby([*CONDITION, *MEASURED], dropna=False)) - count


def test_a_large_shift_shows_without_pairs_and_in_the_right_direction(documents, old, tmp_path):
    rows, count = shifted(documents, -0.5)
    found = of(changes.compare(old, write_study(tmp_path, rows, kept=False)), "perplexity")
    assert len(found.moved) == count and all(one.new < one.old and one.difference < 0 for one in found.moved)


def test_other_documents_are_not_paired_and_chance_does_not_move_numbers(documents, old, tmp_path):
    other = outcomes(windows=40, documents=60).to_pandas()
    other = other[other["criterion"].isin(["plainact"]) | (other["method"] == "dense")]
    other["document"] += "-again"
    noise = np.random.default_rng(5).normal(0, 0.25 / 40**0.5, len(other))
    other["value"] += noise * other["weight"] * (other["metric"] == "nll")
    found = of(changes.compare(old, write_study(tmp_path, other)), "perplexity")
    assert found.paired == 0 and found.moved == [] and found.within > 10


def test_what_is_one_value_in_either_run_names_the_runs(documents, old, tmp_path):
    latency = pd.DataFrame(latency_rows()).assign(device="Another")
    latency.loc[latency["mode"] == "shadow", ["ms_per_token", "ms_p10", "ms_p90"]] *= 2
    new = write_study(tmp_path, documents.assign(seed=1), latency=latency)
    found = list(changes.compare(old, new))
    assert of(found, "perplexity").named == {"seed": ("0", "1")} and not of(found, "perplexity").appeared
    timed = of(found, "latency")
    assert timed.named == {"device": ("Processor, 2 cores", "Another")}
    assert {one.what.split()[0] for one in timed.moved} == {"shadow"} and len(timed.moved) == 3


def test_rows_that_come_and_go_and_errors_nobody_knows(documents, old, tmp_path):
    predictors = pd.DataFrame(predictor_rows())
    predictors.loc[0, "loss"] += 0.1
    kept = documents[documents["method"] != "oracle"]
    new = write_study(tmp_path, kept, predictors=predictors)
    found = list(changes.compare(old, new))
    assert len(of(found, "perplexity").vanished) == 3 and all(
        "oracle" in one for one in of(found, "perplexity").vanished
    )
    assert len(of(changes.compare(new, old), "perplexity").appeared) == 3
    assert (of(found, "predictors").unknown, of(found, "predictors").equal) == (1, 1)
    assert of(found, "quality").equal == 0 and len(of(found, "quality").vanished) == len(list(quality_rows()))


def test_outcomes_with_a_wrong_column_are_refused_with_the_files_name(documents, old, tmp_path):
    new = write_study(tmp_path, documents)
    path = new / "tables/outcomes.parquet"
    kept = artifacts.read_table(path, OUTCOMES.schema).replace_schema_metadata(None)
    wrong = kept.set_column(kept.column_names.index("weight"), "weight", kept["weight"].cast("double"))
    for table, found in ((wrong, "is double; it must be int64"), (kept.drop_columns("value"), "is missing")):
        artifacts.write_table(path, OUTCOMES.schema, table, {})
        refused([str(path), found], list, changes.compare(old, new))


def test_p_is_that_of_a_normal():
    assert two_sided_p(1.959963984540054, 1) == pytest.approx(0.05) == two_sided_p(-0.1959963984540054, 0.1)
    assert (two_sided_p(0, 0), two_sided_p(1e-9, 0)) == (1, 0) and np.isnan(two_sided_p(1, np.nan))


def test_it_is_a_command(documents, old, tmp_path, capsys):
    rows, _ = shifted(documents, 0.02)
    assert cli.main(["diff", str(old), str(write_study(tmp_path / "new", rows))]) == 0
    said = capsys.readouterr().out
    assert "4 moved" in said and "paired" in said and "+2." in said and MODEL not in said
    assert cli.main(["diff", str(old), str(tmp_path / "nowhere")]) == 2
    assert "nowhere/tables: no such folder" in capsys.readouterr().err
