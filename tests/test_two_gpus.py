"""benchmarks/two_gpus.py on tiny dimensions and two pretended GPUs, which torch does not see."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "two_gpus.py"


@pytest.mark.slow
def test_the_command_writes_what_jobs_stages_and_the_comparison_took(tmp_path):
    study = yaml.safe_load(SCRIPT.with_suffix(".yaml").read_text())
    sizes = {"layers": 3, "width": 16, "heads": 4, "neurons": 32, "vocabulary": 320}
    for model in study["models"].values():
        model["source"]["random"] |= sizes
    study["texts"]["words"] |= {"true_continuation": {"documents": 4, "context_words": 6, "continuation_words": 3}}
    study["traces"] |= {"window_tokens": 80, "windows": 4, "tokens_per_window": 8}
    study["predictors"]["small"] |= {"rank_heads": 4, "rank_neurons": 4, "epochs": 1, "batch": 16}
    study["evaluation"] |= {"windows": 2, "window_tokens": 64}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    gpus = tmp_path / "nvidia-smi"
    gpus.write_text("#!/bin/sh\necho GPU-pretended-0\necho GPU-pretended-1\n")
    gpus.chmod(0o755)
    command = [sys.executable, SCRIPT, "--config", tmp_path / "tiny.yaml", "--results", tmp_path]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, alone, *both = pd.read_parquet(tmp_path / "two-gpus" / "jobs.parquet").to_dict("records")
    assert refused["exit_code"] == 2 and "3 GPUs" in refused["message"]
    assert {one["exit_code"] for one in (alone, *both)} == {0}
    assert {one["gpus"] for one in both} == {"GPU-pretended-0", "GPU-pretended-1"} > {alone["gpus"]}
    compared = pd.read_parquet(tmp_path / "two-gpus" / "compared.parquet").set_index("what")
    assert (compared["apart"] == 0).all() and compared.loc["kept units", "differ"] == 0 and len(compared) == 7
    stages = pd.read_parquet(tmp_path / "two-gpus" / "measured" / "opt-66b.parquet")
    assert not stages["error"].any()
    assert {"trace", "train-predictor", "evaluate", "evaluate-oracle"} < set(stages["stage"])
