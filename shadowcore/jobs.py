"""The jobs of a study: the specification and the inputs of each.

A line of YAML below `conditions` becomes a call in three steps: `Grid.combinations` makes a `Condition` of each
combination; `Jobs.evaluate` puts the conditions of one job into the specification for `shadowcore evaluate`; and
`stages.evaluate.sources` looks up the row of each condition's method in `measure.methods.METHODS`, which makes masks.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from shadowcore.benchmarks import BENCHMARKS
from shadowcore.inventory import Inventory
from shadowcore.manifests import ORACLE
from shadowcore.measure.conditions import PredictorId
from shadowcore.measure.methods import METHODS
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.predictors import PREDICTORS, TUNED_PROXIES
from shadowcore.rules import RULES
from shadowcore.schemas import MEASURED_TABLES

Named = dict[str, "str | list[str]"]
Files = dict[str, list[str]]
Spec = dict[str, Any]
MODEL = {"card": "models/{model}/card.json", "weights": "models/{model}/weights"}
CALIBRATION = {"documents": "texts/{calibration}/documents.parquet"}
EVALUATED = MODEL | {
    "documents": "texts/{data}/documents.parquet", "tasks": "texts/{data}/true_continuation.parquet"
}  # fmt: skip
# inputs by option, those with a path of the wildcards alone; `Jobs.inputs` adds the others
INPUTS = {
    "check_disjoint": {
        "calibrated": "texts/{calibration}/documents.parquet", "evaluated": "texts/{text}/documents.parquet"
    },
    "trace": MODEL | CALIBRATION,
    "trace_on_policy": MODEL | CALIBRATION | {"predictor": "predictors/{model}/{calibration}/{masking}.safetensors"},
    "calibrate_thresholds": MODEL | CALIBRATION,
    "train_predictor": {"card": MODEL["card"]},
    "tune_predictor": MODEL | CALIBRATION,
    "evaluate": EVALUATED,
    "evaluate_oracle": EVALUATED,
    "latency": MODEL,
}  # fmt: skip


def as_json(spec: Spec) -> str:
    """A specification as a stage takes it."""
    return json.dumps(spec, sort_keys=True, default=vars)


def options(files: Mapping[str, Any]) -> list[str]:
    """The words of a stage's command that name its files."""
    words = [[f"--{name.replace('_', '-')}", *(one if isinstance(one, list | tuple) else [one])]
             for name, one in files.items() if name != "after"]  # fmt: skip
    return list(map(str, sum(words, [])))


