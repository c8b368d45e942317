"""The specification of an evaluation job, and which of its conditions are measured together."""

from collections.abc import Iterator, Mapping
from typing import Any

from shadowcore.measure.conditions import Condition
from shadowcore.stages.base import Frozen, runtime_only

# true_continuation: multiple choice; second_half: perplexity of every window's second half, with the first as prompt
OWN_TASKS = ("true_continuation", "second_half")
NEEDS_PROMPTS = "prompt"  # the protocol that is not defined for texts without a prompt, and not measured on them
# limits for conditions that are measured together: their number, and bytes of the files of their predictors, which need
# twice as much memory; a killed job loses at most these conditions
AT_ONCE = 16
AT_ONCE_BYTES = 4e9


class Spec(Frozen):
    """Conditions of one model and text, and the sizes of their measurement.

    conditions: by name (`manifests.name`); window_batch, request_tokens: windows and tokens of lm-eval requests in a
    pass; tasks: our own tasks and benchmarks, which are measured in addition to the perplexity of windows; fewshot:
    numbers of examples in a benchmark's prompts; rolling_tokens: longest window of a rolling benchmark; text_seed: of
    windows.
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


def parts(predictors: Mapping[str, Mapping[Any, float]]) -> Iterator[list[str]]:
    """Groups of conditions that are measured together. predictors: for each condition, its predictors' bytes."""
    part: list[str] = []
    held: dict[Any, float] = {}
    for name, needed in predictors.items():
        if part and (len(part) == AT_ONCE or sum((held | needed).values()) > AT_ONCE_BYTES):
            yield part
            part, held = [], {}
        part.append(name)
        held |= needed
    if part:
        yield part
