"""Submission to clusters: what is asked for, on stub commands; whole studies on a SLURM of one node (marker slurm)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import stub_slurm
import yaml
from test_workflow import ROOT, environment, prepared, results, run_in, tables

PROFILES = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/profile.yaml"))
OPT_30B = {"family": "opt", "layers": 48, "width": 7168, "heads": 56, "neurons": 28672, "vocabulary": 50272}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A machine on which SLURM's commands are stubs; the folder in which they keep their jobs."""
    stub_slurm.install(tmp_path / "bin")
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB_SLURM", str(tmp_path / "queue"))
    return tmp_path / "queue"
