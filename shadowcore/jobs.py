"""The jobs of a study: specifications for all stages, and paths of all files.

Only this module knows the meaning of the rules' wildcards. A line of YAML below `conditions` becomes a call in five
steps: `sections.Grid` checks it; `Study.conditions_on` makes a `Condition` of each combination; `Jobs.evaluate` puts
the conditions of one job into a specification, which the rule gives to `shadowcore evaluate`; `stages.evaluate.sources`
reads the files that a condition's method needs; and the method's row in `measure.methods.METHODS` makes the masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from shadowcore import manifests
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config import Study
from shadowcore.measure.conditions import Condition, PredictorId
from shadowcore.measure.methods import METHODS
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.predictors import PREDICTORS, TUNED_PROXIES
from shadowcore.provenance import fingerprint
from shadowcore.report.captions import CAPTIONS
from shadowcore.schemas import FINAL_TABLES
from shadowcore.stages.base import parse_spec, to_json

Evaluation = tuple[str, str, str]  # an evaluation job: model, text, and `manifests.part`


class Jobs:
    """Conditions of a study by slug, specifications of its jobs, and paths of its files.

    A method with the name of a stage returns the parameters of the stage's rule.
    """

    def __init__(self, study: Study, results: Path = Path("results")):
        self.study, self.root = study, results / study.study
        self.timed_dimensions = study.timed_dimensions
        self.conditions: dict[tuple[str, str, str, int], Condition] = {}
        for model, data in product(study.models, study.evaluation.texts):
            for condition in study.conditions_on(model, data):
                slug = condition.slug(study.seed)
                self.conditions[model, data, slug, condition.sparsity_pct] = condition

    def params(self, stage: str, spec: Any) -> dict[str, str]:
        """A rule's parameters: the specification as JSON, and the fingerprint of the stage's code."""
        return {"spec": to_json(spec), "code": fingerprint(f"shadowcore.stages.{stage.replace('-', '_')}")}

    def fetch_model(self, model: str) -> dict[str, str]:
        from shadowcore.stages.fetch_model import Spec

        kind, source = next(iter(self.study.models[model].source.items()))
        return self.params("fetch-model", Spec(kind, source))

    def relufy(self, model: str) -> dict[str, str]:
        from shadowcore.stages.relufy import Spec

        plan, recipe = self.study.traces, self.study.models[model].relufied
        return self.params(
            "relufy", Spec(recipe, plan.windows, plan.heldout_windows, plan.window_tokens, self.study.seed)
        )

    def prepare_text(self, name: str) -> dict[str, str]:
        from shadowcore.stages.prepare_text import Spec, Task

        text = self.study.texts[name]
        kind, source = next(iter(text.source.items()))
        task = Task(**text.true_continuation.model_dump()) if text.true_continuation else None
        spec = Spec(kind, source, text.heldout_fraction, text.evaluation_fraction, task, self.study.seed)
        return self.params("prepare-text", spec)

    def prepare_benchmark(self, name: str) -> dict[str, str]:
        from shadowcore.stages.prepare_benchmark import Spec

        plan = self.study.evaluation
        shots = max(plan.fewshot) if BENCHMARKS[name].train and not BENCHMARKS[name].rolling else 0
        spec = Spec(name, plan.offline_dir, plan.limit.get(name), shots, self.study.seed)
        return self.params("prepare-benchmark", spec)

    def check_disjoint(self, calibration: str, data: str) -> dict[str, str]:
        from shadowcore.stages.check_disjoint import Spec

        return self.params("check-disjoint", Spec(calibration, data))

    def benchmarks(self, data: str) -> list[str]:
        """Files of the benchmarks, which the jobs of the first text measure; none for other texts."""
        tasks, texts = self.study.evaluation.tasks, self.study.evaluation.texts
        return [f"{self.root}/tasks/{name}.parquet" for name in tasks if name in BENCHMARKS and data == texts[0]]

    def gathered(self, data: str) -> list[str]:
        """The file with the documents of all these benchmarks, if there are any."""
        return [f"{self.root}/tasks/benchmarks.parquet"] if self.benchmarks(data) else []

    @cached_property
    def evaluations(self) -> dict[Evaluation, dict[str, Condition]]:
        """The conditions of every evaluation job by their names, sorted."""
        evaluations: dict[Evaluation, dict[str, Condition]] = {}
        for (model, data, slug, pct), condition in sorted(self.conditions.items()):
            key = model, data, manifests.part(condition.method, pct)
            evaluations.setdefault(key, {})[manifests.name(slug, pct)] = condition
        return evaluations

    def disjoint(self, key: Evaluation) -> list[str]:
        """Records of the checks that a job's conditions were calibrated and are measured on different documents."""
        pairs = self.disjoint_pairs(self.evaluations[key].values())
        return [f"{self.root}/checks/disjoint/{calibration}+{data}.json" for calibration, data in pairs]

    def disjoint_pairs(self, conditions: Iterable[Condition]) -> list[tuple[str, str]]:
        """Pairs of a text that predictors, scores or relufied models learn from and a text they are measured on."""
        recipes, pairs = {name: model.relufied for name, model in self.study.models.items()}, set()
        for condition in conditions:
            recipe = recipes[condition.model]
            pairs |= {(text, condition.data) for text in (condition.calibration, recipe and recipe.text) if text}
        return sorted(pairs)

    def tables_of(self, reads: str, key: Evaluation) -> list[str]:
        """The tables of `scores` or `thresholds` that a job reads, one for each condition whose method reads one."""
        readers = [one for one in self.evaluations[key].values() if METHODS[one.method].reads == reads]
        return [f"{self.root}/{reads}/{one.model}/{one.calibration}.parquet" for one in readers]

    def predictors_of(self, key: Evaluation) -> list[str]:
        """Path stems of the predictors that a job reads, one for each condition with a predictor."""
        return [self.stem(one.predictor_id) for one in self.evaluations[key].values() if one.predictor_id]

    # ---- predictors

    @cached_property
    def used_predictors(self) -> set[PredictorId]:
        """The predictors that conditions and the section `latency` use."""
        used = {one.predictor_id for one in self.conditions.values() if one.predictor_id}
        return used.union(*map(self.latency_predictors, self.study.models if self.study.latency else ()))

    @cached_property
    def trained(self) -> dict[tuple[str, str, str], PredictorId]:
        """All predictors that are trained, also those that only others begin with, by model, text and slug."""
        chain = self.study.chain
        every = {replace(one, predictor=name) for one in self.used_predictors for name in chain(one.predictor)}
        return {(one.model, one.calibration, one.slug(self.study.seed)): one for one in sorted(every)}

    def is_tuned(self, key: PredictorId) -> bool:
        """Whether a predictor is tuned from another one, not trained on traces."""
        return self.study.predictors[key.predictor].tuned_from is not None

    def parent(self, key: PredictorId) -> PredictorId | None:
        """The predictor that this one begins with; None if it is trained on the dense model."""
        name = self.study.predictors[key.predictor].parent
        return name and replace(key, predictor=name)

    def traced_under(self, key: PredictorId) -> PredictorId | None:
        """The predictor that masks the model in the traces of this predictor; None for traces of the dense model."""
        parent = self.parent(key)
        return self.traced_under(parent) if self.is_tuned(key) else parent

    def stem(self, key: PredictorId) -> str:
        """Path stem of a trained predictor."""
        return f"{self.root}/predictors/{key.model}/{key.calibration}/{key.slug(self.study.seed)}"

    def predictors(self) -> list[str]:
        """Path stems of all predictors that conditions or the section `latency` use, sorted."""
        return sorted(map(self.stem, self.used_predictors))

    def latency_predictors(self, model: str) -> list[PredictorId]:
        """The predictors of a model whose speed is measured."""
        plan, text = self.study.latency, self.study.calibration[0]
        return [
            PredictorId(model, text, method, plan.criterion, plan.predictor, self.study.seed)
            for method in plan.methods
            if method in PREDICTORS
        ]

    def trace(self, model: str, split: str, shard: str) -> dict[str, str]:
        criteria, scored = self.study.traces.criteria, self.study.token_criteria
        readers = [one for one in self.used_predictors if one.model == model]
        return self.params("trace", self._trace(model, split, shard, criteria, scored, readers))

    def trace_on_policy(self, key: PredictorId, split: str, shard: str) -> dict[str, str]:
        """key: the predictor that masks the model."""
        from shadowcore.stages.trace_on_policy import Spec

        masks = self.study.traces.on_policy
        traced = self._trace(key.model, split, shard, [], [key.criterion], {key})
        return self.params("trace-on-policy", Spec(traced, masks.units, masks.lowest_pct, masks.highest_pct, key.seed))

    def _trace(
        self, model: str, split: str, shard: str, criteria: Iterable[str], token_criteria: Iterable[str],
        readers: Iterable[PredictorId],
    ):  # fmt: skip
        """Specification for one shard of a split, with the features for the predictors `readers`."""
        from shadowcore.stages.trace import Design, Spec

        plan, train = self.study.traces, split == "train"
        recipes = [(one, self.study.recipe_of(one.predictor)) for one in readers if one.method not in TUNED_PROXIES]
        designs = {Design(one.method, recipe.segments, recipe.examples) for one, recipe in recipes}
        of_windows = {one.criterion for one, recipe in recipes if recipe.examples == "windows"}
        return Spec(
            split=split, shard=int(shard), shards=plan.shards if train else 1,
            windows=plan.windows if train else plan.heldout_windows, window_tokens=plan.window_tokens,
            tokens_per_window=plan.tokens_per_window if train else plan.heldout_tokens_per_window,
            designs=tuple(sorted(designs, key=str)), criteria=tuple(criteria), token_criteria=tuple(token_criteria),
            window_criteria=tuple(sorted(of_windows)), token_bits=plan.bits if train else 8, batch=plan.batch,
            dtype=self.study.models[model].dtype, seed=self.study.seed,
        )  # fmt: skip

    def traces(self, key: PredictorId, split: str) -> list[str]:
        """The traces of a split that a predictor is trained or judged on."""
        under = self.traced_under(key)
        place = f"{key.model}/{key.calibration}"
        return self._shards(f"{place}/{under.slug(self.study.seed)}" if under else place, split)

    def dense_traces(self, model: str, calibration: str) -> list[str]:
        """The traces of the dense model on the training windows."""
        return self._shards(f"{model}/{calibration}", "train")

    def _shards(self, folder: str, split: str) -> list[str]:
        shards = self.study.traces.shards if split == "train" else 1
        return [f"{self.root}/traces/{folder}/{split}-{shard}.safetensors" for shard in range(shards)]

    def average(self, model: str, calibration: str) -> dict[str, str]:
        from shadowcore.stages.average import Spec

        return self.params("average", Spec(model, calibration, tuple(self.study.traces.criteria)))

    def calibrate_thresholds(self, model: str, calibration: str) -> dict[str, str]:
        from shadowcore.stages.calibrate_thresholds import Spec

        plan = self.study.traces
        conditions = self.conditions.values()
        calibrated = [one for one in conditions if METHODS[one.method].reads == "thresholds"]
        methods, reached = {one.method for one in calibrated}, {one.sparsity_pct for one in calibrated}
        spec = Spec(
            model=model, calibration=calibration, windows=plan.windows, window_tokens=plan.window_tokens,
            batch=plan.batch, methods=tuple(sorted(methods)), sparsities_pct=tuple(sorted(reached)),
            dtype=self.study.models[model].dtype, seed=self.study.seed,
        )  # fmt: skip
        return self.params("calibrate-thresholds", spec)

    def train_predictor(self, key: PredictorId) -> dict[str, str]:
        from shadowcore.stages.train_predictor import Spec

        return self.params("train-predictor", Spec(**self._training(key)))

    def tune_predictor(self, key: PredictorId) -> dict[str, str]:
        from shadowcore.stages.tune_predictor import Spec, Tuning

        tuning, plan = self.study.tuning.model_dump(), self.study.traces
        tuning["learning_rate"] = self.study.predictors[key.predictor].tuning_rate or tuning["learning_rate"]
        spec = Spec(
            **self._training(key), units=tuning.pop("units"), tuning=Tuning(**tuning), windows=plan.windows,
            heldout_windows=plan.heldout_windows, window_tokens=plan.window_tokens,
            dtype=self.study.models[key.model].dtype,
        )  # fmt: skip
        return self.params("tune-predictor", spec)

    def _training(self, key: PredictorId) -> dict[str, Any]:
        """The fields that the specifications of training and tuning share."""
        grids, chain, under = self.study.conditions, self.study.chain(key.predictor), self.traced_under(key)
        reported = sorted({pct for grid in grids for pct in grid.sparsities_pct})
        policies = sorted({policy for grid in grids if key.method in grid.methods for policy in grid.policies})
        return asdict(key) | {
            "recipe": self.study.recipe_of(key.predictor).training_recipe(),
            "sparsities_pct": tuple(reported), "policies": tuple(policies) or ("per_layer",),
            "token_bits": self.study.traces.bits, "heldout_bits": 8, "text_seed": self.study.seed,
            "traced_under": under and f"{under.method} {under.predictor}", "base": chain[0],
            "rounds": sum(not self.study.predictors[name].tuned_from for name in chain[1:]),
            "tuned": self.is_tuned(key),
        }  # fmt: skip

    def evaluate(self, conditions: Mapping[str, Condition]) -> dict[str, str]:
        """conditions: of one evaluation job, by name."""
        from shadowcore.stages.conditions import Spec

        plan, first = self.study.evaluation, next(iter(conditions.values()))
        spec = Spec(
            conditions=dict(conditions), windows=plan.windows, window_tokens=plan.window_tokens,
            window_batch=plan.window_batch, request_tokens=plan.request_tokens,
            dtype=self.study.models[first.model].dtype,
            tasks=tuple(name for name in plan.tasks if name not in BENCHMARKS or first.data == plan.texts[0]),
            fewshot=tuple(plan.fewshot), rolling_tokens=plan.rolling_tokens, text_seed=self.study.seed,
        )  # fmt: skip
        return self.params("evaluate-oracle" if first.method == "oracle" else "evaluate", spec)

    def latency(self, model: str) -> dict[str, str]:
        from shadowcore.stages.latency import Spec

        plan = self.study.latency
        kind = next(iter(self.study.models[model].source))
        spec = Spec(
            model=model, weights="random" if kind == "random" else "pretrained", dtype=self.study.models[model].dtype,
            criterion=plan.criterion, units=plan.units, sparsities_pct=tuple(plan.sparsities_pct),
            predictors=tuple(name for name in plan.methods if name in PREDICTORS),
            proxies=tuple(name for name in plan.methods if name in PROXIES),
            prompt_tokens=plan.prompt_tokens, new_tokens=plan.new_tokens, repeats=plan.repeats,
            warmup=plan.warmup, seed=self.study.seed,
        )  # fmt: skip
        return self.params("latency", spec)

    def latency_random(self, model: str, lengths: str) -> dict[str, str]:
        from shadowcore.stages.latency_random import Spec

        spec = self.timed_dimensions[model, lengths] | {"seed": self.study.seed}
        return self.params("latency-random", parse_spec(Spec, spec))

    def write_page(self) -> dict[str, str]:
        from shadowcore.stages.write_page import Spec

        # only the keys in the file, without defaults
        return self.params("write-page", Spec(self.study.model_dump(mode="json", exclude_unset=True)))

    def scores(self) -> list[str]:
        """Tables of mean scores."""
        return [f"{self.root}/scores/{m}/{c}.parquet" for m, c in product(self.study.models, self.study.calibration)]

    def manifests(self) -> list[str]:
        """The manifests of all evaluation jobs."""
        return [f"{self.root}/outcomes/{model}/{data}/{part}.json" for model, data, part in self.evaluations]

    def latencies(self) -> list[str]:
        """Path stems of all latency measurements."""
        random = [f"random/{model}/{lengths}" for model, lengths in self.timed_dimensions]
        return [f"{self.root}/latency/{name}" for name in (*(self.study.models if self.study.latency else ()), *random)]

    def tables(self, names: Iterable[str] = FINAL_TABLES) -> list[str]:
        """The final tables."""
        return [f"{self.root}/tables/{name}.parquet" for name in names]

    def drawn(self) -> list[str]:
        """The records of the figures that were drawn, one per model."""
        return [f"{self.root}/figures/{model}.json" for model in self.study.models]

    def figure_files(self, model: str) -> list[str]:
        """The files of all figures of a model; figures with nothing to show are not written."""
        return [f"{self.root}/figures/{model}/{name}.{kind}" for name, kind in product(CAPTIONS, ("pdf", "png"))]
