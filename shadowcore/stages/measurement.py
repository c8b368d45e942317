"""The measurement of many conditions on one model with one load, and their outcome files."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from shadowcore import artifacts, benchmarks, manifests, provenance
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.errors import ArtifactError, ConfigError, ShadowcoreError
from shadowcore.measure.group import Group, attempt
from shadowcore.measure.perplexity import document_losses
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.measure.questions import Questions, true_continuation
from shadowcore.measure.sparsity import Masks, SparseModel
from shadowcore.schemas import OUTCOMES
from shadowcore.stages.base import Outputs, Progress, header
from shadowcore.stages.conditions import NEEDS_PROMPTS, OWN_TASKS, Condition, Spec, parts
from shadowcore.stages.inputs import ModelAndText
from shadowcore.texts.documents import TASKS

Source = Callable[[Condition, Any], Masks | None]  # makes the masks of a condition from its own inputs
Tick = Callable[[float], None]


class Evaluated(ModelAndText):
    """tasks: our own questions about the text; benchmarks: files of prepare-benchmark, <task>.parquet."""

    tasks: Path
    benchmarks: tuple[Path, ...]


def measure(
    stage: str, spec: Spec, inputs: Evaluated, outputs: Outputs, own: Mapping[str, Any],
    sources: Callable[[torch.nn.Module], Source],
) -> None:  # fmt: skip
    """Measure every condition that has no outcome file of the same specification, code and inputs yet.

    own: for each condition, by name, the inputs that it alone needs. Its outcome file is the same as that of a job with
    this condition only. sources: called once for each part of the conditions, so its result may keep what they share.
    Raises ShadowcoreError, naming each condition that failed, after all others are written.
    """
    unfinished = manifests.unfinished(outputs.manifest)
    unfinished.unlink(missing_ok=True)
    progress, digest = Progress(stage), cache(artifacts.digest)
    whole = header(stage, spec, inputs, digest)
    alone = {
        name: header(stage, replace(spec, conditions={name: condition}), own[name], digest)
        for name, condition in spec.conditions.items()
    }
    files = {name: manifests.outcome(outputs.manifest, name) for name in spec.conditions}
    there = {name: path for name, path in files.items() if _is_there(path, alone[name])}
    left = {name: condition for name, condition in spec.conditions.items() if name not in there}
    progress.say(f"{len(left)} conditions to measure, {len(there)} are measured already")
    failed: dict[str, Exception] = {}
    for part, tables in _measured(spec, inputs, own, sources, left, failed, progress) if left else ():
        for name in part:
            if name in tables:
                now = {"run": provenance.run_information()}  # the device is known since the model is on it
                artifacts.write_table(files[name], OUTCOMES.schema, tables[name], alone[name] | now)
                there[name] = files[name]
            progress.say(f"{name}: " + ("measured" if name in tables else f"failed: {_sentence(failed[name])}"))
        manifests.write(unfinished, there, whole)
    if failed:
        raise ShadowcoreError(_failures(failed, len(spec.conditions)))
    manifests.write(outputs.manifest, dict(sorted(there.items())), whole | {"run": provenance.run_information()})
    unfinished.unlink(missing_ok=True)


def _is_there(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether an outcome file would be the same if it were made now; machine and commit do not count."""
    try:
        OUTCOMES.read(path)
        made = artifacts.read_header(path)
    except ArtifactError:
        return False
    return all(made.get(key) == value for key, value in wanted.items() if key != "run")


