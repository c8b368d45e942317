"""The kernels compile for GPUs, without one: Triton needs none to compile."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("triton")

# in a process of its own: in this one, kernels are interpreted
SCRIPT = """
import json, sys, torch
sys.path[:0] = ["benchmarks", "."]
from compile_kernels import DESIGNS, SHARED, compiled
capability, dtype, batches = int(sys.argv[1]), getattr(torch, sys.argv[2]), tuple(json.loads(sys.argv[3]))
kernels = compiled(capability, ("opt-tiny", "llama-tiny"), batches, dtype, DESIGNS[:1])
print(json.dumps({"limit": SHARED[capability] * 1024, "kernels": [one._asdict() for one in kernels]}))
"""
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("capability", "dtype", "batches"),
    [
        (90, "bfloat16", [1, 16]),
        (89, "float32", [16]),  # 99 KiB of shared memory
        pytest.param(90, "float16", [64], marks=SLOW),
        pytest.param(80, "bfloat16", [1, 16, 64], marks=SLOW),
        pytest.param(89, "float32", [1, 64], marks=SLOW),
        pytest.param(100, "bfloat16", [1, 64], marks=SLOW),
        pytest.param(120, "bfloat16", [1, 64], marks=SLOW),
    ],
)
def test_kernels_compile_for_a_gpu_and_fit_into_its_shared_memory(capability, dtype, batches, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(capability), dtype, json.dumps(batches)],
        cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"_project", "_accumulate", "_attend", "_settle", "_select"} <= {one["kernel"] for one in found["kernels"]}
    assert [one for one in found["kernels"] if one["shared"] > found["limit"]] == []
