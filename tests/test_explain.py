"""What a file says of its origin: its command, the files behind it as they are now, and bad input."""

import json
import shutil
from contextlib import chdir, redirect_stderr
from pathlib import Path

import pytest
from conftest import refused
from made_study import MODEL, latency_rows, outcomes

from shadowcore import artifacts, cli
from shadowcore.commands.explain import explain
from shadowcore.provenance import file_sha256
from shadowcore.report.tables import perplexity
from shadowcore.schemas import FINAL_TABLES

TABLES_HEADER = {"stage": "aggregate", "inputs": {}, "run": {"commit": "1" * 12, "device": "Pretend GPU"}}
FIGURE = f"figures/{MODEL}/perplexity"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study's folder with tables and one figure, drawn by the command in a folder of its own, with log and times."""
    folder = tmp_path_factory.mktemp("explained")
    root = Path("results/mine")
    rows = {"latency": latency_rows(), "perplexity": perplexity(outcomes(windows=4, documents=1))}
    tables = [root / "tables" / f"{name}.parquet" for name in rows]
    for path, made in zip(tables, rows.values(), strict=True):
        table = FINAL_TABLES[path.stem]
        artifacts.write_table(folder / path, table.schema, table.build(made), TABLES_HEADER)
    words = ["draw", "--spec", json.dumps({"model": MODEL, "figures": [Path(FIGURE).name]}), "--tables", *tables]
    words += ["--drawn", f"{root}/figures/{MODEL}.json", "--figures", f"{root}/figures/{MODEL}"]
    log, times = folder / root / f"logs/draw/{MODEL}.log", folder / root / f"benchmarks/draw/{MODEL}.tsv"
    for path in (log, times):
        path.parent.mkdir(parents=True)
    with open(log, "w") as said, redirect_stderr(said), chdir(folder):
        assert cli.main(list(map(str, words))) == 0
    times.write_text("s\th:m:s\tmax_rss\n3.1\t0:00:03\t200.5\n")
    return folder / root


def told(path):
    """Lines by their word, those of one word joined."""
    found = {}
    for word, line in explain(path):
        found[word] = f"{found[word]}\n{line}" if word in found else line
    return found


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_a_figure_leads_to_its_command_and_files(study, kind, capsys):
    said = told(study / f"{FIGURE}.{kind}")
    assert said["kind"] == "figure/1, made by the stage draw"
    assert said["command"].startswith("python -m shadowcore draw --spec")
    assert f"--figures results/mine/figures/{MODEL}" in said["command"]
    assert said["from"] == f"perplexity: {study}/tables/perplexity.parquet"  # the other one was not looked at
    assert "same as here" in said["code"] and said["took"].startswith("3 s, 200.5 MB")
    assert said["commit"] and said["device"] and "pyarrow" in said["versions"]
    assert said["behind it"] == f"aggregate: 1 file, on Pretend GPU, commit {'1' * 12}"
    assert said["log"] == f"{study}/logs/draw/{MODEL}.log"
    assert cli.main(["explain", str(study / f"{FIGURE}.{kind}")]) == 0
    assert said["kind"] in capsys.readouterr().out


def test_a_log_and_times_lead_to_their_command(study):
    for path in (f"logs/draw/{MODEL}.log", f"benchmarks/draw/{MODEL}.tsv"):
        said = told(study / path)
        assert (
            said["ended"].startswith("finished, on ")
            and "shadowcore draw" in said["command"]
            and "commit" in said["ran on"]
        )


def test_files_that_moved_changed_or_went_are_told_and_without_a_log_their_hashes(study, tmp_path):
    moved = shutil.copytree(study, tmp_path / "elsewhere" / "renamed")
    table = moved / "tables" / "perplexity.parquet"
    hashed = file_sha256(table)[:12]
    assert told(moved / f"{FIGURE}.png")["from"] == f"perplexity: {table}"
    table.write_bytes(table.read_bytes() + b"x")
    assert told(moved / f"{FIGURE}.png")["from"] == f"perplexity: {table} (has changed since)"
    table.unlink()
    assert told(moved / f"{FIGURE}.pdf")["from"] == f"perplexity: {table} (no longer there)"
    said = told(shutil.copy(moved / f"{FIGURE}.png", tmp_path))
    assert "its log, which has" in said["command"] and said["from"] == f"perplexity: 1 file, sha256 {hashed}"


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.png", "no such file"), ("notes.txt", "have no header"), ("damaged.png", "damaged png"),
     ("foreign.json", "no header of this project"), ("logs/old.log", "no command in it"),
     ("benchmarks/lonely.tsv", "no such log")],
)  # fmt: skip
def test_what_cannot_be_explained_is_one_sentence(tmp_path, name, message):
    for path in (tmp_path / "logs", tmp_path / "benchmarks"):
        path.mkdir()
    for other in ("notes.txt", "damaged.png", "logs/old.log", "benchmarks/lonely.tsv"):
        (tmp_path / other).write_text("x")
    (tmp_path / "foreign.json").write_text("{}")
    refused(message, explain, tmp_path / name)
