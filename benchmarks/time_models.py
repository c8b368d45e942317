"""Time the models of a study's `latency_random` without Snakemake, for a machine that has only torch and pyarrow.

Where shadowcore is installed, write one specification a line, the smallest model first:

    python benchmarks/time_models.py specs config/published_speed.yaml > specs.jsonl

Then, in the repository's root on the machine with the GPU, run them one after the other (some models, or all):

    python3 benchmarks/time_models.py run specs.jsonl FOLDER [MODEL ...]

FOLDER gets the stage's files, such as opt-13b.1x128+128.summary.parquet. A failed model does not stop the next one.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def specifications(config: Path) -> list[dict[str, Any]]:
    """What the study times with random weights: one specification of the stage a model and length."""
    from shadowcore.config import load_study
    from shadowcore.models.published import PUBLISHED

    study = load_study(config)
    if study.latency_random is None:
        return []
    models = sorted(study.latency_random.models, key=lambda model: PUBLISHED[model].multiplied)
    timed = [spec for model in models for spec in study.latency_random.timed(model).values()]
    return [spec | {"seed": study.seed} for spec in timed]


def run(specs: list[dict[str, Any]], folder: Path) -> list[str]:
    """Run the stage on each specification, in a process of its own so that GPU memory is free again; who failed."""
    from shadowcore.stages.latency_random import Outputs

    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for spec in specs:
        name = "{model}.{batch}x{prompt_tokens}+{new_tokens}".format(**spec)
        command = [sys.executable, "-m", "shadowcore", "latency-random", "--spec", json.dumps(spec)]
        for output in dataclasses.fields(Outputs):
            option = f"--{output.name.replace('_', '-')}"
            command += [option, str(folder.resolve() / f"{name}.{output.name}.parquet")]
        started = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"{name}: exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
        failed += [name] if code else []
    return failed


def main(words: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    if len(words) == 2 and words[0] == "specs":
        for spec in specifications(Path(words[1])):
            print(json.dumps(spec))
        return 0
    if len(words) < 3 or words[0] != "run":
        print(__doc__, file=sys.stderr)
        return 2
    specs = [json.loads(line) for line in Path(words[1]).read_text(encoding="utf-8").splitlines()]
    if unknown := set(words[3:]) - {spec["model"] for spec in specs}:
        print(f"{words[1]}: no model {', '.join(sorted(unknown))} in it", file=sys.stderr)
        return 2
    failed = run([spec for spec in specs if not words[3:] or spec["model"] in words[3:]], Path(words[2]))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
