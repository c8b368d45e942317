"""The stages of a study: what each does, which jobs it has, what they write, and what they need of a machine.

A new stage is a row here and a module in `shadowcore.stages`. Methods with a rule's name return the specification of a
job (`jobs.Jobs`) and its cost (`costs.Costs`); `inventory.Inventory.names` lists a rule's jobs. The command line, the
rules of Snakemake (workflow/rules/stages.smk), `plan` and `status` read this table, which needs nothing but Python.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PLACE = "{model}/{calibration}"
CARD = {"card": "models/{name}/card.json", "weights": "models/{name}/weights"}
TRACE = {"trace": "traces/{name}.safetensors"}
PREDICTOR = {"predictor": "predictors/{name}.safetensors"} | {
    option: f"predictors/{{name}}.{option}.parquet" for option in ("quality", "training")
}  # fmt: skip
MANIFEST = {"manifest": "outcomes/{name}.json"}
MEASURED = (
    "accuracy", "perplexity", "comparisons", "best_at_bytes", "quality", "predictors", "criteria", "latency",
    "latency_repeats", "refused",
)  # fmt: skip


def _times(folder: str) -> dict[str, str]:
    kinds = {"summary": "", "repeats": ".repeats", "refused": ".refused"}
    return {option: f"{folder}/{{name}}{kind}.parquet" for option, kind in kinds.items()}


@dataclass(frozen=True)
class Rule:
    """One stage.

    does: in a line; outputs: paths below the study's folder, by the option of the stage that names them; job: name of a
    job, made from its wildcards, by default the rule's name.
    memory_mb: of a job without its model's weights; copies: of the weights that it has in memory.
    torch: where it computes with torch, "cpu" or, if there is one, "gpu"; spreads: whether on several, if its model is
    too large for one.
    batches: options for the size of its batch, which is halved when it is tried again.
    temporary: whether its large outputs can be deleted when no job needs them.
    timed: whether it measures time, token by token: nothing else may run then.
    joins: whether it joins the measurements of all jobs, so that it is also made from a part of them.
    """

    does: str
    outputs: dict[str, str]
    job: str = ""
    memory_mb: int = 1000
    copies: float = 0
    torch: Literal["cpu", "gpu"] | None = None
    spreads: bool = False
    batches: tuple[str, ...] = ()
    temporary: bool = False
    timed: bool = False
    joins: bool = False

    @property
    def wildcards(self) -> list[str]:
        """Names of the wildcards, in the order in which methods with the rule's name take them."""
        return re.findall(r"{(\w+)}", self.job)


RULES = {
    "fetch_model": Rule(
        "get a model from its source, checked, as safetensors",
        CARD, "{model}", 1800, copies=4, torch="cpu", temporary=True,
    ),
    "relufy": Rule(
        "replace a model's activation by ReLU and distil the original model into it",
        CARD, "{model}", 3000, copies=1.5, torch="gpu", temporary=True,
    ),
    "prepare_text": Rule(
        "get a text, split it by document, write its multiple-choice task",
        {"documents": "texts/{name}/documents.parquet", "tasks": "texts/{name}/true_continuation.parquet"},
        "{text}", 2000,
    ),
    "prepare_benchmark": Rule(
        "get a benchmark's documents, cut to a seeded subset", {"documents": "tasks/{name}.parquet"}, "{task}", 2000,
    ),
    "check_disjoint": Rule(
        "check that no calibration document is also evaluated",
        {"record": "checks/disjoint/{name}.json"}, "{calibration}+{text}",
    ),
    "trace": Rule(
        "importance scores and predictor features of one shard of a text",
        TRACE, PLACE + "/{split}-{shard}", 1400, copies=3,
        torch="gpu", spreads=True, batches=("batch",), temporary=True,
    ),
    "trace_on_policy": Rule(
        "scores and features of a model under the masks of a predictor",
        TRACE, PLACE + "/{masking}/{split}-{shard}", 1400, copies=3,
        torch="gpu", spreads=True, temporary=True,
    ),
    "average": Rule(
        "mean score of every unit over the calibration windows", {"scores": "scores/{name}.parquet"}, PLACE, 2000,
        torch="cpu",
    ),
    "calibrate_thresholds": Rule(
        "quantiles of the absolute activations of every layer's neurons",
        {"thresholds": "thresholds/{name}.parquet"}, PLACE, 1400, copies=3,
        torch="gpu", spreads=True, batches=("batch",),
    ),
    "train_predictor": Rule(
        "train a predictor and report its ranking quality",
        PREDICTOR, PLACE + "/{trained}", 2500, torch="gpu",
    ),
    "tune_predictor": Rule(
        "tune a predictor on the sparse model that its masks make",
        PREDICTOR, PLACE + "/{tuned}", 1800, copies=4, torch="gpu", spreads=True,
    ),
    "evaluate": Rule(
        "accuracy and perplexity of conditions of one sparsity",
        MANIFEST, "{model}/{data}/{part}", 1400, copies=2,
        torch="gpu", spreads=True, batches=("window_batch", "request_tokens"),
    ),
    "evaluate_oracle": Rule(
        "accuracy and perplexity with the true scores of each example",
        MANIFEST, "{model}/{data}/oracle", 1400, copies=3,
        torch="gpu", spreads=True, batches=("window_batch", "request_tokens"),
    ),
    "latency": Rule(
        "time per token of our decoder, dense and sparse",
        _times("latency"), "{model}", 2800, copies=4, torch="gpu", timed=True,
    ),
    "latency_random": Rule(
        "time per token of a published model's dimensions with random weights",
        _times("latency/random"), "{published}/{lengths}", 5000, torch="gpu", timed=True,
    ),
    "aggregate": Rule(
        "final tables from the measurements of all jobs",
        {name: f"tables/{name}.parquet" for name in (*MEASURED, "outcomes")}, memory_mb=2000, joins=True,
    ),
    "check_tables": Rule(
        "check the final tables for impossible values", {"record": "checks/tables.json"}, joins=True,
    ),
    "judge_claims": Rule(
        "verdicts on the published claims", {"claims": "tables/claims.parquet"}, memory_mb=2000, joins=True,
    ),
    # one job per model, because importing the plotting packages takes longer than drawing a figure
    "draw": Rule(
        "draw a model's figures from the final tables",
        {"drawn": "figures/{name}.json", "figures": "figures/{name}"}, "{model}", joins=True,
    ),
    "write_page": Rule(
        "write a study's page: its figures, tables and origin in one HTML file", {"page": "index.html"}, joins=True,
    ),
}  # fmt: skip


def name_of(rule: str, *values: str) -> str:
    """The name of a job. values: of the rule's wildcards."""
    row = RULES[rule]
    return row.job.format(**dict(zip(row.wildcards, values, strict=True))) or rule


def written(root: Path, rule: str, name: str) -> dict[str, str]:
    """The files and folders that a job writes, by the option of its stage that names them."""
    return {option: f"{root}/{path.format(name=name)}" for option, path in RULES[rule].outputs.items()}


def outputs(root: Path, rule: str, name: str) -> list[Path]:
    """All that a job writes; files that are too large to be hashed have one with their checksum."""
    paths = list(written(root, rule, name).values())
    return list(map(Path, paths + [f"{path}.sha256" for path in paths if path.endswith(".safetensors")]))
