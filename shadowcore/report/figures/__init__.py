"""The figures of the study: each is a function of the final tables and a model's name, and has a caption.

A figure that has nothing to show returns the reason as text. Adding a figure: a function, and a row here.
"""

from __future__ import annotations

from collections.abc import Callable

from shadowcore.report.figures.bytes import quality_per_byte
from shadowcore.report.figures.claims import claims
from shadowcore.report.figures.criteria import criteria, factorial
from shadowcore.report.figures.curves import accuracy, perplexity, policies
from shadowcore.report.figures.gain_over_static import gain_over_static
from shadowcore.report.figures.importance import importance_map, variability
from shadowcore.report.figures.predictor_quality import predictor_quality
from shadowcore.report.figures.predictors import designs, learning_curves, sizes
from shadowcore.report.figures.scaling import decoding, scaling, step_parts
from shadowcore.report.figures.speed import latency, pareto
from shadowcore.report.figures.sweeps import batches, contexts
from shadowcore.report.figures.tasks import differences, fewshot, tasks
from shadowcore.report.style import Drawing, save
from shadowcore.report.tables import Tables

__all__ = ["FIGURES", "TIMED_FIGURES", "save"]

Draw = Callable[[Tables, str], Drawing]
FIGURES: dict[str, Draw] = {
    "quality_per_byte": quality_per_byte,
    "perplexity": perplexity,
    "accuracy": accuracy,
    "gain_over_static": gain_over_static,
    "differences": differences,
    "designs": designs,
    "sizes": sizes,
    "learning_curves": learning_curves,
    "criteria": criteria,
    "factorial": factorial,
    "policies": policies,
    "tasks": tasks,
    "fewshot": fewshot,
    "predictor_quality": predictor_quality,
    "importance_map": importance_map,
    "variability": variability,
    "latency": latency,
    "pareto": pareto,
    "claims": claims,
}
# of models timed by their dimensions; all but "decoding" of all of them together
TIMED_FIGURES: dict[str, Draw] = {
    "decoding": decoding, "scaling": scaling, "step_parts": step_parts, "batches": batches, "contexts": contexts,
}  # fmt: skip
