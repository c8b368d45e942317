"""`shadowcore new`: its file is a valid study, has every key and the defaults of the code; and the smoke study."""

import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from shadowcore import cli
from shadowcore.config import load_study, parse_study
from shadowcore.jobs import Jobs
from shadowcore.plan import work
from shadowcore.rules import RULES

sys.path.insert(0, str(ROOT / "benchmarks"))
import config_tables  # noqa: E402

# these have an example in place of their default, because most methods need them
EXAMPLES = {"conditions.criteria", "conditions.predictors"}


def new(name, capsys):
    code = cli.main(["new", name])
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["mine", "123"])
def test_a_new_configuration_is_a_study_of_that_name_and_can_be_planned(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new(name, capsys)[0] == 0
    assert load_study(Path("config") / f"{name}.yaml").study == name
    assert f"results/{name}" in (tmp_path / "config" / f"{name}.yaml").read_text()
    assert cli.main(["plan", f"config/{name}.yaml"]) == 0


def test_nothing_is_overwritten_and_a_name_is_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").write_text("mine")
    for name in ("mine", "../mine", "a b", ""):
        code, printed = new(name, capsys)
        assert code == 2 and "NAME" in printed and printed.count("\n") == 1
    assert [path.read_text() for path in tmp_path.rglob("*.yaml")] == ["mine"]


def test_every_key_of_the_code_is_in_the_template_with_its_meaning_and_no_other():
    keys = {path for path, _ in config_tables.rows(config_tables.SCHEMA, "", {})}
    written = {path: words for path, words in config_tables.meanings().items() if not path.endswith("<name>")}
    assert set(written) == keys and all(written.values())


def test_values_of_the_template_are_the_defaults_of_the_code():
    text = config_tables.TEMPLATE.read_text()
    parse_study(yaml.safe_load(config_tables.switched_on()), "template")  # keys that are switched off are valid, too
    compared = set()

    def compare(schema, values, path):
        for key, one in schema["properties"].items():
            here, inner = f"{path}.{key}".strip("."), config_tables.resolved(one)
            inner = config_tables.resolved(inner.get("items", inner))
            if key not in values:  # switched off
                continue
            if one.get("default") is not None and here not in EXAMPLES:
                assert values[key] == one["default"], here
                compared.add(here)
            named = inner.get("additionalProperties")
            parts = (
                values[key].values() if isinstance(named, dict) else values[key] if "items" in one else [values[key]]
            )
            inner = config_tables.resolved(named) if isinstance(named, dict) else inner
            for part in parts if "properties" in inner else ():
                compare(inner, part, here)

    compare(config_tables.SCHEMA, yaml.safe_load(text), "")
    assert len(compared) > 12


def test_the_smoke_study_has_every_stage_that_needs_neither_downloads_nor_a_gpu(tmp_path):
    study = load_study(ROOT / "config" / "smoke.yaml")  # `offline: true` refuses sources with downloads
    assert study.offline is True
    rules = {one.rule for one in work(Jobs(study, tmp_path), strict=True)}
    assert set(RULES) - rules == {"relufy", "prepare_benchmark", "latency_random"}
