"""Fetch a model from its source into a folder that other stages load, and write its card."""

from typing import Any

from shadowcore import artifacts
from shadowcore.models import sources
from shadowcore.stages.base import CARD_SCHEMA, Frozen, Outputs, origin, parse_spec
from shadowcore.stages.base import Nothing as Inputs


class Spec(Frozen):
    """kind: package, hub, folder or random; source: the fields of this kind."""

    kind: str
    source: dict[str, Any]


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    source = parse_spec(sources.MODEL_SOURCES[spec.kind], spec.source, f"models.{spec.kind}")
    card = sources.fetch(source, outputs.weights)
    artifacts.write_record(outputs.card, CARD_SCHEMA, card, origin("fetch-model", spec, inputs))