def _sentence(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text if isinstance(error, ShadowcoreError) else f"{type(error).__name__}: {text}"


def _failures(failed: Mapping[str, Exception], count: int) -> str:
    """One sentence that names every failed condition; conditions with the same error are named together."""
    alike: dict[str, list[str]] = {}
    for name, error in failed.items():
        alike.setdefault(_sentence(error), []).append(name)
    reasons = "; ".join(f"{', '.join(names)}: {sentence}" for sentence, names in alike.items())
    return f"{len(failed)} of {count} conditions failed, and the others are measured: {reasons}"


class Run(NamedTuple):
    """One kind of outcome: `outcomes(group, tick)` returns its rows for each condition.

    size: number of documents, for the progress; prompted: whether there are prompts, which the protocol `prompt` needs.
    """

    name: str
    size: int
    prompted: bool
    outcomes: Callable[[Group, Tick], dict[str, list[dict[str, Any]]]]


def _measured(
    spec: Spec, inputs: Evaluated, own: Mapping[str, Any], sources: Callable[[torch.nn.Module], Source],
    conditions: Mapping[str, Condition], failed: dict[str, Exception], progress: Progress,
) -> Iterator[tuple[dict[str, Condition], dict[str, pa.Table]]]:  # fmt: skip
    """Part after part: the conditions that are measured side by side, and outcomes of those that did not fail."""
    model = inputs.model(spec.dtype)
    runs = _runs(spec, inputs, model)
    tick = _percent(progress, len(conditions) * sum(run.size for run in runs))
    files = {name: getattr(own[name], "predictors", ()) for name in conditions}
    bytes_of = {path: path.stat().st_size for paths in files.values() for path in paths if path.is_file()}
    for part in parts({name: {path: bytes_of.get(path, 0) for path in paths} for name, paths in files.items()}):
        chosen, masks = {name: conditions[name] for name in part}, sources(model)

        def put_on(name: str, condition: Condition, masks: Source = masks) -> SparseModel:
            return SparseModel(model, masks(condition, own[name]), PROTOCOLS[condition.protocol or "token"])

        group = Group(attempt(put_on, chosen, failed), failed)
        yield chosen, _side_by_side(group, chosen, runs, tick)
        del group, masks, put_on  # and with them the predictors, before others are read


def _side_by_side(
    group: Group, conditions: Mapping[str, Condition], runs: list[Run], tick: Tick
) -> dict[str, pa.Table]:
    """The outcomes of every condition that does not fail."""
    tables: dict[str, list[pa.Table]] = {name: [OUTCOMES.build([])] for name in conditions}

    def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
        if not all(math.isfinite(row["value"]) for row in rows):
            raise ArtifactError(
                f"the model's {rows[0]['task']} is not finite on this text; use other weights, or dtype float32"
            )
        sparse, condition = group.members[name], conditions[name]
        measured = asdict(condition) | sparse.measured_sparsity(condition.kinds)
        sparse.count_anew()
        return OUTCOMES.build(measured | row for row in rows)

    for run in runs:
        fit = group.where(lambda sparse, run=run: run.prompted or sparse.protocol is not PROTOCOLS[NEEDS_PROMPTS])
        found = run.outcomes(fit, lambda share, run=run: tick(run.size * share))
        for name, part in attempt(table, found, group.failed).items():
            tables[name].append(part)
    return {name: pa.concat_tables(tables[name]).combine_chunks() for name in group.alive}


def _percent(progress: Progress, total: float) -> Tick:
    """Prints a line of progress for each per cent; call it with the amount of work since the last call."""
    done, printed = 0.0, 0

    def tick(amount: float) -> None:
        nonlocal done, printed
        done += amount
        if (percent := int(100 * done / total)) > printed:
            printed = percent
            progress(percent, 100)

    return tick


def _runs(spec: Spec, inputs: Evaluated, model: torch.nn.Module) -> list[Run]:
    """The kinds of outcomes of a job, prepared once for all conditions: windows, our own questions, benchmarks."""
    runs, tokenizer = _windows(spec, inputs), inputs.tokenizer
    longest = model.config.max_position_embeddings
    if "true_continuation" in spec.tasks:
        task = true_continuation(TASKS.read(inputs.tasks).to_pylist())
        questions = Questions(model, tokenizer, [task], spec.request_tokens, longest)
        runs.append(Run("true_continuation", len(questions), True, questions.outcomes))
    prepared = {path.stem: benchmarks.prepared(path) for path in inputs.benchmarks}
    if missing := set(spec.tasks) - {*OWN_TASKS, *prepared}:
        raise ConfigError(f"--benchmarks: {sorted(missing)} are missing; prepare-benchmark writes a file of each")
    for batch, window, tasks in _together(spec, prepared):
        questions = Questions(model, tokenizer, tasks, batch, min(window or longest, longest))
        name = ", ".join(f"{task.config.task} ({task.config.num_fewshot}-shot)" for task in tasks)
        runs.append(Run(name, len(questions), window is None, questions.outcomes))
    return runs


def _windows(spec: Spec, inputs: Evaluated) -> list[Run]:
    """Perplexities of windows: of the whole, which has no prompt, and of the half after a prompt."""
    windows = inputs.windows("evaluation", spec.window_tokens, spec.windows, spec.text_seed)
    data = next(iter(spec.conditions.values())).data

    def outcomes(task: str, prompt: int, data: str, group: Group, tick: Tick) -> dict[str, list[dict[str, Any]]]:
        losses = document_losses(group, windows, spec.window_batch, tick, prompt)
        measured = {"task": task, "data": data, "metric": "nll"}
        return {name: [measured | row for row in rows] for name, rows in losses.items()}

    runs = [("perplexity", 1, data)]
    if "second_half" in spec.tasks:
        runs.append(("second_half", spec.window_tokens // 2, f"{data} (second half)"))
    return [Run(task, len(windows), prompt > 1, partial(outcomes, task, prompt, data)) for task, prompt, data in runs]


def _together(spec: Spec, prepared: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[int, int | None, list]]:
    """Tokens of a batch, longest window (None: the model's) and tasks of every run of lm-eval, as few as possible."""

    def task(name: str, shots: int):
        parts = {"evaluation": [], "examples": []}
        for row in prepared[name]:
            parts[row[benchmarks.SPLIT]].append({column: row[column] for column in BENCHMARKS[name].columns})
        return benchmarks.task(name, parts["evaluation"], parts["examples"] if shots else [], shots)

    names = [name for name in spec.tasks if name in BENCHMARKS]
    prompted = [name for name in names if not BENCHMARKS[name].rolling]
    for shots in spec.fewshot if prompted else ():
        shown = [name for name in prompted if not shots or BENCHMARKS[name].train]
        yield spec.request_tokens, None, [task(name, shots) for name in shown]
    rolling = [task(name, 0) for name in names if BENCHMARKS[name].rolling]
    if rolling:
        yield spec.window_batch * spec.rolling_tokens, spec.rolling_tokens, rolling
