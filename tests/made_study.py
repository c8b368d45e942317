"""A made-up study: documents of many conditions, the final tables that the stages make of them, and its folder."""

import itertools
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shadowcore import artifacts
from shadowcore.report import claims, tables
from shadowcore.report.best_at_bytes import best_at_bytes
from shadowcore.report.outcomes import grouped
from shadowcore.schemas import FINAL_TABLES, OUTCOMES, TABLES

MODEL, LAYERS, UNITS = "smollm2-135m", 12, {"heads": 9, "neurons": 96}
LEVELS = (30, 50, 70)
CALIBRATION = "wikipedia-train"
GROUPS = {"shadow": 1, "layerwise": LAYERS - 1}  # of a predictor, by method
TRACED = {"model": MODEL, "calibration": CALIBRATION, "criterion": "plainact"}
# made-up perplexity over dense at LEVELS
COST = {
    "random": (13.0, 250.0, 3000.0), "static": (2.05, 3.9, 9.0), "shadow": (1.65, 2.7, 7.3),
    "layerwise": (1.5, 2.3, 7.0), "oracle": (1.01, 1.05, 1.25),
}  # fmt: skip


def condition(method="dense", criterion=None, policy=None, units=None, sparsity=0):
    """Keys and measured sparsity of one condition."""
    removed = sparsity / 100 * (LAYERS - 1) / LAYERS
    heads, neurons = (removed if units in (kind, "both") else 0.0 for kind in ("heads", "neurons"))
    weights = 0.6 * neurons + 0.1 * heads
    return {
        "model": MODEL, "data": "wikipedia", "calibration": None if method in ("dense", "random") else CALIBRATION,
        "method": method, "criterion": criterion, "predictor": "small" if method in ("shadow", "layerwise") else None,
        "policy": policy, "protocol": None if method == "dense" else "token", "units": units, "sparsity_pct": sparsity,
        "seed": 0, "sparsity_measured": removed, "sparsity_heads": heads, "sparsity_neurons": neurons,
        "sparsity_weights": weights, "read_bytes": 1e8 * (1 - weights), "read_share": 1 - weights,
    }  # fmt: skip


def conditions():
    """Every condition of the made-up study with the factor its perplexity has over dense."""
    yield condition(), 1.0
    for level, sparsity in enumerate(LEVELS):
        for method, cost in COST.items():
            for criterion in ("random",) if method == "random" else ("plainact", "l2_norm"):
                worse = 1.15 if criterion == "l2_norm" else 1.0
                yield condition(method, criterion, "per_layer", "neurons", sparsity), cost[level] * worse
        for method in ("static", "shadow"):
            yield condition(method, "plainact", "global", "neurons", sparsity), COST[method][level] * 0.85
    for (units, worse), method in itertools.product((("both", 1.4), ("heads", 0.6)), ("random", "static", "shadow")):
        criterion = "random" if method == "random" else "plainact"
        yield condition(method, criterion, "per_layer", units, 50), COST[method][1] * worse


def outcomes(model=MODEL, windows=64, documents=400):
    """Documents of the made-up study: one difficulty each, shared by all conditions, and some noise."""
    random = np.random.default_rng(1)
    hardness, margin = random.normal(2.92, 0.25, windows), random.normal(0, 1, documents)
    parts = []
    for keys, factor in conditions():
        nll = 255 * (hardness + math.log(factor) + random.normal(0, 0.05, windows) * (factor > 1))
        noise = random.normal(0, 0.5, documents) * (factor > 1)
        right = (margin + noise < 0.3 - 0.45 * math.log(factor)).astype(float)
        for task, metric, shots, weight, value in (
            ("perplexity", "nll", None, 255, nll), ("true_continuation", "acc", 0, 1, right)
        ):  # fmt: skip
            names = [(f"{task}-{i:04d}", f"article-{i // 2}" if metric == "acc" else None) for i in range(len(value))]
            part = pd.DataFrame(names, columns=["document", "article"]).assign(value=value)
            parts.append(part.assign(**keys, task=task, fewshot=shots, metric=metric, weight=weight))
    table = pd.concat(parts, ignore_index=True).assign(model=model)[list(OUTCOMES.columns)]
    return pa.Table.from_pandas(table, preserve_index=False)


def quality_rows():
    good = {"static": (0.55, 0.30), "shadow": (0.68, 0.45), "layerwise": (0.75, 0.55)}
    for kind, (method, (rank, gain)), layer in itertools.product(UNITS, good.items(), range(1, LAYERS)):
        keys = TRACED | {"method": method, "predictor": None if method == "static" else "small", "seed": 0}
        keys |= {"kind": kind, "layer": layer, "n": 4096, "stderr": 0.004}
        bend = 0.1 * math.cos(layer / 5)
        yield keys | {"sparsity_pct": None, "metric": "spearman", "value": rank + bend}
        for sparsity, metric, policy in itertools.product(LEVELS, ("recall", "precision"), ("global", "per_layer")):
            value = (1 - sparsity / 100 * (1 - gain - bend / 2)) * (1 if policy == "per_layer" else 0.9)
            yield keys | {"sparsity_pct": sparsity, "policy": policy, "metric": metric, "value": value}


