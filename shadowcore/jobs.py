"""What a study runs: its conditions by path name, the specification of every stage's jobs, and result paths.

The rules ask here and nowhere else what their wildcards mean. A line of YAML below `conditions` becomes a call in five
steps: `sections.Grid` checks it; `Study.conditions_on` makes a `Condition` of each combination; `Jobs.evaluate` puts
those of one job into a specification, which the rule hands to `shadowcore evaluate`; `stages.evaluate.sources` reads
what a condition's method needs; and its row in `measure.methods.METHODS` makes the masks.
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
from shadowcore.provenance import fingerprint
from shadowcore.report.figures import FIGURES
from shadowcore.schemas import FINAL_TABLES, MEASURED_TABLES
from shadowcore.stages.base import parse_spec, to_json

Evaluation = tuple[str, str, str]  # an evaluation job: model, text, and what its manifest is called (`manifests.part`)


class Jobs:
    """What a study runs: conditions by path name, specifications of every stage, and result paths."""

    def __init__(self, study: Study, results: Path = Path("results")):
        self.study, self.root = study, results / study.study
        self.timed_dimensions = study.timed_dimensions
        self.conditions: dict[tuple[str, str, str, int], Condition] = {}
        for model, data in product(study.models, study.evaluation.texts):
            for one in study.conditions_on(model, data):
                self.conditions[model, data, one.slug(study.seed), one.sparsity_pct] = one

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
        spec = Spec(kind, source, one.heldout_fraction, one.evaluation_fraction, task, self.study.seed)
        return self.params("prepare-text", spec)

    def prepare_benchmark(self, name: str) -> dict[str, str]:
        from shadowcore.stages.prepare_benchmark import Spec

        one = self.study.evaluation
        shots = max(one.fewshot) if BENCHMARKS[name].train and not BENCHMARKS[name].rolling else 0
        spec = Spec(name, one.offline_dir, one.limit.get(name), shots, self.study.seed)
        return self.params("prepare-benchmark", spec)

    def check_disjoint(self, calibration: str, data: str) -> dict[str, str]:
        from shadowcore.stages.check_disjoint import Spec

        return self.params("check-disjoint", Spec(calibration, data))

    def benchmarks(self, data: str) -> list[str]:
        """Files of the benchmarks that a text's jobs measure too: the first text's do."""
        tasks, texts = self.study.evaluation.tasks, self.study.evaluation.texts
        return [f"{self.root}/tasks/{name}.parquet" for name in tasks if name in BENCHMARKS and data == texts[0]]

    def gathered(self, data: str) -> list[str]:
        """The file that holds those benchmarks, if there are any."""
        return [f"{self.root}/tasks/benchmarks.parquet"] if self.benchmarks(data) else []

    @cached_property
    def evaluations(self) -> dict[Evaluation, dict[str, Condition]]:
        """The conditions of every evaluation job by their names, in order."""
        found: dict[Evaluation, dict[str, Condition]] = {}
        for (model, data, setup, pct), one in sorted(self.conditions.items()):
            found.setdefault((model, data, manifests.part(one.method, pct)), {})[manifests.name(setup, pct)] = one
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

    def tables_of(self, reads: str, key: Evaluation) -> list[str]:
        """The tables of mean scores, or of thresholds, that a job reads: one for each condition whose method does."""
        of = [one for one in self.evaluations[key].values() if METHODS[one.method].reads == reads]
        return [f"{self.root}/{reads}/{one.model}/{one.calibration}.parquet" for one in of]

    def predictors_of(self, key: Evaluation) -> list[str]:
        """Path stems of the predictors that a job reads: one for each condition that has one."""
        return [self.stem(one.predictor_id) for one in self.evaluations[key].values() if one.predictor_id]

    # ---- predictors

    @cached_property
    def used_predictors(self) -> set[PredictorId]:
        """The predictors that conditions and the latency use."""
        used = {one.predictor_id for one in self.conditions.values() if one.predictor_id}
        return used.union(*map(self.latency_predictors, self.study.models if self.study.latency else ()))

    @cached_property
    def trained(self) -> dict[tuple[str, str, str], PredictorId]:
        """All predictors that are trained, those that others begin with included, by model, text and slug."""
        chain = self.study.chain
        every = {replace(one, predictor=name) for one in self.used_predictors for name in chain(one.predictor)}
        return {(one.model, one.calibration, one.slug(self.study.seed)): one for one in sorted(every)}

    def is_tuned(self, one: PredictorId) -> bool:
        """Whether a predictor is another one, tuned, rather than trained on traces."""
        return self.study.predictors[one.predictor].tuned_from is not None

    def parent(self, one: PredictorId) -> PredictorId | None:
        """The predictor that one begins with; None where it learns from the dense model."""
        name = self.study.predictors[one.predictor].parent
        return name and replace(one, predictor=name)

    def traced_under(self, one: PredictorId) -> PredictorId | None:
        """The predictor whose masks act in the traces that one learns from or is judged by; None: the dense model's."""
        parent = self.parent(one)
        return self.traced_under(parent) if self.is_tuned(one) else parent

    def stem(self, one: PredictorId) -> str:
        """Path stem of a trained predictor."""
        return f"{self.root}/predictors/{one.model}/{one.calibration}/{one.slug(self.study.seed)}"

    def predictors(self) -> list[str]:
        """Path stems of every predictor some condition or the latency uses, sorted."""
        return sorted(map(self.stem, self.used_predictors))

    def latency_predictors(self, model: str) -> list[PredictorId]:
        """The predictors whose speed is measured."""
        plan, text = self.study.latency, self.study.calibration[0]
        return [
            PredictorId(model, text, method, plan.criterion, plan.predictor, self.study.seed) for method in plan.methods
        ]

    def trace(self, model: str, split: str, shard: str) -> dict[str, str]:
        criteria, scored = self.study.traces.criteria, self.study.token_criteria
        readers = [one for one in self.used_predictors if one.model == model]
        return self.params("trace", self._trace(model, split, shard, criteria, scored, readers))

    def trace_on_policy(self, one: PredictorId, split: str, shard: str) -> dict[str, str]:
        """one: the predictor whose masks act."""
        from shadowcore.stages.trace_on_policy import Spec

        masks = self.study.traces.on_policy
        traced = self._trace(one.model, split, shard, [], [one.criterion], {one})
        return self.params("trace-on-policy", Spec(traced, masks.units, masks.lowest_pct, masks.highest_pct, one.seed))

    def _trace(
        self, model: str, split: str, shard: str, criteria: Iterable[str], token_criteria: Iterable[str],
        readers: Iterable[PredictorId],
    ):  # fmt: skip
        """Specification of one shard of a split, with what the designs of `readers` read."""
        from shadowcore.stages.trace import Design, Spec

        plan, train = self.study.traces, split == "train"
        designs = {Design(one.method, self.study.recipe_of(one.predictor).segments) for one in readers}
        return Spec(
            split=split, shard=int(shard), shards=plan.shards if train else 1,
            windows=plan.windows if train else plan.heldout_windows, window_tokens=plan.window_tokens,
            tokens_per_window=plan.tokens_per_window if train else plan.heldout_tokens_per_window,
            designs=tuple(sorted(designs, key=str)), criteria=tuple(criteria), token_criteria=tuple(token_criteria),
            token_bits=plan.bits if train else 8, batch=plan.batch,
            dtype=self.study.models[model].dtype, seed=self.study.seed,
        )  # fmt: skip

    def traces(self, one: PredictorId, split: str) -> list[str]:
        """Traces of a split that a predictor learns from."""
        under = self.traced_under(one)
        place = f"{one.model}/{one.calibration}"
        return self._shards(f"{place}/{under.slug(self.study.seed)}" if under else place, split)

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
        conditions = self.conditions.values()
        calibrated = [one for one in conditions if METHODS[one.method].reads == "thresholds"]
        methods, reached = {one.method for one in calibrated}, {one.sparsity_pct for one in calibrated}
        spec = Spec(
            model=model, calibration=calibration, windows=plan.windows, window_tokens=plan.window_tokens,
            batch=plan.batch, methods=tuple(sorted(methods)), sparsities_pct=tuple(sorted(reached)),
            dtype=self.study.models[model].dtype, seed=self.study.seed,
        )  # fmt: skip
        return self.params("calibrate-thresholds", spec)

    def train_predictor(self, one: PredictorId) -> dict[str, str]:
        from shadowcore.stages.train_predictor import Spec

        return self.params("train-predictor", Spec(**self._training(one)))

    def tune_predictor(self, one: PredictorId) -> dict[str, str]:
        from shadowcore.stages.tune_predictor import Spec, Tuning

        tuning, plan = self.study.tuning.model_dump(), self.study.traces
        spec = Spec(
            **self._training(one), units=tuning.pop("units"), tuning=Tuning(**tuning), windows=plan.windows,
            heldout_windows=plan.heldout_windows, window_tokens=plan.window_tokens,
            dtype=self.study.models[one.model].dtype,
        )  # fmt: skip
        return self.params("tune-predictor", spec)

    def _training(self, one: PredictorId) -> dict[str, Any]:
        """The fields that the specifications of training and tuning share."""
        grids, chain, under = self.study.conditions, self.study.chain(one.predictor), self.traced_under(one)
        reported = sorted({pct for grid in grids for pct in grid.sparsities_pct})
        policies = sorted({policy for grid in grids if one.method in grid.methods for policy in grid.policies})
        return asdict(one) | {
            "recipe": self.study.recipe_of(one.predictor).training_recipe(),
            "sparsities_pct": tuple(reported), "policies": tuple(policies) or ("per_layer",),
            "token_bits": self.study.traces.bits, "heldout_bits": 8, "text_seed": self.study.seed,
            "traced_under": under and f"{under.method} {under.predictor}", "base": chain[0],
            "rounds": sum(not self.study.predictors[name].tuned_from for name in chain[1:]),
            "tuned": self.is_tuned(one),
        }  # fmt: skip

    def evaluate(self, conditions: Mapping[str, Condition]) -> dict[str, str]:
        """conditions: of one model and text, by name, all of them of the oracle or none."""
        from shadowcore.stages.conditions import Spec

        sizes, one = self.study.evaluation, next(iter(conditions.values()))
        spec = Spec(
            conditions=dict(conditions), windows=sizes.windows, window_tokens=sizes.window_tokens,
            window_batch=sizes.window_batch, request_tokens=sizes.request_tokens,
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

    def scores(self) -> list[str]:
        """Tables of mean scores."""
        return [f"{self.root}/scores/{m}/{c}.parquet" for m, c in product(self.study.models, self.study.calibration)]

    def manifests(self) -> list[str]:
        """Every evaluation job's list of the outcome files that it has written."""
        return [f"{self.root}/outcomes/{model}/{data}/{part}.json" for model, data, part in self.evaluations]

    def latencies(self) -> list[str]:
        """Path stems of latency measurements."""
        random = [f"random/{model}/{lengths}" for model, lengths in self.timed_dimensions]
        return [f"{self.root}/latency/{name}" for name in (*(self.study.models if self.study.latency else ()), *random)]

    def tables(self, names: Iterable[str] = FINAL_TABLES) -> list[str]:
        """The final tables."""
        return [f"{self.root}/tables/{name}.parquet" for name in names]

    def measured_tables(self) -> list[str]:
        """The final tables that hold measurements: what is checked, judged and drawn."""
        return self.tables(MEASURED_TABLES)

    def drawn(self) -> list[str]:
        """Each model's record of the figures that were drawn."""
        return [f"{self.root}/figures/{model}.json" for model in self.study.models]

    def figure_files(self, model: str) -> list[str]:
        """The files of all figures of a model; those with nothing to show are not written."""
        return [f"{self.root}/figures/{model}/{name}.{kind}" for name, kind in product(FIGURES, ("pdf", "png"))]
