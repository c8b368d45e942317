"""What holds for the whole tree: layers without circles, no pickle, one set of pins."""

import re
import tomllib
from dataclasses import fields
from importlib import import_module, metadata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shadowcore import provenance
from shadowcore.rules import RULES

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "shadowcore").rglob("*.py")
)
# from the lowest layer up; a module may import from its own layer and those below
LAYERS = [
    names.split()
    for names in """
errors provenance processes rates terminal rules
devices atomic artifacts logs
machine manifests table_schema schemas packaged_files table_reading paragraphs provenance_graph
stock_tasks
benchmarks
texts models
method
decode
measure
report
library
stages
config_types config_file
recipes latency_sections
sections
config
inventory
jobs ownership work
costs
plan
states progress_line
preflight
commands
cli
incomplete __main__
""".strip().splitlines()
]


def layer_of(module: str) -> int:
    name = (module.split(".") + [""])[1]
    return next((i for i, names in enumerate(LAYERS) if name in names), -1)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for imported in provenance.imports(module) - {"shadowcore"}:
        assert layer_of(imported) <= layer_of(module), f"{module} imports {imported}, a layer above"


def test_no_module_stands_on_itself():
    for module in MODULES:
        for imported in provenance.imports(module) - {module}:
            assert module not in provenance.closure(imported), f"{module} and {imported} import each other"


def test_no_pickle_and_no_remote_code():  # in Snakemake's files, too; test_security.py looks at each call
    forbidden = re.compile(
        r"import pickle|pickle\.|torch\.load|torch\.save|trust_remote_code\s*=\s*True|yaml\.load\(|(?<!\.)\beval\("
    )
    for path in [*(ROOT / "shadowcore").rglob("*.py"), ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:
        assert not forbidden.search(path.read_text()), path


@pytest.mark.parametrize("call", [r"load_model|load_tokenizer|from_pretrained", r"cutting\.windows"])
def test_stages_read_models_and_cut_windows_by_inputs_alone(call):
    """Which checks the files of a model, and that a model has positions for its windows."""
    paths = sorted((ROOT / "shadowcore" / "stages").glob("*.py"))
    assert [path.name for path in paths if re.search(rf"\b({call})\b", path.read_text())] == ["inputs.py"]


def test_conda_and_pip_pins_are_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pins = next(part["pip"] for part in conda if isinstance(part, dict))
    assert sorted(pins) == sorted(project["dependencies"] + project["optional-dependencies"]["test"])
    assert all("==" in pin for pin in pins if not pin.startswith("triton"))


def read_constraints():
    """{package: version} of constraints.txt for this platform and Python."""
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    here = [line for line in lines if line.marker is None or line.marker.evaluate()]
    assert all(re.fullmatch(r"==[\w.]+", str(line.specifier)) for line in lines)
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in here}


def requirements_of(name, extras=("",)):
    """What an installed package needs on this platform with one of the extras."""
    for text in metadata.requires(name) or []:
        line = Requirement(text)
        if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in extras):
            yield line


def test_constraints_name_a_version_of_everything_that_is_needed():
    versions, waiting, seen = read_constraints(), [], set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        waiting.append(Requirement(text))
    while waiting:
        line = waiting.pop()
        name = canonicalize_name(line.name)
        # torch's builds differ in these: on a GPU each needs one version, on a CPU none
        if re.match("triton|nvidia-|cuda-", name) or (name, *line.extras) in seen:
            continue
        seen.add((name, *line.extras))
        assert line.specifier.contains(versions[name], prereleases=True), f"{line} and {name} {versions[name]}"
        try:
            waiting += requirements_of(name, line.extras or [""])
        except metadata.PackageNotFoundError:  # of the extra for clusters, which the tests do not install
            continue
    assert {"torch", "numpy", "aiohttp"} <= set(versions)


def test_evaluation_does_not_stand_on_criteria_but_tracing_does():
    assert "shadowcore.method.criteria" not in provenance.closure("shadowcore.stages.evaluate")
    assert "shadowcore.method.criteria" not in provenance.closure("shadowcore.stages.latency")
    assert "shadowcore.method.criteria" in provenance.closure("shadowcore.stages.trace")
    assert "shadowcore.method.criteria" in provenance.closure("shadowcore.stages.evaluate_oracle")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_and_its_stage_name_the_same_files(rule):
    stage, row = import_module(f"shadowcore.stages.{rule}"), RULES[rule]
    used = re.findall(r"\boutputs\.(\w+)", Path(stage.__file__).read_text())
    assert set(used) <= set(row.outputs)
    assert {field.name for field in fields(stage.Spec) if "runtime_only" in field.metadata} == set(row.batches)
