"""The answer of a study and its tables as blocks of words, in the terminal."""

import io
import math
import re

import pandas as pd
import pytest
from conftest import ROOT, refused
from made_study import COST, MODEL
from rich.console import Console
from test_tables import counted

from shadowcore import artifacts
from shadowcore.commands import show
from shadowcore.report import answer, blocks, budgets
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.drawn import SCHEMA
from shadowcore.report.outcomes import grouped
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


def test_the_snippet_of_the_documentation_finds_the_best_method_and_its_pairs(results, frames):
    text = (ROOT / "docs" / "results.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "p_holm" in code)
    found = {}
    exec(code.replace("results/quick", str(results)), found)
    answers = answer.leading(answer.ordered(answer.best(frames, MODEL, "perplexity")))
    place = {"sparsity_pct": 50, "criterion": "plainact"}
    (same,) = (one for one in answers if place.items() <= one.row.items())
    assert (found["best"]["method"], found["best"]["difference"]) == (same.row["method"], same.dense["difference"])
    pairs = pd.concat([found["won"], found["lost"]]).set_index(["reference", "reference_criterion"])["difference"]
    assert pairs["static", "plainact"] == same.static["difference"]
    assert set(pairs[pairs > 0].index) <= {("oracle", "plainact")}
    assert pairs["layerwise", "l2_norm"] < 0 and pairs["shadow", "l2_norm"] < 0


def test_answers_say_the_share_of_bytes_that_the_best_method_reads(frames):
    for block in blocks.answers(frames, everything=True):
        places = block.words.index("% removed"), len(block.words) + block.numbers.index("% bytes read")
        for row in block.rows:
            assert len(row) == len(block.words) + len(block.numbers)
            pct, share = (float(row[place]) for place in places)  # of neurons, of heads, of both
            assert min(abs(100 - weights * pct * 11 / 12 - share) for weights in (0.6, 0.1, 0.7)) < 0.051


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
    timed = frames["latency"].query("mode == 'static' and sparsity_pct == 50")["ms_per_token"].iloc[0]
    assert block.rows[2][-1].startswith(f"{timed:.2f} (9.2") and block.rows[0][-1] == "-"  # its bits were not timed
