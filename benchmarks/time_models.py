"""Time the models of a study's `latency_random` without Snakemake, for a machine that has only torch and pyarrow.

Where shadowcore is installed, write one specification a line, the smallest model first:

    python benchmarks/time_models.py specs config/published_speed.yaml > specs.jsonl

Then, in the repository's root on the machine with the GPU, run them one after the other (some models, or all):

    python3 benchmarks/time_models.py run specs.jsonl FOLDER [MODEL ...]

FOLDER gets the stage's files, such as opt-13b.1x128+128.summary.parquet. A failed model does not stop the next one.
Then add the times to the tables of a reference folder:

    python benchmarks/time_models.py join results/reference/gpu-h200 FOLDER

Rows that were measured again replace the older ones. The header of each table lists the headers of its parts, so
`shadowcore explain` names the code, commit and versions behind every part. A specification that ran again has only its
new header.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import run as run_command  # noqa: E402

from shadowcore import artifacts  # noqa: E402
from shadowcore.errors import ArtifactError, ConfigError  # noqa: E402
from shadowcore.rules import RULES  # noqa: E402
from shadowcore.schemas import LATENCY, LATENCY_REPEATS, Table  # noqa: E402

PARTS = {"summary": LATENCY, "repeats": LATENCY_REPEATS}  # by the end of a new file's name
MEASURED = ("ttft_ms", "ms_per_token")
KEYS = [name for name in LATENCY_REPEATS.columns if name in LATENCY.columns and name not in MEASURED]
Row = dict[str, Any]


def specifications(config: Path) -> list[dict[str, Any]]:
    """What the study times with random weights: one specification of the stage a model and length."""
    from shadowcore.config import load_study
    from shadowcore.models.published import PUBLISHED

    study = load_study(config)
    timed = sorted(study.timed_dimensions.items(), key=lambda one: PUBLISHED[one[0][0]].multiplied)
    return [spec | {"seed": study.seed} for _, spec in timed]


def run(specs: list[dict[str, Any]], folder: Path) -> list[str]:
    """Run the stage on each specification, in a process of its own so that GPU memory is free again; who failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for spec in specs:
        name = "{model}.{batch}x{prompt_tokens}+{new_tokens}".format(**spec)
        command = [sys.executable, "-m", "shadowcore", "latency-random", "--spec", json.dumps(spec)]
        for output in RULES["latency_random"].outputs:
            command += [f"--{output}", str(folder.resolve() / f"{name}.{output}.parquet")]
        started = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"{name}: exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
        failed += [name] if code else []
    return failed


def read(path: Path, table: Table) -> tuple[list[Row], list[Row]]:
    """Rows of a table and the headers of what it was made from; columns that an older version lacks are null."""
    found = artifacts.read_origin(path)
    schema, header = str(found["schema"]), found["header"]
    if schema.split("/")[0] != table.name:
        raise ArtifactError(f"{path}: schema '{schema}'; it must be a table '{table.name}'")
    return artifacts.read_table(path, schema).to_pylist(), header.get("parts", [header])


def joined(old: list[Row], new: list[Row]) -> list[Row]:
    """The old rows, without those that were measured again, and then the new ones."""
    again = {tuple(row[name] for name in KEYS) for row in new}
    return [row for row in old if tuple(row[name] for name in KEYS) not in again] + new


def join(reference: Path, folder: Path) -> list[str]:
    """Add the files of a folder to both tables of a reference folder; a sentence for each table."""
    told, tables = [], {}
    for end, table in PARTS.items():
        files = sorted(folder.glob(f"*.{end}.parquet"))
        if not files:
            raise ArtifactError(f"{folder}: no file *.{end}.parquet in it; `run` writes such files")
        path = reference / "tables" / f"{table.name}.parquet"
        old, parts = read(path, table) if path.exists() else ([], [])
        rows = old
        for file in files:
            new, headers = read(file, table)
            rows = joined(rows, new)
            again = [header["spec"] for header in headers]
            parts = [*(part for part in parts if part["spec"] not in again), *headers]
        tables[path] = table, table.build(rows), parts
        told.append(f"{path}: {len(old)} rows before, {len(rows)} now, from {len(parts)} parts")
    for path, (table, rows, parts) in tables.items():
        header = {"made by": "python benchmarks/time_models.py join", "parts": parts}
        artifacts.write_table(path, table.schema, rows, header)
    return told


def main(words: list[str]) -> int:
    match words:
        case ["specs", config]:
            print(*map(json.dumps, specifications(Path(config))), sep="\n")
        case ["run", path, folder, *models]:
            specs = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
            if unknown := set(models) - {spec["model"] for spec in specs}:
                raise ConfigError(f"{path}: no model {', '.join(sorted(unknown))} in it")
            failed = run([spec for spec in specs if not models or spec["model"] in models], Path(folder))
            if failed:
                print(f"failed: {', '.join(failed)}")
            return 1 if failed else 0
        case ["join", reference, folder]:
            print(*join(Path(reference), Path(folder)), sep="\n")
        case _:
            raise ConfigError(__doc__)
    return 0


if __name__ == "__main__":
    run_command(main)
