"""The paper's grid times ten is planned in a minute; a million documents become tables in seconds."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT

from shadowcore import manifests
from shadowcore.config import load_study
from shadowcore.costs import LETTERS
from shadowcore.jobs import Jobs
from shadowcore.schemas import MEASURED_TABLES, OUTCOMES

PAPER = ROOT / "config" / "paper.yaml"

pytestmark = pytest.mark.scale


def cost(command, **options):
    """What a command says, the seconds of one processor it takes and the most memory, in bytes."""
    measured = (
        "import json, resource, subprocess, sys, time; start = time.monotonic();"
        "said = subprocess.run(sys.argv[1:], capture_output=True, text=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "seconds = used.ru_utime + used.ru_stime;"
        "print('wall', time.monotonic() - start, 's', file=sys.stderr);"
        "print(json.dumps([said.returncode, said.stdout, said.stderr, seconds, 1024 * used.ru_maxrss]))"
    )
    measuring = [sys.executable, "-c", measured, *map(str, command)]
    done = subprocess.run(measuring, stdout=subprocess.PIPE, text=True, check=True, **options)
    code, out, err, seconds, memory = json.loads(done.stdout)
    assert code == 0, out[-2000:] + err[-2000:]
    return out + err, seconds, memory


def test_ten_times_the_papers_grid_is_planned_in_a_minute(tmp_path):
    study = yaml.safe_load(PAPER.read_text())
    study["models"] = {f"{name}-{copy}": one for name, one in study["models"].items() for copy in range(10)}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(study | {"study": "tenfold"}))
    said, seconds, memory = cost(
        [sys.executable, "-m", "snakemake", "--configfile", tmp_path / "paper.yaml", "--dry-run", "--quiet", "rules",
         "--config", "run_anyway=true"],
        cwd=ROOT,
    )  # fmt: skip
    print(f"dry run: {seconds:.1f} s, {memory / 1e9:.2f} GB")
    total = next(int(line.split()[1]) for line in said.splitlines() if line.startswith("total"))
    print(f"jobs: {total}")
    assert total > 1_500  # 50 evaluation jobs for each of ten copies of the models, of 20,000 conditions
    assert seconds < 60 and memory < 2e9


def written(folder, models):
    """Outcome files of some conditions of the paper's grid, with as many documents as its benchmarks have."""
    jobs, random, paths = Jobs(load_study(PAPER)), np.random.default_rng(0), []
    conditions = [one for one in jobs.conditions if one.model == "opt-1.3b"][::33]
    for number, condition in enumerate([replace(one, model=f"m{i}") for i in range(models) for one in conditions]):
        parts = []
        for task, (documents, *_) in LETTERS.items():
            rolling = task == "wikitext"
            for metric in ("nll", "word_nll", "byte_nll") if rolling else ("acc", "acc_norm"):
                value = random.normal(700, 60, documents) if rolling else random.integers(0, 2, documents)
                keys = asdict(condition) | {
                    "data": task, "sparsity_measured": condition.sparsity_pct / 100, "sparsity_heads": 0.0,
                    "sparsity_neurons": 0.0, "sparsity_weights": 0.0, "read_bytes": 1e9, "read_share": 1.0,
                    "task": task, "metric": metric, "fewshot": None if rolling else 0, "article": None,
                }  # fmt: skip
                keys["document"] = [f"{hash((task, i)) & 0xFFFFFFFFFFFF:012x}" for i in range(documents)]
                keys["value"], keys["weight"] = value.astype(float), np.full(documents, 255 if rolling else 1)
                columns = {
                    name: pa.array(value if np.ndim(value := keys[name]) else [value] * documents, kind)
                    for name, (kind, _) in OUTCOMES.columns.items()
                }
                parts.append(pa.table(columns, schema=OUTCOMES.arrow))
        table = pa.concat_tables(parts).replace_schema_metadata({"schema": OUTCOMES.schema, "header": "{}"})
        path = folder / f"{number}.parquet"
        pq.write_table(table, path)
        paths.append(path)
    return paths


def test_a_million_documents_become_tables_in_seconds_and_more_in_proportion(tmp_path):
    paths = written(tmp_path, 4)
    assert len(paths) == 44
    seconds, memory, rows = {}, {}, {}
    for share in (11, 22, 44):
        rows[share] = sum(pq.read_metadata(path).num_rows for path in paths[:share])
        manifests.write(tmp_path / "all.json", {path.stem: path for path in paths[:share]}, {})
        outputs = [
            part for name in (*MEASURED_TABLES, "outcomes") for part in (f"--{name.replace('_', '-')}", tmp_path / name)
        ]
        _, seconds[share], memory[share] = cost(
            [sys.executable, "-m", "shadowcore", "aggregate", "--evaluations", tmp_path / "all.json", *outputs],
            cwd=ROOT,
        )
        print(f"{rows[share]:,} documents: {seconds[share]:.1f} s, {memory[share] / 1e9:.2f} GB")
    assert rows[22] > 1e6 and seconds[22] < 20 and memory[44] < 2e9
    assert seconds[44] < 4 * seconds[11]
