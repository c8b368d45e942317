"""A study as one page to pass on: the answer, figures with captions, claims, tables, configuration and origin.

One file that needs no other: figures are inside it, and its policy forbids the browser to load anything or to run a
script. Readable on a phone, in light and dark. Whatever comes from a configuration or a table is escaped.
"""

import re
import struct
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup, escape

from shadowcore import artifacts
from shadowcore.report.blocks import Block, answers, claimed, lacking, measured, refused, summaries
from shadowcore.report.budgets import at_bytes
from shadowcore.report.captions import CAPTIONS
from shadowcore.report.drawn import Drawn
from shadowcore.report.page_template import PAGE
from shadowcore.report.style import PNG_DPI
from shadowcore.report.tables import Tables

SCHEMA = "page/1"
SECTIONS = ("Answer", "Summary", "Figures", "Published claims", "Tables", "Configuration", "Origin")
WORDS = {
    "unit": "an attention head, or a neuron of a feed-forward network",
    "sparsity": "share of units removed, in every layer but the first",
    "criterion": "how a unit's importance for an input is scored; plainact is ShadowLLM's",
    "magnitude": "the criterion l2_norm, as in DejaVu: the norm of a unit's output",
    "dense": "the whole model, nothing removed",
    "random": "units removed at random",
    "static": "the same units removed for every input, those with the lowest mean scores; it needs no predictor",
    "static_tuned": "the same units for every input, by scores that were tuned on the sparse model",
    "shadow": "one predictor for the whole model, which reads its first layer",
    "layerwise": "a predictor for every layer, which reads what enters the layer before",
    "layerwise_own": "a predictor for every layer, which reads what the layer's own heads put out",
    "dejavu": "a predictor for every layer, which reads the layer before, between its attention and its FFN",
    "segments": "a predictor for each group of layers, which reads what enters the group",
    "threshold, cats, griffin, relu": "no predictor: keeps neurons with a large activation, or a large gate, for the "
    "token; with a large activation over the prompt; or those that are not zero",
    "sparseinfer, proxy4": "a copy of the layer's own weights in 1 or 4 bits chooses; proxy4_ahead before attention",
    "retrained, tuned": "a predictor that was trained again on a model under the masks of another one; or trained "
    "further under its own masks, so that the model's outputs come closer to the dense model's",
    "huggingface": "the model as Hugging Face's transformers runs it",
    "oracle": "units chosen by their true scores, which no decoder knows; other methods can be better, because a score "
    "is only an estimate",
}


def page(
    configuration: Mapping[str, Any], found: Tables, figures: Sequence[Drawn], introduction: str,
    header: Mapping[str, Any], files: Sequence[Path],
) -> str:  # fmt: skip
    """The page as HTML; introduction: reStructuredText; files: those whose origin is listed."""
    environment = Environment(autoescape=True)
    environment.filters["prose"] = prose
    missing = lacking(header.get("spec", {}).get("missing", []))
    return environment.from_string(PAGE.lstrip()).render(
        study=configuration, configuration=yaml.safe_dump(dict(configuration), sort_keys=False), run=header["run"],
        metadata_key=artifacts.METADATA_KEY, made_of=artifacts.origin(SCHEMA, header), introduction=introduction,
        warnings=filter(None, (missing, refused(found))), sections=SECTIONS, words=WORDS,
        answer=chain(at_bytes(found), answers(found)), summary=summaries(found), figures=figures, images=_images,
        claims=claimed(found), verdicts=_verdicts, files=_origins(files),
        tables=chain(at_bytes(found, True), answers(found, True), measured(found)),
    )  # fmt: skip


def prose(text: str) -> Markup:
    """Paragraphs of a caption, with ``words`` and **words** as they are meant."""
    text = re.sub(r"``(.+?)``", r"<code>\1</code>", str(escape(text.strip())))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return Markup("".join(f"<p>{part}</p>" for part in re.split(r"\n\s*\n", text)))


def _verdicts(block: Block) -> str:
    """How often each verdict was given: the last of a claim's words."""
    found = Counter(row[len(block.words) - 1] for row in block.rows)
    return ", ".join(f"{verdict}: {count}" for verdict, count in found.items())


def _images(one: Drawn) -> Iterator[dict[str, Any]]:
    for name, path in one.files.items():
        content = path.read_bytes()
        # pixels, from the first chunk of a PNG; as large as the figure was laid out
        width, height = (round(size * 96 / PNG_DPI) for size in struct.unpack(">2I", content[16:24]))
        caption = CAPTIONS.get(name, name)
        yield {"name": name, "width": width, "height": height, "caption": caption, "data": b64encode(content).decode()}


def _origins(files: Sequence[Path]) -> Block:
    """A line for each file: what it is, and by which code, commit and device it was made."""
    rows = []
    for path in files:
        found = artifacts.read_origin(path)
        header, run = found["header"], found["header"].get("run", {})
        words = [found["schema"], header.get("stage", ""), header.get("code", "")]
        rows.append([f"{path.parent.name}/{path.name}", *words, run.get("commit", ""), run.get("device", "")])
    names = ["file", "schema", "stage", "code", "commit", "device"]
    return Block("Files behind this page", "shadowcore explain FILE tells more", names, [], rows)
