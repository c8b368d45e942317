"""Check a study before its first job: its sources, its sizes, and whether this machine can run it.

Used by `plan`, `doctor` and the Snakefile. Checks use no network and read no weights. A source is not checked if the
file made from it already exists.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from shadowcore import artifacts, benchmarks, costs, machine, plan, states
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.decode.layout import require_decoded
from shadowcore.errors import ArtifactError, ConfigError, ShadowcoreError
from shadowcore.inventory import Evaluation
from shadowcore.jobs import Jobs, as_json, options
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import Dimensions, require_positions
from shadowcore.models.published import PUBLISHED
from shadowcore.models.sources import MODEL_SOURCES
from shadowcore.rules import outputs
from shadowcore.sections import Text
from shadowcore.stages.base import parse_spec
from shadowcore.stages.prepare_text import in_three
from shadowcore.texts.documents import Document
from shadowcore.texts.sources import TEXT_SOURCES
from shadowcore.work import Work

COMMAND_BYTES = 120_000  # Linux allows 128 KiB; other parts of the command are short
MANY = 1000  # a text with more documents is large enough for usual fractions
ANYWAY = "run the study on another machine, or start it nevertheless with `--config run_anyway=true`"


def check(jobs: Jobs) -> None:
    """Raise ConfigError for the first problem that would stop a job on any machine."""
    if messages := problems(jobs):
        raise ConfigError(messages[0])


def check_machine(jobs: Jobs) -> None:
    """Raise ConfigError if this machine cannot run the study, unless `run_anyway` is set."""
    if not jobs.study.run_anyway and (lacking := shortage(jobs)):
        raise ConfigError(f"{lacking}; {ANYWAY}")


def problems(jobs: Jobs) -> list[str]:
    """Messages about problems that would stop a job on any machine; sizes are only checked if all sources are right."""
    folder, wrong = jobs.study.offline, list(dict.fromkeys(sources(jobs)))
    if wrong and isinstance(folder, str) and not Path(folder).expanduser().is_dir():
        return [f"offline: '{folder}' is not a folder; use the folder that `shadowcore fetch` made, or true or false"]
    return wrong or list(sizes(jobs))


# ---- sources


def sources(jobs: Jobs) -> Iterator[str]:
    """Messages about models, texts and benchmarks that are missing or not as the configuration needs them."""
    study = jobs.study
    for name in study.models:
        rule = "relufy" if study.models[name].relufied else "fetch_model"
        if not made(jobs, rule, name):
            yield from refusal(_check_model, jobs, name)
    for name in study.texts:
        if not made(jobs, "prepare_text", name):
            yield from refusal(_check_text, f"texts.{name}", study.texts[name])
    for name in (task for task in study.evaluation.tasks if task in BENCHMARKS):
        if not made(jobs, "prepare_benchmark", name):
            spec = jobs.prepare_benchmark(name)
            yield from refusal(benchmarks.check, name, spec["offline_dir"], spec["fewshot"], spec["limit"])


def refusal(check: Callable[..., None], *arguments: Any) -> list[str]:
    """The message of the error that a check raises, as a list; empty if it raises none."""
    try:
        check(*arguments)
    except ShadowcoreError as error:
        return [str(error)]
    return []


def made(jobs: Jobs, rule: str, name: str) -> bool:
    """Whether a job's first output exists and was made with the job's present specification."""
    path = outputs(jobs.root, rule, name)[0]
    try:
        return path.is_file() and artifacts.read_header(path).get("spec") == json.loads(jobs.spec(rule, name))
    except ArtifactError:
        return False


def _check_model(jobs: Jobs, name: str) -> None:
    model = jobs.study.models[name]
    kind, fields = next(iter(model.source.items()))
    where = f"models.{name}.source.{kind}"
    (model.relufied or parse_spec(MODEL_SOURCES[kind], fields, where)).check(where)


def _check_text(where: str, text: Text) -> None:
    kind, fields = next(iter(text.source.items()))
    try:
        source = parse_spec(TEXT_SOURCES[kind], fields, "source")
        source.check()
        documents = source.documents if kind == "random" else _files(fields["path"]) if kind == "folder" else 0
        if 0 < documents < MANY:
            pretended = [Document.of("", str(number)) for number in range(documents)]
            in_three(pretended, text.heldout_fraction, text.evaluation_fraction, 0)
    except ShadowcoreError as error:
        raise type(error)(f"{where}.{str(error).replace('source', f'source.{kind}', 1)}") from None


def _files(folder: str) -> int:
    """Number of documents in a folder of plain texts; 0 if documents would have to be read to be counted."""
    files = [path for path in Path(folder).expanduser().glob("[!.]*") if path.is_file()]
    return len(files) if all(path.suffix == ".txt" for path in files) else 0


# ---- sizes


def sizes(jobs: Jobs) -> Iterator[str]:
    """Messages about models that are too small for the study, if their sizes are known, and about too large jobs."""
    for name in jobs.study.models:
        if size := costs.size_of(jobs, name):
            yield from refusal(_check_decoded, jobs, name, size.family)
            yield from refusal(_check_positions, jobs, f"models.{name}", size.dimensions)
            yield from refusal(_check_predictors, jobs, name, size.dimensions)
    for (name, _), spec in jobs.timed_dimensions.items():
        yield from refusal(_check_timed, name, spec)
    for key in jobs.evaluations:
        yield from refusal(_check_command, jobs, key)


def _check_command(jobs: Jobs, key: Evaluation) -> None:
    """Raise ConfigError for an evaluation job whose command would be too long for a shell."""
    conditions = jobs.evaluations[key]
    words = as_json(jobs.evaluate(*key)), *options(jobs.inputs("evaluate", *key))
    size = sum(len(word) + 3 for word in words)
    if size > COMMAND_BYTES:
        model, _, part = key
        raise ConfigError(
            f"conditions: {len(conditions)} conditions of model {model} at one sparsity ({part} %) are too many for "
            f"one job; there must be at most about {len(conditions) * COMMAND_BYTES // size}; divide "
            "them among several studies"
        )


def _check_decoded(jobs: Jobs, model: str, family: str) -> None:
    """Raise ConfigError if `latency` would time a model that the decoder does not support."""
    if jobs.study.latency:
        try:
            require_decoded(family)
        except ConfigError as error:
            raise ConfigError(f"latency: models.{model}: {error}; leave `latency` out of its study") from None


def _check_positions(jobs: Jobs, model: str, sizes: Dimensions) -> None:
    study = jobs.study
    require_positions(sizes.positions, study.traces.window_tokens, "traces.window_tokens", model)
    require_positions(sizes.positions, study.evaluation.window_tokens, "evaluation.window_tokens", model)
    if timed := study.latency:
        total = timed.prompt_tokens + timed.new_tokens
        require_positions(sizes.positions, total, "latency.prompt_tokens + new_tokens", model)


def _check_predictors(jobs: Jobs, model: str, sizes: Dimensions) -> None:
    """Raise ConfigError for a predictor whose segments or blocks of neurons do not fit the model."""
    for used in sorted(jobs.used_predictors):
        if used.model != model:
            continue
        recipe, where = jobs.study.recipe_of(used.predictor), f"predictors.{jobs.study.chain(used.predictor)[0]}"
        if used.method == "segments":
            _check_segments(f"{where}.segments", recipe.segments, sizes, f"models.{model}")
        if sizes.neurons % recipe.block:
            raise ConfigError(
                f"{where}.block: {recipe.block} found; it must divide the {sizes.neurons} neurons of models.{model}"
            )


def _check_segments(key: str, count: int, sizes: Dimensions, model: str) -> None:
    if count > (most := sizes.layers - FIRST_SPARSE_LAYER):
        raise ConfigError(f"{key}: {count} is too large; {model} has {sizes.layers} layers, which allow 1 to {most}")


def _check_timed(model: str, spec: dict[str, Any]) -> None:
    """Raise ConfigError if a timing with random weights does not fit the published model."""
    sizes = PUBLISHED[model].dimensions
    total = spec["prompt_tokens"] + spec["new_tokens"]
    require_positions(sizes.positions, total, "latency_random.prompt_tokens + new_tokens", model)
    for design in spec["designs"]:
        if design["method"] == "segments":
            _check_segments("latency_random.designs: segments", design["segments"], sizes, model)


# ---- this machine


def shortage(jobs: Jobs) -> str | None:
    """Why this machine cannot run the unfinished jobs; None if it can."""
    todo = [job for job in plan.work(jobs) if not states.done(jobs, job.rule, job.name)]
    reason = _gpu_shortage([job for job in todo if job.needs_gpu])
    if not reason and todo:
        largest = max(todo, key=lambda job: job.memory)
        reason = _too_large(largest, "memory", largest.memory, machine.memory())
    return f"this machine cannot run the study: {reason}" if reason else None


def _gpu_shortage(todo: list[Work]) -> str | None:
    if not todo:
        return None
    todo = sorted(todo, key=lambda job: -job.gpu_bytes)
    need = f"{len(todo)} jobs need one, such as {todo[0].place}"
    if not (gpus := machine.gpu_memory()):
        return f"it has no GPU, but {need}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use its GPU (`shadowcore doctor` explains why), but {need}"
    room = {True: (sum(gpus), "GPU memory"), False: (max(gpus), "memory on its largest GPU")}
    reasons = (_too_large(job, room[job.spreads][1], job.gpu_bytes, room[job.spreads][0]) for job in todo)
    return next(filter(None, reasons), None)


def _too_large(job: Work, what: str, needed: float, available: float) -> str | None:
    if needed <= available:
        return None
    return f"it has {available / 1e9:.0f} GB of {what}, but {job.place} needs about {needed / 1e9:.0f} GB"
