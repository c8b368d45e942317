"""The figures of the study: each is a function of the final tables and a model's name, and has a caption.

A figure that has nothing to show returns the reason as text. Adding a figure: a function, and its name here.
"""

from collections.abc import Callable

from shadowcore.report.figures.bytes import quality_per_byte
from shadowcore.report.figures.claims import claims
from shadowcore.report.figures.criteria import criteria, factorial
from shadowcore.report.figures.curves import accuracy, gain_over_static, perplexity, policies
from shadowcore.report.figures.importance import importance_map, variability
from shadowcore.report.figures.predictors import designs, learning_curves, predictor_quality, sizes
from shadowcore.report.figures.scaling import decoding, scaling, step_parts
from shadowcore.report.figures.speed import latency, pareto
from shadowcore.report.figures.sweeps import batches, contexts
from shadowcore.report.figures.tasks import differences, fewshot, tasks
from shadowcore.report.style import Drawing, save, styled
from shadowcore.report.tables import Tables

__all__ = ["FIGURES", "TIMED_FIGURES", "save"]

Draw = Callable[[Tables, str], Drawing]


def _named(*figures: Draw) -> dict[str, Draw]:
    return {draw.__name__: styled(draw) for draw in figures}


FIGURES = _named(
    quality_per_byte, perplexity, accuracy, gain_over_static, differences, designs, sizes, learning_curves, criteria,
    factorial, policies, tasks, fewshot, predictor_quality, importance_map, variability, latency, pareto, claims,
)  # fmt: skip
# of models timed by their dimensions; all but "decoding" of all of them together
TIMED_FIGURES = _named(decoding, scaling, step_parts, batches, contexts)
