"""The numerics of one machine under several numerical profiles, as if it were several processors.

    python benchmarks/numerical_profiles.py results/quick

A profile is a set of environment variables that makes the libraries under torch add numbers in another order. Under
each one this runs the tests of numerics, the study's latency job and its dense evaluation. It prints how many near
ties the checks let pass, and how far the evaluations are from those of the first profile. The exit code is 1 if a
test fails or a decoding variant is refused, in the study itself or under a profile.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from shadowcore import logs

PROFILES: dict[str, dict[str, str]] = {
    "native, 1 thread": {"OMP_NUM_THREADS": "1"},
    "native, 2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
TESTS = [f"tests/test_{name}.py" for name in ("decoder", "equivalence", "latency", "sparsity", "weight_quantization")]
TIES = re.compile(r"logits within (\S+), (\d+) near ties of units, (\d+) of tokens")
EVALUATED = ("0",)  # sparsities, percent, of the evaluations: the dense one


def run(words: Sequence[str], profile: Mapping[str, str], outputs: Mapping[str, Path]) -> str:
    """A stage's command again under a profile, with other output files and threads; what it printed."""
    changed, words = {**outputs, "threads": profile.get("OMP_NUM_THREADS", "1")}, list(words)
    for option, value in changed.items():
        words[words.index(f"--{option}") + 1] = str(value)
    done = subprocess.run(
        [sys.executable, "-m", "shadowcore", *words], env=os.environ | profile, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"shadowcore {words[0]}: {done.stderr.strip().splitlines()[-1]}")
    return done.stderr


def commands(study: Path, stage: str, *patterns: str) -> list[list[str]]:
    """The commands of a stage's jobs whose logs match the patterns, the first one of each."""
    found = [sorted((study / "logs" / stage).glob(pattern))[0] for pattern in patterns]
    return [list(logs.read(log).command) for log in found]


def tried(study: Path, name: str) -> tuple[dict[str, object], pd.Series, list[str]]:
    """One profile: a row of the printed table, the evaluations' outcomes, and what went wrong."""
    profile = PROFILES[name]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *TESTS],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | profile, capture_output=True, text=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        files = {one: Path(temporary) / f"{one}.parquet" for one in ("summary", "repeats", "refused")}
        (latency,) = commands(study, "latency", "*.log")
        passed = TIES.findall(run(latency, profile, {one: files[one] for one in ("summary", "repeats", "refused")}))
        refused = pd.read_parquet(files["refused"])
        for command in commands(study, "evaluate", *(f"*/*/{pattern}.log" for pattern in EVALUATED)):
            run(command, profile, {"manifest": Path(temporary) / "evaluation.json"})
        parts = [pd.read_parquet(path)["value"] for path in sorted(Path(temporary).glob("*/*.parquet"))]
    row = {
        "profile": name,
        "tests": "failed" if tests.returncode else "passed",
        "variants": len(passed),
        "refused": len(refused),
        "largest error": max((float(error) for error, *_ in passed), default=float("nan")),
        "ties of units": sum(int(units) for _, units, _ in passed),
        "ties of tokens": sum(int(tokens) for *_, tokens in passed),
    }
    wrong = [f"{name}: {reason}" for reason in refused["reason"]]
    return row, pd.concat(parts, ignore_index=True), wrong + ([tests.stdout + tests.stderr] if tests.returncode else [])


def main(study: Path) -> int:
    wrong = list(pd.read_parquet(study / "tables" / "refused.parquet")["reason"])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: tried(study, name), PROFILES))
    first, rows = found[0][1], []
    for row, values, more in found:
        change = (values - first).abs() / first.abs().clip(lower=1e-12)
        rows.append(row | {"outcomes that differ": f"{(change > 0).sum()} of {len(change)}", "by": change.max()})
        wrong += more
    print(pd.DataFrame(rows).to_string(index=False))
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