class Jobs(Inventory):
    """Methods with a rule's name return the fields of the specification of one of its jobs, from its wildcards."""

    def spec(self, rule: str, *values: str) -> str:
        """A job's specification as JSON. values: of the rule's wildcards."""
        method = getattr(self, rule, None)
        return as_json(method(*values) if method else {})

    def inputs(self, rule: str, *values: str) -> Files:
        """The files that a job reads, by the option of its stage that names them; `after`: those it only waits for."""
        wildcards = dict(zip(RULES[rule].wildcards, values, strict=True))
        fixed = {option: f"{self.root}/{path}".format(**wildcards) for option, path in INPUTS.get(rule, {}).items()}
        method = getattr(self, f"_{rule}_reads", None)
        named = fixed | (method(*values) if method else {})
        return {option: [paths] if isinstance(paths, str) else paths for option, paths in named.items()}

    def batches(self, rule: str) -> dict[str, int]:
        """Sizes of a rule's batches, by the option of its stage, for a first attempt."""
        traces, evaluation = self.study.traces, self.study.evaluation
        return {name: getattr(traces if name == "batch" else evaluation, name) for name in RULES[rule].batches}

    # ---- models and texts

    def fetch_model(self, model: str) -> Spec:
        kind, source = next(iter(self.study.models[model].source.items()))
        return {"kind": kind, "source": source}

    def relufy(self, model: str) -> Spec:
        named, traces = self.study.models[model], self.study.traces
        return {
            "recipe": named.relufied, "dtype": named.dtype, "windows": traces.windows,
            "heldout_windows": traces.heldout_windows, "window_tokens": traces.window_tokens, "seed": self.study.seed,
        }  # fmt: skip

    def _relufy_reads(self, model: str) -> Named:
        recipe = self.study.models[model].relufied
        teacher = f"{self.root}/models/{recipe.teacher}"
        documents = f"{self.root}/texts/{recipe.text}/documents.parquet"
        return {"teacher_card": f"{teacher}/card.json", "teacher_weights": f"{teacher}/weights", "documents": documents}

    def prepare_text(self, name: str) -> Spec:
        text = self.study.texts[name]
        kind, source = next(iter(text.source.items()))
        return {
            "kind": kind, "source": source, "heldout_fraction": text.heldout_fraction,
            "evaluation_fraction": text.evaluation_fraction, "training_draw": text.training_draw,
            "seed": self.study.seed,
            "task": text.true_continuation and text.true_continuation.model_dump(),
        }  # fmt: skip

    def prepare_benchmark(self, name: str) -> Spec:
        plan, benchmark = self.study.evaluation, BENCHMARKS[name]
        shots = max(plan.fewshot) if benchmark.train and not benchmark.rolling else 0
        return {
            "name": name, "offline_dir": plan.offline_dir, "limit": plan.limit.get(name), "fewshot": shots,
            "seed": self.study.seed,
        }  # fmt: skip

    def check_disjoint(self, calibration: str, data: str) -> Spec:
        return {"calibration": calibration, "data": data}

    def _check_disjoint_reads(self, calibration: str, data: str) -> Named:
        return {"benchmarks": self.benchmarks(data)}

    # ---- traces and what is made of them

    def trace(self, model: str, calibration: str, split: str, shard: str) -> Spec:
        criteria, scored = self.study.traces.criteria, self.study.token_criteria
        readers = [one for one in self.used_predictors if (one.model, one.calibration) == (model, calibration)]
        return self._trace(model, split, shard, criteria, scored, readers)

    def trace_on_policy(self, model: str, calibration: str, masking: str, split: str, shard: str) -> Spec:
        masks, key = self.study.traces.on_policy, self.trained[model, calibration, masking]
        traced = self._trace(model, split, shard, [], [key.criterion], [key])
        return masks.model_dump() | {"trace": traced | {"batch": self.study.traces.batch}, "seed": key.seed}

    def _trace(
        self, model: str, split: str, shard: str, criteria: Iterable[str], token_criteria: Iterable[str],
        readers: Iterable[PredictorId],
    ) -> Spec:  # fmt: skip
        """Specification for one shard of a split, with the features for the predictors `readers`."""
        plan, train = self.study.traces, split == "train"
        recipes = [(one, self.study.recipe_of(one.predictor)) for one in readers if one.method not in TUNED_PROXIES]
        designs = {(one.method, recipe.segments, recipe.examples) for one, recipe in recipes}
        return {
            "split": split, "shard": int(shard), "shards": plan.shards if train else 1,
            "windows": plan.windows if train else plan.heldout_windows, "window_tokens": plan.window_tokens,
            "tokens_per_window": plan.tokens_per_window if train else plan.heldout_tokens_per_window,
            "designs": [{"method": method, "segments": count, "examples": examples}
                        for method, count, examples in sorted(designs, key=lambda one: (one[0], *map(str, one[1:])))],
            "criteria": list(criteria), "token_criteria": list(token_criteria),
            "window_criteria": sorted({one.criterion for one, recipe in recipes if recipe.examples == "windows"}),
            "token_bits": plan.bits if train else 8, "dtype": self.study.models[model].dtype, "seed": self.study.seed,
        }  # fmt: skip

    def average(self, model: str, calibration: str) -> Spec:
        return {"model": model, "calibration": calibration, "criteria": self.study.traces.criteria}

    def _average_reads(self, model: str, calibration: str) -> Named:
        return {"traces": self.shards(f"{model}/{calibration}", "train")}

    def calibrate_thresholds(self, model: str, calibration: str) -> Spec:
        plan = self.study.traces
        calibrated = [one for one in self.conditions if METHODS[one.method].reads == "thresholds"]
        return {
            "model": model, "calibration": calibration, "windows": plan.windows, "window_tokens": plan.window_tokens,
            "methods": sorted({one.method for one in calibrated}),
            "sparsities_pct": sorted({one.sparsity_pct for one in calibrated}),
            "dtype": self.study.models[model].dtype, "seed": self.study.seed,
        }  # fmt: skip

    def train_predictor(self, *place: str) -> Spec:
        key = self.trained[place]
        grids, chain, under = self.study.conditions, self.study.chain(key.predictor), self.traced_under(key)
        policies = sorted({policy for grid in grids if key.method in grid.methods for policy in grid.policies})
        return asdict(key) | {
            "recipe": self.study.recipe_of(key.predictor).training_recipe(),
            "sparsities_pct": sorted({pct for grid in grids for pct in grid.sparsities_pct}),
            "policies": policies or ["per_layer"],
            "token_bits": self.study.traces.bits, "heldout_bits": 8, "text_seed": self.study.seed,
            "traced_under": under and f"{under.method} {under.predictor}", "base": chain[0],
            "rounds": sum(not self.study.predictors[name].tuned_from for name in chain[1:]),
            "tuned": self.is_tuned(key),
        }  # fmt: skip

    def _train_predictor_reads(self, *place: str) -> Named:
        key = self.trained[place]
        return {"traces": self.traces(key, "train"), "heldout": self.traces(key, "heldout")}

    def tune_predictor(self, *place: str) -> Spec:
        tuning, plan = self.study.tuning.model_dump(), self.study.traces
        own = self.study.predictors[self.trained[place].predictor].tuning_rate
        tuning["learning_rate"] = own or tuning["learning_rate"]
        return self.train_predictor(*place) | {
            "units": tuning.pop("units"), "tuning": tuning, "windows": plan.windows,
            "heldout_windows": plan.heldout_windows, "window_tokens": plan.window_tokens,
            "dtype": self.study.models[place[0]].dtype,
        }  # fmt: skip

    def _tune_predictor_reads(self, *place: str) -> Named:
        begun = self.stem(self.parent(self.trained[place]))
        return {"trained": f"{begun}.safetensors"} | self._train_predictor_reads(*place)

    # ---- measurements

    def evaluate(self, model: str, data: str, part: str = ORACLE) -> Spec:
        plan = self.study.evaluation
        return {
            "conditions": self.evaluations[model, data, part],
            "windows": plan.windows, "window_tokens": plan.window_tokens, "dtype": self.study.models[model].dtype,
            "tasks": [name for name in plan.tasks if name not in BENCHMARKS or data == plan.texts[0]],
            "fewshot": plan.fewshot, "rolling_tokens": plan.rolling_tokens, "text_seed": self.study.seed,
        }  # fmt: skip

    evaluate_oracle = evaluate

    def _evaluate_oracle_reads(self, model: str, data: str) -> Named:
        return {"benchmarks": self.benchmarks(data)}

    def _evaluate_reads(self, *key: str) -> Named:
        conditions = self.evaluations[key].values()
        checks = self.disjoint_pairs(conditions)
        return self._evaluate_oracle_reads(*key[:2]) | {
            "scores": self.tables_of("scores", key), "thresholds": self.tables_of("thresholds", key),
            "predictors": [f"{self.stem(one.predictor_id)}.safetensors" for one in conditions if one.predictor_id],
            "after": [f"{self.root}/checks/disjoint/{calibration}+{data}.json" for calibration, data in checks],
        }  # fmt: skip

    def latency(self, model: str) -> Spec:
        section = self.study.latency.model_dump(exclude={"predictor", "methods"})
        return section | {
            "model": model, "weights": "random" if "random" in self.study.models[model].source else "pretrained",
            "predictors": [name for name in self.study.latency.methods if name in PREDICTORS],
            "proxies": [name for name in self.study.latency.methods if name in PROXIES],
            "dtype": self.study.models[model].dtype, "seed": self.study.seed,
        }  # fmt: skip

    def _latency_reads(self, model: str) -> Named:
        return {
            "documents": f"{self.root}/texts/{self.study.evaluation.texts[0]}/documents.parquet",
            "scores": f"{self.root}/scores/{model}/{self.study.calibration[0]}.parquet",
            "predictors": [f"{self.stem(one)}.safetensors" for one in self.latency_predictors(model)],
        }

    def latency_random(self, model: str, lengths: str) -> Spec:
        return self.timed_dimensions[model, lengths] | {"seed": self.study.seed}

    # ---- report

    def _aggregate_reads(self) -> Named:
        times = {option: [path for rule in ("latency", "latency_random") for path in self.made_by(rule, option)]
                 for option in ("summary", "repeats", "refused")}  # fmt: skip
        return {
            "evaluations": self.manifests(),
            "scores": self.made_by("average", "scores"),
            "qualities": [f"{stem}.quality.parquet" for stem in self.predictors()],
            "trainings": [f"{stem}.training.parquet" for stem in self.predictors()],
            "latencies": times["summary"], "repeats": times["repeats"], "refusals": times["refused"],
        }  # fmt: skip

    def _check_tables_reads(self) -> Named:
        return {"tables": self.tables(MEASURED_TABLES)}

    def _judge_claims_reads(self) -> Named:
        outcomes = self.made_by("aggregate", "outcomes")
        return self._check_tables_reads() | {"outcomes": outcomes, "after": self.made_by("check_tables", "record")}

    def draw(self, model: str) -> Spec:
        return {"model": model}

    def _draw_reads(self, model: str) -> Named:
        return {"tables": self.tables()}

    def write_page(self) -> Spec:
        # only the keys in the file, without defaults
        return {"configuration": self.study.model_dump(mode="json", exclude_unset=True)}

    def _write_page_reads(self) -> Named:
        return {"tables": self.tables(), "drawn": self.made_by("draw", "drawn")}
