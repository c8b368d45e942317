"""What a study runs: its conditions by path name, the specification of every stage's jobs, and result paths.

The rules ask here and nowhere else what their wildcards mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from shadowcore import manifests
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config import Study
from shadowcore.measure.activation_masks import BASELINES
from shadowcore.method.predictors import PREDICTORS
from shadowcore.provenance import fingerprint
from shadowcore.recipes import Preset, Trained
from shadowcore.report.figures import FIGURES
from shadowcore.schemas import FINAL_TABLES, MEASURED_TABLES
from shadowcore.stages.base import parse_spec, to_json
from shadowcore.stages.conditions import Condition

Evaluation = tuple[str, str, str]  # an evaluation job: model, text, and what its manifest is called (`manifests.part`)


class Jobs:
    """What a study runs: conditions by path name, specifications of every stage, and result paths."""

    def __init__(self, study: Study, results: Path = Path("results")):
        self.study, self.root = study, results / study.study
        self.conditions: dict[tuple[str, str, str, int], Condition] = {}
        for model, data in product(study.models, study.evaluation.texts):
            dense = Condition(model=model, data=data, method="dense", seed=study.seed)
            for one in (dense, *self._sparse(dense)):
                self.conditions[model, data, self.setup(one), one.sparsity_pct] = one

    def setup(self, condition: Condition) -> str:
        """How paths call a condition, but for its model, text and sparsity."""
        parts = (
            condition.method,
            condition.calibration,
            None if condition.method == "random" else condition.criterion,
            self.called(condition),
            condition.policy,
            condition.units,
            None if condition.protocol == "token" else condition.protocol,
        )
        return "+".join(part for part in parts if part)

    def called(self, condition: Condition) -> str | None:
        """How paths call a condition's predictor: with its seed, if that is not the study's."""
        if condition.predictor is None:
            return None
        seed = None if condition.seed == self.study.seed else condition.seed
        return str(Trained.named(condition.predictor)._replace(seed=seed))

    def _sparse(self, dense: Condition):
        for grid in self.study.conditions:
            if grid.models and dense.model not in grid.models:
                continue
            for method, policy, protocol, units, pct in product(
                grid.methods, grid.policies, grid.protocols, grid.units, grid.sparsities_pct
            ):
                one = replace(dense, method=method, policy=policy, protocol=protocol, units=units, sparsity_pct=pct)
                if method == "random":
                    yield replace(one, criterion="random")
                    continue
                if method == "relu":
                    one = replace(one, policy=None)  # what is zero is removed, however much it is
                criteria = [None] if method in BASELINES else grid.criteria
                trained = method in PREDICTORS
                predictors = grid.predictors if trained else [None]
                seeds = grid.seeds if trained and grid.seeds else [self.study.seed]
                # these go by the evaluated example itself: they have no calibration text
                calibrations = [None] if method in ("oracle", "griffin", "relu") else self.study.calibration
                for criterion, predictor, calibration, seed in product(criteria, predictors, calibrations, seeds):
                    yield replace(one, criterion=criterion, predictor=predictor, calibration=calibration, seed=seed)

    def params(self, stage: str, spec: Any) -> dict[str, str]:
        """A rule's parameters: the specification as JSON, and what its code does."""
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

        one = self.study.texts[name]
        kind, source = next(iter(one.source.items()))
        task = Task(**one.true_continuation.model_dump()) if one.true_continuation else None
        return self.params(
            "prepare-text", Spec(kind, source, one.heldout_fraction, one.evaluation_fraction, task, self.study.seed)
        )

    def prepare_benchmark(self, name: str) -> dict[str, str]:
        from shadowcore.stages.prepare_benchmark import Spec

        one = self.study.evaluation
        shots = max(one.fewshot) if BENCHMARKS[name].train and not BENCHMARKS[name].rolling else 0
        return self.params(
            "prepare-benchmark", Spec(name, one.offline_dir, one.limit.get(name), shots, self.study.seed)
        )

    def check_disjoint(self, calibration: str, data: str) -> dict[str, str]:
        from shadowcore.stages.check_disjoint import Spec

        return self.params("check-disjoint", Spec(calibration, data))

    def benchmarks(self, data: str) -> list[str]:
        """Files of the benchmarks that a text's jobs measure too: the first text's do."""
        evaluation = self.study.evaluation
        if data != evaluation.texts[0]:
            return []
        return [f"{self.root}/tasks/{name}.parquet" for name in evaluation.tasks if name in BENCHMARKS]

    def gathered(self, data: str) -> list[str]:
        """The file that holds those benchmarks, if there are any."""
        return [f"{self.root}/tasks/benchmarks.parquet"] if self.benchmarks(data) else []

    @cached_property
    def evaluations(self) -> dict[Evaluation, dict[str, Condition]]:
        """The conditions of every evaluation job, by setup and in its order."""
        found: dict[Evaluation, dict[str, Condition]] = {}
        for (model, data, setup, pct), one in sorted(self.conditions.items()):
            found.setdefault((model, data, manifests.part(one.method, pct)), {})[setup] = one
        return found

    def disjoint(self, key: Evaluation) -> list[str]:
        """The records that the calibration and evaluation documents of a job's conditions are disjoint."""
        pairs = self.disjoint_pairs(self.evaluations[key].values())
        return [f"{self.root}/checks/disjoint/{calibration}+{data}.json" for calibration, data in pairs]

    def disjoint_pairs(self, conditions: Iterable[Condition]) -> list[tuple[str, str]]:
        """Texts that predictors, scores and relufied models learn from, each with the texts they are measured on."""
        learned, found = {name: one.relufied for name, one in self.study.models.items()}, set()
        for one in conditions:
            recipe = learned[one.model]
            found |= {(text, one.data) for text in (one.calibration, recipe and recipe.text) if text}
        return sorted(found)

    def scores_of(self, key: Evaluation) -> list[str]:
        """The tables of mean scores that a job reads: one for each static condition."""
        return self._tables_of("scores", "static", key)

    def thresholds_of(self, key: Evaluation) -> list[str]:
        """The tables of thresholds that a job reads: one for each threshold condition."""
        return self._tables_of("thresholds", "threshold", key)

    def _tables_of(self, folder: str, method: str, key: Evaluation) -> list[str]:
        of = [one for one in self.evaluations[key].values() if one.method == method]
        return [f"{self.root}/{folder}/{one.model}/{one.calibration}.parquet" for one in of]

    def predictors_of(self, key: Evaluation) -> list[str]:
        """Path stems of the predictors that a job reads: one for each condition that has one."""
        stems = map(self.predictor_of, self.evaluations[key].values())
        return [stem for stem in stems if stem]

    @cached_property
    def _used(self) -> dict[str, set[tuple[str, str]]]:
        """Design and preset of every predictor, by model."""
        timed = self.study.latency
        always = {(method, timed.predictor) for method in timed.methods} if timed else set()
        used = {model: set(always) for model in self.study.models}
        for one in self.conditions.values():
            if one.predictor:
                used[one.model].add((one.method, one.predictor))
        return used

    def trace(self, model: str, split: str, shard: str) -> dict[str, str]:
        criteria, scored = self.study.traces.criteria, self.study.token_criteria
        return self.params("trace", self._trace(model, split, shard, criteria, scored, self._used[model]))

    def trace_on_policy(
        self, model: str, split: str, shard: str, method: str, criterion: str, predictor: str
    ) -> dict[str, str]:
        from shadowcore.stages.trace_on_policy import Spec

        masks = self.study.traces.on_policy
        traced = self._trace(model, split, shard, [], [criterion], {(method, predictor)})
        seed = self._seed(Trained.named(predictor))
        return self.params("trace-on-policy", Spec(traced, masks.units, masks.lowest_pct, masks.highest_pct, seed))

    def _trace(
        self, model: str, split: str, shard: str, criteria: Iterable[str], token_criteria: Iterable[str], used: set
    ):
        """Specification of one shard of a split, for predictors `used`: pairs of design and preset."""
        from shadowcore.stages.trace import Design, Spec

        plan, train = self.study.traces, split == "train"
        designs = {Design(method, self._preset(predictor).segments) for method, predictor in used}
        return Spec(
            split=split, shard=int(shard), shards=plan.shards if train else 1,
            windows=plan.windows if train else plan.heldout_windows, window_tokens=plan.window_tokens,
            tokens_per_window=plan.tokens_per_window if train else plan.heldout_tokens_per_window,
            designs=tuple(sorted(designs, key=str)), criteria=tuple(criteria), token_criteria=tuple(token_criteria),
            token_bits=plan.bits if train else 8, batch=plan.batch,
            dtype=self.study.models[model].dtype, seed=self.study.seed,
        )  # fmt: skip

    def traces(self, model: str, calibration: str, predictor: str, round_of: str, split: str) -> list[str]:
        """Traces of a split that a predictor of a round learns from: the dense model's, or those under its last round.

        predictor: the part of its path name before the preset; round_of: the rest of it, without `@tuned`.
        """
        rounds = Trained.named(round_of).rounds()
        under = f"/{predictor}+{rounds[-2]}" if rounds[-1].round else ""
        return self._shards(f"{model}/{calibration}{under}", split)

    def dense_traces(self, model: str, calibration: str) -> list[str]:
        """Traces of the dense model on the training windows."""
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
        reached = {one.sparsity_pct for one in self.conditions.values() if one.method == "threshold"}
        spec = Spec(
            model=model, calibration=calibration, windows=plan.windows, window_tokens=plan.window_tokens,
            batch=plan.batch, sparsities_pct=tuple(sorted(reached)), dtype=self.study.models[model].dtype,
            seed=self.study.seed,
        )  # fmt: skip
        return self.params("calibrate-thresholds", spec)

    def train_predictor(self, model: str, calibration: str, method: str, criterion: str, predictor: str):
        from shadowcore.stages.train_predictor import Spec

        return self.params("train-predictor", Spec(**self._trained(model, calibration, method, criterion, predictor)))

    def tune_predictor(self, model: str, calibration: str, method: str, criterion: str, predictor: str):
        """predictor: the one to tune, without `@tuned`."""
        from shadowcore.stages.tune_predictor import Spec, Tuning

        tuning, plan = self.study.tuning.model_dump(), self.study.traces
        spec = Spec(
            **self._trained(model, calibration, method, criterion, f"{predictor}@tuned"),
            units=tuning.pop("units"), tuning=Tuning(**tuning), windows=plan.windows,
            heldout_windows=plan.heldout_windows, window_tokens=plan.window_tokens,
            dtype=self.study.models[model].dtype,
        )  # fmt: skip
        return self.params("tune-predictor", spec)

    def _preset(self, predictor: str) -> Preset:
        """The preset of a predictor, by its name in the configuration or in paths."""
        return self.study.predictors[Trained.named(predictor).preset]

    def _seed(self, predictor: Trained) -> int:
        """The seed of a predictor's training."""
        return self.study.seed if predictor.seed is None else predictor.seed

    def _trained(self, model: str, calibration: str, method: str, criterion: str, predictor: str) -> dict[str, Any]:
        """What training and tuning are told alike."""
        one = Trained.named(predictor)
        under = f"{method} {one.rounds()[one.round - 1].configured}" if one.round else None
        grids = self.study.conditions
        reported = sorted({pct for grid in grids for pct in grid.sparsities_pct})
        policies = sorted({policy for grid in grids if method in grid.methods for policy in grid.policies})
        return {
            "model": model, "calibration": calibration, "method": method, "criterion": criterion,
            "predictor": one.configured, "recipe": self._preset(predictor).steps(),
            "sparsities_pct": tuple(reported), "policies": tuple(policies) or ("per_layer",),
            "token_bits": self.study.traces.bits, "heldout_bits": 8,
            "seed": self._seed(one), "text_seed": self.study.seed,
            "traced_under": under,
        }  # fmt: skip

    def evaluate(self, conditions: Mapping[str, Condition]) -> dict[str, str]:
        """conditions: of one model and text, by setup, all of them of the oracle or none."""
        from shadowcore.stages.conditions import Spec

        sizes, one = self.study.evaluation, next(iter(conditions.values()))
        spec = Spec(
            conditions=dict(conditions), windows=sizes.windows, window_tokens=sizes.window_tokens,
            window_batch=sizes.window_batch, request_batch=sizes.request_batch,
            dtype=self.study.models[one.model].dtype,
            tasks=tuple(name for name in sizes.tasks if name not in BENCHMARKS or one.data == sizes.texts[0]),
            fewshot=tuple(sizes.fewshot), rolling_tokens=sizes.rolling_tokens, text_seed=self.study.seed,
        )  # fmt: skip
        return self.params("evaluate-oracle" if one.method == "oracle" else "evaluate", spec)

    def latency(self, model: str) -> dict[str, str]:
        from shadowcore.stages.latency import Spec

        plan = self.study.latency
        kind = next(iter(self.study.models[model].source))
        spec = Spec(
            model=model, weights="random" if kind == "random" else "pretrained", dtype=self.study.models[model].dtype,
            criterion=plan.criterion, units=plan.units, sparsities_pct=tuple(plan.sparsities_pct),
            predictors=tuple(plan.methods), prompt_tokens=plan.prompt_tokens, new_tokens=plan.new_tokens,
            repeats=plan.repeats, warmup=plan.warmup, seed=self.study.seed,
        )  # fmt: skip
        return self.params("latency", spec)

    def latency_random(self, model: str, lengths: str) -> dict[str, str]:
        from shadowcore.stages.latency_random import Spec

        spec = self.timed_dimensions[model, lengths] | {"seed": self.study.seed}
        return self.params("latency-random", parse_spec(Spec, spec))

    def write_page(self) -> dict[str, str]:
        from shadowcore.stages.write_page import Spec

        # as it was written, not with every default
        return self.params("write-page", Spec(self.study.model_dump(mode="json", exclude_unset=True)))

    def predictor(self, model: str, calibration: str, method: str, criterion: str, predictor: str) -> str:
        """Path stem of a trained predictor, called as paths call it."""
        return f"{self.root}/predictors/{model}/{calibration}/{method}+{criterion}+{predictor}"

    def predictor_of(self, one: Condition) -> str | None:
        """Path stem of a condition's predictor; None where nothing was trained."""
        called = self.called(one)
        return called and self.predictor(one.model, one.calibration, one.method, one.criterion, called)

    def latency_predictors(self, model: str) -> list[str]:
        """Path stems of the predictors whose speed is measured."""
        plan = self.study.latency
        return [
            self.predictor(model, self.study.calibration[0], method, plan.criterion, plan.predictor)
            for method in plan.methods
        ]

    def predictors(self) -> list[str]:
        """Path stems of every predictor some condition or the latency uses, sorted."""
        used = {self.predictor_of(one) for one in self.conditions.values() if one.predictor}
        if self.study.latency:
            used |= {path for model in self.study.models for path in self.latency_predictors(model)}
        return sorted(used)

    def scores(self) -> list[str]:
        """Tables of mean scores."""
        return [f"{self.root}/scores/{m}/{c}.parquet" for m, c in product(self.study.models, self.study.calibration)]

    def manifests(self) -> list[str]:
        """Every evaluation job's list of the outcome files that it has written."""
        return [f"{self.root}/outcomes/{model}/{data}/{part}.json" for model, data, part in self.evaluations]

    def latencies(self) -> list[str]:
        """Path stems of latency measurements."""
        checkpoints = self.study.models if self.study.latency else []
        return [f"{self.root}/latency/{model}" for model in checkpoints] + [
            f"{self.root}/latency/random/{model}/{lengths}" for model, lengths in self.timed_dimensions
        ]

    @cached_property
    def timed_dimensions(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What is timed with random weights: by published model and lengths, "4x128+32"."""
        plan = self.study.latency_random
        return {
            (model, lengths): spec
            for model in (plan.models if plan else ())
            for lengths, spec in plan.timed(model).items()
        }

    def tables(self, names: Iterable[str] = FINAL_TABLES) -> list[str]:
        """The final tables."""
        return [f"{self.root}/tables/{name}.parquet" for name in names]

    def measured_tables(self) -> list[str]:
        """The final tables that hold measurements: what is checked, judged and drawn."""
        return self.tables(MEASURED_TABLES)

    def figures(self) -> list[str]:
        """Path stems of the figures."""
        return [f"{self.root}/figures/{model}/{name}" for model, name in product(self.study.models, FIGURES)]