def criteria_rows():
    random = np.random.default_rng(2)
    for (kind, count), layer in itertools.product(UNITS.items(), range(LAYERS)):
        for unit, mean in enumerate(random.lognormal(0.05 * layer - 3, 1.2, count)):
            yield TRACED | {"kind": kind, "layer": layer, "unit": unit, "mean": mean, "deviation": mean / 3, "n": 64}


def latency_rows():
    modes = [("dense", None, 0, 9.2), ("huggingface", None, 0, 14.0)]
    for mode, (overhead, gain) in {"static": (0, 0.55), "shadow": (0.5, 0.52), "layerwise": (2.4, 0.5)}.items():
        modes += [(mode, "neurons", level, 9.2 * (1 - gain * level / 100) + overhead) for level in LEVELS]
    shape = {"predictor_rank": 512, "predictor_bits": 16}
    for mode, units, sparsity, ms in modes:
        yield {
            "model": MODEL, "device": "Processor, 2 cores", "backend": "torch", "weights": "pretrained",
            "dtype": "float32", "threads": 2, "mode": mode, "units": units, "sparsity_pct": sparsity, "kv": "kept",
            "batch": 1, "prompt_tokens": 64, "new_tokens": 64, "ms_per_token": ms, "ms_p10": ms * 0.97,
            "ms_p90": ms * 1.06, "ttft_ms": 60.0, "gb_per_token": 0.5, "gb_per_s": 0.5 / ms * 1000, "repeats": 10,
        } | (shape | {"predictor_groups": GROUPS[mode]} if mode in GROUPS else {})  # fmt: skip


def predictor_rows():
    for method, groups in GROUPS.items():
        yield TRACED | {
            "method": method, "seed": 0, "predictor": "small", "base": "small", "rounds": 0, "tuned": False,
            "kind": "neurons", "rank": 512, "groups": groups, "bits": 16, "block": 1, "parameters": 23_000_000,
            "step_bytes": 46_000_000 + 10_000 * groups, "tokens": 100_000, "epochs": 10, "best_epoch": 7,
            "loss_constant": 1.02, "loss": 0.71,
        }  # fmt: skip


def final_tables(documents):
    """All final tables as the stages write them."""
    rows = {
        "accuracy": tables.accuracy(documents), "perplexity": tables.perplexity(documents),
        "comparisons": tables.comparisons(documents), "best_at_bytes": best_at_bytes(grouped([documents])),
        "quality": quality_rows(), "predictors": predictor_rows(), "criteria": criteria_rows(),
        "latency": latency_rows(), "latency_repeats": [], "refused": [],
    }  # fmt: skip
    measured = {name: FINAL_TABLES[name].build(values) for name, values in rows.items()}
    judged = claims.judge({name: tables.frame(table) for name, table in measured.items()}, grouped([documents]))
    return measured | {"claims": FINAL_TABLES["claims"].build(judged)}


def write_tables(folder, built, header=None):
    """The tables of a study's folder; returns their paths."""
    paths = [folder / "tables" / f"{name}.parquet" for name in built]
    for path, (name, table) in zip(paths, built.items(), strict=True):
        artifacts.write_table(path, TABLES[name].schema, table, header or {})
    return paths


@pytest.fixture(scope="session")
def documents():
    return outcomes()


@pytest.fixture(scope="session")
def built(documents):
    return final_tables(documents)


@pytest.fixture(scope="session")
def frames(built):
    """The final tables of the study, and of one that showed examples and trained several predictors."""
    frames = {name: tables.frame(table) for name, table in built.items()}
    accuracy = frames["accuracy"]
    more = [accuracy.assign(fewshot=4), accuracy.assign(task="copa", data="copa")]
    frames["accuracy"] = pd.concat([accuracy, *more], ignore_index=True)
    kinds = {"rank256": {"rank": 256}, "rank128": {"rank": 128}, "less": {"rank": 128, "tokens": 10_000}}
    for table in ("perplexity", "predictors"):
        rows = frames[table]
        others = [rows[rows["method"] == "shadow"].assign(predictor=name, **kind) for name, kind in kinds.items()]
        frames[table] = pd.concat([rows, *others], ignore_index=True)[list(rows)]
    return frames


@pytest.fixture
def results(built, tmp_path):
    """The study's folder with its tables."""
    write_tables(tmp_path, built)
    return tmp_path
