"""What an evaluation job measures: several conditions of one model and text, and which of them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowcore.measure.conditions import Condition
from shadowcore.stages.base import runtime_only

# true_continuation: a question; second_half: the perplexity of every window's second half, the first being its prompt
OWN_TASKS = ("true_continuation", "second_half")
NEEDS_PROMPTS = "prompt"  # the protocol that has nothing to say of a text without one: it goes unmeasured there
# conditions that are measured side by side, and bytes of the files of their predictors, which have twice that in
# memory: a job that is killed loses no more than these
AT_ONCE = 16
AT_ONCE_BYTES = 4e9


@dataclass(frozen=True)
class Spec:
    """Conditions of one model and text, and the size of their measurement; batches in windows, or tokens of requests.

    conditions: by their names, see `manifests.name`; tasks: what is asked besides the perplexity of whole
    windows, our own and benchmarks; fewshot: numbers of examples in a benchmark's prompts; rolling_tokens: longest
    window of a rolling benchmark; text_seed: of windows.
    """

    conditions: dict[str, Condition]
    windows: int
    window_tokens: int
    window_batch: int = runtime_only()
    request_tokens: int = runtime_only()
    dtype: str
    text_seed: int
    tasks: tuple[str, ...] = ("true_continuation",)
    fewshot: tuple[int, ...] = (0,)
    rolling_tokens: int = 2048


@dataclass(frozen=True)
class Outputs:
    """manifest: lists the outcome files, which are written beside it."""

    manifest: Path


def parts(predictors: Mapping[str, Mapping[Any, float]]) -> Iterator[list[str]]:
    """The conditions that are measured side by side; predictors: of each condition, those it needs with their bytes."""
    part: list[str] = []
    held: dict[Any, float] = {}
    for setup, needed in predictors.items():
        if part and (len(part) == AT_ONCE or sum((held | needed).values()) > AT_ONCE_BYTES):
            yield part
            part, held = [], {}
        part.append(setup)
        held |= needed
    if part:
        yield part
