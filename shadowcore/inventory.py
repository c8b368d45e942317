"""Which jobs a study has, and where their files are: conditions, evaluations, predictors, traces, tables."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path

from shadowcore import manifests
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config import Study
from shadowcore.measure.conditions import Condition, PredictorId
from shadowcore.measure.methods import METHODS
from shadowcore.method.predictors import PREDICTORS
from shadowcore.rules import RULES, name_of, written
from shadowcore.schemas import FINAL_TABLES

Evaluation = tuple[str, str, str]  # an evaluation job: model, text, and `manifests.part`


class Inventory:
    """The conditions of a study by evaluation job, the jobs of every rule, and paths of files."""

    def __init__(self, study: Study, results: Path = Path("results")):
        self.study, self.root = study, results / study.study
        self.timed_dimensions = study.timed_dimensions

    @cached_property
    def names(self) -> dict[str, list[tuple[str, ...]]]:
        """The jobs of every rule, by the values of its wildcards."""
        study, conditions = self.study, self.conditions
        places = list(product(study.models, study.calibration))
        shards = [*(("train", str(shard)) for shard in range(study.traces.shards)), ("heldout", "0")]
        masking = sorted(filter(None, set(map(self.traced_under, self.trained.values()))))
        masked = [(one.model, one.calibration, one.slug(study.seed)) for one in masking]
        models = {relufied: [(name,) for name, model in study.models.items() if bool(model.relufied) == relufied]
                  for relufied in (False, True)}  # fmt: skip
        every = [(name,) for name in study.models]
        return {rule: [()] for rule in RULES} | {
            "fetch_model": models[False],
            "relufy": models[True],
            "prepare_text": [(name,) for name in study.texts],
            "prepare_benchmark": [(name,) for name in study.evaluation.tasks if name in BENCHMARKS],
            "check_disjoint": self.disjoint_pairs(conditions),
            "trace": [place + shard for place, shard in product(places, shards)],
            "trace_on_policy": [place + shard for place, shard in product(masked, shards)],
            "average": places,
            "calibrate_thresholds": sorted(
                {(one.model, one.calibration) for one in conditions if METHODS[one.method].reads == "thresholds"}
            ),
            "train_predictor": [place for place, one in self.trained.items() if not self.is_tuned(one)],
            "tune_predictor": [place for place, one in self.trained.items() if self.is_tuned(one)],
            "evaluate": [key for key in self.evaluations if key[2] != manifests.ORACLE],
            "evaluate_oracle": [key[:2] for key in self.evaluations if key[2] == manifests.ORACLE],
            "latency": every if study.latency else [],
            "latency_random": list(self.timed_dimensions),
            "draw": every,
        }

    def outputs(self, rule: str, *values: str) -> dict[str, str]:
        """The files that a job writes, by the option of its stage that names them. values: of the rule's wildcards."""
        return written(self.root, rule, name_of(rule, *values))

    def made_by(self, rule: str, option: str) -> list[str]:
        """The outputs of all jobs of a rule under an option."""
        return [self.outputs(rule, *values)[option] for values in self.names[rule]]

    # ---- evaluations

    @cached_property
    def evaluations(self) -> dict[Evaluation, dict[str, Condition]]:
        """The conditions of every evaluation job by their names, sorted."""
        found = {}  # several grids may have the same condition
        for model, data in product(self.study.models, self.study.evaluation.texts):
            dense = Condition(model=model, data=data, method="dense", seed=self.study.seed)
            grids = [grid for grid in self.study.conditions if not grid.models or model in grid.models]
            for one in chain([dense], *(grid.combinations(dense, self.study.calibration) for grid in grids)):
                found[model, data, one.slug(self.study.seed), one.sparsity_pct] = one
        evaluations: dict[Evaluation, dict[str, Condition]] = {}
        for (model, data, slug, pct), one in sorted(found.items()):
            before = len(self.study.chain(one.predictor)) - 1 if one.predictor_id else 0
            key = model, data, manifests.part(one.method, pct, before)
            evaluations.setdefault(key, {})[manifests.name(slug, pct)] = one
        return evaluations

    @property
    def conditions(self) -> list[Condition]:
        """All conditions."""
        return [one for job in self.evaluations.values() for one in job.values()]

    def manifests(self) -> list[str]:
        """The manifests of all evaluation jobs."""
        return [f"{self.root}/outcomes/{model}/{data}/{part}.json" for model, data, part in self.evaluations]

    def benchmarks(self, data: str) -> list[str]:
        """Files of the benchmarks, which the jobs of the first text measure; none for other texts."""
        return self.made_by("prepare_benchmark", "documents") if data == self.study.evaluation.texts[0] else []

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

    # ---- predictors and their traces

    @cached_property
    def used_predictors(self) -> set[PredictorId]:
        """The predictors that conditions and the section `latency` use."""
        used = {one.predictor_id for one in self.conditions if one.predictor_id}
        return used.union(*map(self.latency_predictors, self.study.models if self.study.latency else ()))

    @cached_property
    def trained(self) -> dict[tuple[str, str, str], PredictorId]:
        """All predictors that are trained, also those that only others begin with, by model, text and slug."""
        every = {replace(one, predictor=n) for one in self.used_predictors for n in self.study.chain(one.predictor)}
        return {(one.model, one.calibration, one.slug(self.study.seed)): one for one in sorted(every)}

    def latency_predictors(self, model: str) -> list[PredictorId]:
        """The predictors of a model whose speed is measured."""
        plan, text = self.study.latency, self.study.calibration[0]
        return [
            PredictorId(model, text, method, plan.criterion, plan.predictor, self.study.seed)
            for method in plan.methods
            if method in PREDICTORS
        ]

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

    def traces(self, key: PredictorId, split: str) -> list[str]:
        """The traces of a split that a predictor is trained or judged on."""
        under = self.traced_under(key)
        place = f"{key.model}/{key.calibration}"
        return self.shards(f"{place}/{under.slug(self.study.seed)}" if under else place, split)

    def shards(self, folder: str, split: str) -> list[str]:
        """The traces of a split in a folder: of the dense model in `<model>/<calibration>`."""
        shards = self.study.traces.shards if split == "train" else 1
        return [f"{self.root}/traces/{folder}/{split}-{shard}.safetensors" for shard in range(shards)]

    # ---- results

    def tables(self, names: Iterable[str] = FINAL_TABLES) -> list[str]:
        """The final tables."""
        return [f"{self.root}/tables/{name}.parquet" for name in names]
