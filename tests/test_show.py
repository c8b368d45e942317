"""The answer of a study and its tables as blocks of words, in the terminal."""

import io
import math
import re

import pandas as pd
import pytest
from conftest import ROOT, refused
from made_study import CALIBRATION, COST, MODEL, final_tables, write_tables
from rich.console import Console
from test_tables import counted

from shadowcore import artifacts
from shadowcore.commands import show
from shadowcore.report import answer, blocks, budgets
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.drawn import SCHEMA
from shadowcore.report.outcomes import grouped
from shadowcore.report.tables import frame
from shadowcore.schemas import BEST_AT_BYTES

PLACE = ["data", "task", "units", "policy", "criterion", "sparsity_pct"]


@pytest.mark.parametrize("name, best", [("perplexity", min), ("accuracy", max)])
def test_the_answer_is_the_best_method_of_every_question_and_what_it_differs_by(frames, name, best):
    def apart(row, value):
        return math.log(row["value"] / value) if name == "perplexity" else row["value"] - value

    rows = frames[name].query("fewshot != 4 and method not in ['dense', 'random', 'oracle']")
    answers = answer.ordered(answer.best(frames, MODEL, name))
    assert len(answers) == rows.groupby(PLACE).ngroups
    for one in answers:
        same = rows[(rows[PLACE] == [one.row[key] for key in PLACE]).all(axis=1)]
        assert one.row["value"] == best(same["value"])
        if one.row["task"] == "copa":  # this made-up task has no comparisons
            continue
        dense = frames[name].query("method == 'dense' and task == @one.row['task']")["value"].iloc[0]
        assert one.dense["difference"] == pytest.approx(apart(one.row, dense))
        if one.against_next and one.runner_up["predictor"] in (None, "small"):
            pair = one.against_next
            assert pair["difference"] == pytest.approx(apart(one.row, one.runner_up["value"]))
            assert pair["low"] <= pair["difference"] <= pair["high"]


def snippets(folder):
    """What the two code blocks of docs/results.md have computed for a study."""
    text = (ROOT / "docs" / "results.md").read_text().replace("results/quick", str(folder))
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "outcomes.parquet" in code:  # test_tables.py runs that one
            continue
        found = {}
        exec(code, found)
        yield found


@pytest.mark.parametrize("winner", ["layerwise", "proxy4"])  # proxy4 has neither criterion nor predictor
def test_the_snippets_of_the_documentation_find_the_best_method_and_its_pairs(tmp_path, documents, winner):
    table = documents.to_pandas().replace({"calibration": {CALIBRATION: "wikipedia"}})  # the text of the snippets
    if winner == "proxy4":
        proxy = table[(table["method"] == "oracle") & (table["criterion"] == "plainact")]
        named = {"method": "proxy4", "criterion": None, "predictor": None}
        table = pd.concat([table, proxy.assign(**named)], ignore_index=True)
    tables = final_tables(table)
    write_tables(tmp_path, tables)
    frames = {name: frame(one) for name, one in tables.items()}
    (same,) = (
        one for one in answer.leading(answer.ordered(answer.best(frames, MODEL, "perplexity")))
        if one.row["sparsity_pct"] == 50 and one.row["method"] == winner and one.row["criterion"] != "l2_norm"
    )  # fmt: skip
    table, pairs = snippets(tmp_path)
    assert (pairs["best"]["method"], pairs["best"]["difference"]) == (winner, same.dense["difference"])
    found = pairs["pairs"].set_index(["reference", "reference_criterion"])["difference"]
    assert found.index.is_unique and found["static", "plainact"] == same.static["difference"]
    assert set(found[found > 0].index) <= {("oracle", "plainact"), ("oracle", "l2_norm")}
    assert {"random", "static", "shadow"} - {winner} <= set(found.index.get_level_values(0))
    assert len(table["chosen"]) == 9 + (winner == "proxy4")  # random, and two criteria of four methods


