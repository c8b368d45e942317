"""The cluster guide works as it stands: its commands, on a SLURM of one node, with a tiny study for the quick one."""

import re
import subprocess

import pytest
import yaml
from conftest import ROOT
from one_node_slurm import NEEDED, available, one_node
from test_workflow import environment, prepared

GUIDE = ROOT / "docs" / "cluster.md"
WORDS = {"ACCOUNT": "lab", "PARTITION": "main"}


def commands():
    """The guide's commands, capital words filled in: but for those whose block has another name than `sh`."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for word, value in WORDS.items():
        blocks = [re.sub(rf"\b{word}\b", value, block) for block in blocks]
    return blocks


def test_the_guide_names_what_there_is():
    text = GUIDE.read_text()
    for path in (ROOT / "profiles").iterdir():
        assert path.name == "default" or f"profiles/{path.name}" in text


@pytest.mark.slurm
def test_a_newcomer_gets_from_the_guide_to_results(tmp_path):
    if not available():
        pytest.skip(NEEDED)
    (tmp_path / "house").mkdir()
    house = prepared(tmp_path / "house")
    study = yaml.safe_load((house / "config" / "tiny.yaml").read_text()) | {"study": "quick"}
    study.pop("offline")  # the guide fetches
    study["models"] = {"tiny-llama": study["models"]["tiny-llama"]}  # every rule, and few jobs of each
    study["conditions"] = [
        {"methods": ["static", "shadow", "oracle"], "criteria": ["plainact"], "predictors": ["small"],
         "sparsities_pct": [50]}
    ]  # fmt: skip
    (house / "config" / "quick.yaml").write_text(yaml.safe_dump(study))
    profile = house / "profiles" / "slurm" / "profile.yaml"
    # this cluster keeps no accounts, and has two processors
    profile.write_text(profile.read_text().replace("cores: 8", "cores: 2") + "slurm-status-command: squeue\n")
    with one_node(tmp_path / "slurm") as needed:
        for block in commands():
            said = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block], cwd=house, env=environment(house) | needed,
                capture_output=True, text=True, timeout=1500,
            )  # fmt: skip
            assert said.returncode == 0, block + said.stdout[-3000:] + said.stderr[-3000:]
            print(block.split("\n")[0][:100], "...", (said.stdout + said.stderr).strip().splitlines()[-1:])
    assert (house / "results" / "quick" / "tables" / "accuracy.parquet").is_file()
