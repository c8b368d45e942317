"""The figures of the study. Each is a function of the final tables and a model's name.

Adding one is a function, a row here, and its caption in workflow/report/.
"""

from __future__ import annotations

from collections.abc import Callable

from shadowcore.report.figures.beside import beside
from shadowcore.report.figures.context import context, fewshot, tasks
from shadowcore.report.figures.criteria import criteria, factorial
from shadowcore.report.figures.curves import accuracy, perplexity, policies
from shadowcore.report.figures.designs import designs
from shadowcore.report.figures.differences import differences
from shadowcore.report.figures.importance import importance_map, variability
from shadowcore.report.figures.ranking import predictor_quality
from shadowcore.report.figures.scaling import decoding, scaling
from shadowcore.report.figures.settings import batches, contexts
from shadowcore.report.figures.sizes import sizes
from shadowcore.report.figures.speed import latency, pareto
from shadowcore.report.style import Figure, save
from shadowcore.report.tables import Tables

__all__ = ["FIGURES", "TIMED_FIGURES", "save"]

FIGURES: dict[str, Callable[[Tables, str], Figure]] = {
    "perplexity": perplexity,
    "accuracy": accuracy,
    "differences": differences,
    "criteria": criteria,
    "factorial": factorial,
    "policies": policies,
    "designs": designs,
    "sizes": sizes,
    "context": context,
    "tasks": tasks,
    "fewshot": fewshot,
    "importance_map": importance_map,
    "variability": variability,
    "predictor_quality": predictor_quality,
    "latency": latency,
    "pareto": pareto,
    "beside": beside,
}
# of models timed by their dimensions; all but "decoding" of all of them together
TIMED_FIGURES: dict[str, Callable[[Tables, str], Figure]] = {
    "decoding": decoding, "scaling": scaling, "batches": batches, "contexts": contexts,
}  # fmt: skip