def test_the_snippets_of_the_documentation_run_on_the_reference_tables(capsys):
    table, pairs = snippets(ROOT / "results" / "reference" / "smollm2")
    assert len(pairs["pairs"]) == len(table["chosen"]) - 1 and pairs["best"]["method"] == "threshold"  # all others
    said = capsys.readouterr().out
    assert "each_1_tuned" in said and "…" not in said and " ... " not in said  # whole


def test_answers_say_the_share_of_bytes_that_the_best_method_reads(frames):
    for block in blocks.answers(frames, everything=True):
        places = block.words.index("% removed"), len(block.words) + block.numbers.index("% bytes read")
        for row in block.rows:
            assert len(row) == len(block.words) + len(block.numbers)
            pct, share = (float(row[place]) for place in places)  # of neurons, of heads, of both
            assert min(abs(100 - weights * pct * 11 / 12 - share) for weights in (0.6, 0.1, 0.7)) < 0.051


def test_a_lucky_draw_of_the_calibration_text_changes_no_answer(frames):
    lucky = {}
    for name, value in (("perplexity", "value"), ("comparisons", "difference")):
        draw = frames[name][frames[name]["method"] == "shadow"].assign(calibration="a draw")
        lucky[name] = pd.concat([frames[name], draw.assign(**{value: draw[value] * 0.1})], ignore_index=True)
    answers = [repr(list(answer.best(frames | more, MODEL, "perplexity"))) for more in ({}, lucky)]
    assert answers[0] == answers[1] and "a draw" not in answers[0]


def test_a_short_answer_is_of_the_first_units_and_policy(frames):
    short = answer.leading(answer.ordered(answer.best(frames, MODEL, "perplexity")))
    assert {(one.row["units"], one.row["policy"]) for one in short} == {("neurons", "per_layer")} and len(short) == 6
    assert {one.row["sparsity_pct"] for one in answer.leading(short * 9)} == {50}


def printed(folder, width=80, **options):
    console = Console(file=io.StringIO(), width=width)
    show.show(folder, console, **options)
    return console.file.getvalue()


def test_show_prints_every_table_whole_in_any_terminal(results, frames):
    text = printed(results, width=60, everything=True)
    assert "…" not in text and text.count("\n") > len(frames["perplexity"]["method"]) / 3
    dense = frames["perplexity"].query("method == 'dense'").iloc[0]
    assert f"{dense['value']:.1f} ± {dense['stderr']:.1f}" in text
    for heading in ("perplexity", "Accuracy", "McNemar", "Recall", "Milliseconds", "not attempted", "figures in"):
        assert heading in text


def test_show_begins_with_the_answer_and_has_a_line_per_method(results):
    record = {"drawn": [], "left_out": {"tasks": "no task"}}
    artifacts.write_record(results / "figures" / f"{MODEL}.json", SCHEMA, record, {})
    lines = printed(results).splitlines()
    assert len(lines) <= 50 and not any("…" in line for line in lines)
    assert "model's bytes" in lines[1] and "best method by perplexity" in "".join(lines[:15])
    assert "layerwise small" in "".join(lines[:15])
    methods = [line.split()[0] for line in lines if line and line.split()[0] in (*COST, "dense", "huggingface")]
    assert methods == ["dense", "huggingface", *COST]
    assert any("tasks (no task)" in line for line in lines) and "--all" in lines[-1]
    assert len(printed(results, brief=True)) < len(printed(results)) < len(printed(results, everything=True))


@pytest.mark.parametrize("options", [{}, {"brief": True}, {"everything": True}], ids=str)
def test_show_of_an_unfinished_or_missing_study(tmp_path, options):
    (tmp_path / "tables").mkdir()
    assert "0 figures" in printed(tmp_path, **options)
    refused("elsewhere/tables: no such folder", printed, tmp_path / "elsewhere", **options)


