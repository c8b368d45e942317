"""A configuration file that is not YAML, or not a study, is refused in one sentence that names file and line."""

import copy

import pytest
import yaml
from conftest import ROOT, refused

from shadowcore.config import load_study, parse_study
from shadowcore.config_file import read_yaml

QUICK = (ROOT / "tests" / "base_study.yaml").read_text()


@pytest.mark.parametrize(("before", "after", "key", "line"), [
    ("  shards: 2", "  shards: 2\n  windows: 65", "windows", "windows: 65"),
    ("{documents: 24,", "{documents: 24, documents: 25,", "documents", "documents: 25"),
    ("    policies: [global]", "    policies: [global]\n    criteria: [l2_norm]", "criteria", "criteria: [l2_norm]"),
    ("calibration:", "study: other\ncalibration:", "study", "study: other"),
])  # fmt: skip
def test_a_key_that_is_given_twice_is_named_with_its_line(tmp_path, before, after, key, line):
    path, text = tmp_path / "mine.yaml", QUICK.replace(before, after, 1)
    path.write_text(text)
    number = next(number for number, one in enumerate(text.splitlines(), 1) if line in one)
    refused(f"mine.yaml: line {number}:.*'{key}'", load_study, path)


def test_merged_and_shared_parts_are_no_repetition(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": [{"x": 1, "y": 2}] * 2}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (QUICK.replace("  window_tokens: 128", "\twindow_tokens: 128", 1).encode(), ["line 19", "tab"]),
        (QUICK.replace("  windows: 64", "  windows: 64\n   shards: 3").encode(), ["line 21"]),
        (QUICK.replace("study: quick", "study: 'quick").encode(), ["line"]),
        (QUICK.replace("study: quick", "study: !!python/object/apply:os.mkdir [ran]").encode(), ["line 2", "python"]),
        (QUICK.replace("study: quick", "study: @quick").encode(), ["line 2", "@"]),
        ((QUICK + "---\nstudy: other\n").encode(), ["line", "document"]),
        ((QUICK + "1: 2\n").encode(), ["unknown key '1'"]),
        (b"", ["empty"]),
        (b"# nothing but a comment\n", ["empty"]),
        (b"- study\n- quick\n", ["list", "mapping"]),
        (b"quick\n", ["str", "mapping"]),
        (QUICK.encode("utf-16"), ["UTF-8"]),
        ("study: \xe9".encode("latin-1"), ["UTF-8"]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_study_is_one_sentence(tmp_path, monkeypatch, content, names):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert refused(names, load_study, path).startswith(str(path)) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("text", "number"), [("3e-3", 0.003), ("1E-2", 0.01), ("2.e-3", 0.002), ("+1e-3", 0.001)])
def test_an_exponent_without_a_point_is_a_number(tmp_path, text, number):
    path = tmp_path / "mine.yaml"
    path.write_text(QUICK.replace("learning_rate: 0.003", f"learning_rate: {text}"))
    assert load_study(path).predictors["small"].learning_rate == number
    data = yaml.safe_load(path.read_text())  # as Snakemake reads the file
    assert parse_study(data, "config").predictors["small"].training_recipe().learning_rate == number


@pytest.mark.parametrize("text", ["1e999", "3e-3x", "0,003", ".nan", ".inf", "e-3"])
def test_what_is_no_number_is_named(tmp_path, text):
    data = copy.deepcopy(yaml.safe_load(QUICK))
    data["predictors"]["small"]["learning_rate"] = yaml.safe_load(text)
    refused("config: predictors.small.learning_rate: must be", parse_study, data, "config")
