"""The numerics of one machine under several numerical profiles, as if it were several processors.

    python benchmarks/numerical_profiles.py results/quick

A profile is a set of environment variables that makes the libraries under torch add numbers in another order. Under
each one this runs the tests of numerics, the study's latency job and two of its evaluations, and prints how many
near ties the checks let pass and how far the evaluations are from the first profile's. The exit code is 1 if a test
fails or a decoding variant is refused.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from shadowcore import logs

PROFILES: dict[str, dict[str, str]] = {
    "native, 2 threads": {"OMP_NUM_THREADS": "2"},
    "native, 1 thread": {"OMP_NUM_THREADS": "1"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
TESTS = [f"tests/test_{name}.py" for name in ("decoder", "equivalence", "latency", "sparsity", "small")]
TIES = re.compile(r"logits within (\S+), (\d+) near ties of units, (\d+) of tokens")
EVALUATED = ("dense/0", "shadow+*+per_layer+neurons/50")


def run(words: list[str], changes: dict[str, str], outputs: dict[str, Path]) -> str:
    """A stage's command again under a profile, with other output files and threads; what it said."""
    words = list(words)
    for option, value in {**outputs, "threads": changes.get("OMP_NUM_THREADS", "2")}.items():
        words[words.index(f"--{option}") + 1] = str(value)
    done = subprocess.run(
        [sys.executable, "-m", "shadowcore", *words], env=os.environ | changes, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:1])}: {done.stderr.strip().splitlines()[-1]}")
    return done.stderr


def outcomes_of(study: Path, changes: dict[str, str], folder: Path) -> pd.DataFrame:
    """The outcomes of the compared evaluations under a profile, one row a document and metric."""
    parts = []
    for pattern in EVALUATED:
        log = sorted((study / "logs" / "evaluate").glob(f"*/*/{pattern}.log"))[0]
        run(list(logs.read(log).command), changes, {"outcomes": folder / "outcomes.parquet"})
        parts.append(pd.read_parquet(folder / "outcomes.parquet"))
    return pd.concat(parts, ignore_index=True)


def main(study: Path) -> int:
    (log,) = (study / "logs" / "latency").glob("*.log")
    command, rows, first, broken = list(logs.read(log).command), [], None, False
    for name, changes in PROFILES.items():
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", *TESTS],
            env=os.environ | changes,
            capture_output=True,
            text=True,
        )
        if tests.returncode:
            print(tests.stdout, file=sys.stderr)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            files = {one: folder / f"{one}.parquet" for one in ("summary", "repeats", "refused")}
            found = TIES.findall(run(command, changes, files))
            refused = pd.read_parquet(files["refused"])
            outcomes = outcomes_of(study, changes, folder)
        for reason in refused["reason"]:
            print(f"{name}: {reason}", file=sys.stderr)
        broken |= bool(tests.returncode or len(refused))
        first = outcomes if first is None else first
        moved = (outcomes["value"] - first["value"]).abs() / first["value"].abs().clip(lower=1e-12)
        rows.append({
            "profile": name,
            "tests": "passed" if tests.returncode == 0 else "failed",
            "variants": len(found),
            "refused": len(refused),
            "largest error": max(float(error) for error, *_ in found),
            "ties of units": sum(int(units) for _, units, _ in found),
            "ties of tokens": sum(int(tokens) for *_, tokens in found),
            "outcomes not bit-equal": f"{int((moved > 0).sum())} of {len(moved)}",
            "largest change": moved.max(),
        })  # fmt: skip
    print(pd.DataFrame(rows).to_string(index=False))
    return int(broken)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