def test_times_of_other_settings_are_lines_of_their_own_by_number(frames):
    once = frames["latency"]
    settings = [{"prompt_tokens": 1024}, {"prompt_tokens": 128, "predictor_rank": 64}, {"prompt_tokens": 128}]
    found = frames | {"latency": pd.concat([once.assign(**setting) for setting in settings])}
    (times,) = (block for block in blocks.measured(found) if block.title.startswith("Milliseconds"))
    assert not any(" / " in cell for row in times.rows for cell in row)
    places = [times.words.index(name) for name in ("prompt_tokens", "method", "predictor_rank")]
    ranks = [row[places[2]] for row in times.rows if row[places[0]] == "128" and "shadow" in row[places[1]]]
    assert times.rows[0][places[0]] == "128" and ranks == ["64", "512"]


def test_budgets_are_shown_with_their_bytes_and_a_row_where_nothing_reads_as_little(frames):
    rows = BEST_AT_BYTES.build(best_at_bytes(grouped([counted()]))).to_pandas()
    (block,) = budgets.at_bytes(frames | {"best_at_bytes": rows})
    assert [row[1] for row in block.rows] == ["at most 90", "at most 80", "at most 70", "at most 60"]
    assert block.rows[0][2:6] == ["layerwise small", "neurons", "30", "85.0"] and "no condition" in block.rows[3][2]
    assert [row[-2] for row in block.rows] == ["shadow small p<.001", "static undecided", "only method", "-"]
    for row, place in ((0, {"mode": "layerwise", "sparsity_pct": 30}), (2, {"mode": "static", "sparsity_pct": 50})):
        (timed,) = blocks.where(frames["latency"], **place)["ms_per_token"]
        assert block.rows[row][-1].startswith(f"{timed:.{1 if timed >= 10 else 2}f} (9.2")
    other = frames | {"best_at_bytes": rows, "predictors": frames["predictors"].assign(bits=8)}
    assert next(budgets.at_bytes(other)).rows[0][-1] == "-"  # this size was not timed


def test_a_line_of_the_summary_has_perplexity_and_time_of_the_predictor_that_it_names(frames):
    rows = frames["perplexity"]
    factors = rows["predictor"].map({"small": 1, "rank256": 2, "rank128": 3, "less": 4}).fillna(1)
    found = frames | {"perplexity": rows.assign(value=rows["value"] * factors)}
    (block,) = blocks.summaries(found)
    assert block.words == ["method", "predictor"] and "predictor" not in block.note
    lines = [dict(zip([*block.words, *block.numbers], row, strict=True)) for row in block.rows]
    trained = {(line["method"], line["predictor"]): line for line in lines if line["predictor"]}
    assert set(trained) == {
        ("layerwise", "small"),
        *(("shadow", name) for name in ("small", "rank256", "rank128", "less")),
    }
    for (method, predictor), line in trained.items():
        place = {"method": method, "predictor": predictor, "criterion": "plainact", "units": "neurons"}
        place |= {"policy": "per_layer", "sparsity_pct": 50}
        (value,) = blocks.where(found["perplexity"], **place)["value"]
        assert line["ppl\n50 %"] == blocks.number(value)
        (time,) = blocks.where(frames["latency"], mode=method, sparsity_pct=50)["ms_per_token"]
        assert line["ms\n50 %"] == (blocks.number(time) if predictor == "small" else "")  # rank 512 was timed
    (block,) = blocks.summaries(found | {"latency": frames["latency"].assign(units="heads")})
    sparse = [row for row in block.rows if row[0] not in ("dense", "huggingface")]
    assert sparse and not any(heading == "ms\n50 %" for heading in block.numbers)  # times of other units


def test_times_of_predictors_that_are_in_no_table_have_their_size_as_name(frames):
    random = {"weights": "random", "model": "opt-6.7b"}
    wide = frames["latency"].query("mode == 'shadow'").assign(predictor_rank=2048)
    rows = pd.concat([frames["latency"], wide]).assign(**random)
    (block,) = (block for block in blocks.summaries(frames | {"latency": rows}) if block.title.startswith("opt-6.7b"))
    shadow = [row[1] for row in block.rows if row[0] == "shadow"]
    assert shadow == ["rank 2048, 16 bits", "rank 512, 16 bits"] and "weights random" in block.note
