"""A study as one page to pass on: the answer, figures with captions, claims, tables, configuration and origin.

One file that needs no other: figures are inside it, and its policy forbids the browser to load anything or to run a
script. Readable on a phone, in light and dark. Whatever comes from a configuration or a table is escaped.
"""

from __future__ import annotations

import html
import re
import struct
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shadowcore import artifacts
from shadowcore.report.blocks import Block, answers, claimed, lacking, measured, refused, summaries
from shadowcore.report.budgets import at_bytes
from shadowcore.report.captions import CAPTIONS
from shadowcore.report.drawn import Drawn
from shadowcore.report.style import PNG_DPI
from shadowcore.report.tables import Tables

SCHEMA = "page/1"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #5f6368; --paper: #fff; --line: #d8dadd; --band: #f4f5f6;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --faint: #a3a8ad; --paper: #16181a; --line: #3a3d41;
  --band: #202326; --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
a { color: var(--link); } nav a { margin-right: 1rem; white-space: nowrap; }
h1 { margin: 0 0 .5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; background: linear-gradient(to right, var(--paper) 30%, transparent) local,
  linear-gradient(to left, var(--paper) 30%, transparent) right local, linear-gradient(to right, #8886, transparent),
  linear-gradient(to left, #8886, transparent) right; background-repeat: no-repeat;
  background-size: 3rem 100%, 3rem 100%, .8rem 100%, .8rem 100%; }
.scrolls { display: none; margin: 0; color: var(--faint); font-size: .85rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.title { margin: 1rem 0 0; font-weight: 600; }
.note, summary span { margin: 0 0 .25rem; font-weight: 400; color: var(--faint); font-size: .85rem; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; } .number { text-align: right; white-space: pre; }
figure { margin: 1.5rem 0; } figcaption { max-width: 46rem; color: var(--faint); font-size: .9rem; }
figure img { display: block; height: auto; max-width: 100%; background: #fff; border: 1px solid var(--line);
  border-radius: 4px; }
@media (max-width: 40rem) { figure img { max-width: none; width: 44rem; } .scrolls { display: block; } }
.warning { padding: .1rem 1rem 1rem; border: 2px solid #b3261e; border-radius: 4px; margin: 1rem 0; }
.warning td { white-space: normal; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; padding: .75rem; background: var(--band); font-size: .8rem; }
dt { font-weight: 600; } dd { margin: 0 0 .25rem 1.5rem; color: var(--faint); }
@media print { details::details-content { content-visibility: visible; } nav { display: none; } }
"""
WORDS = {
    "unit": "an attention head, or a neuron of a feed-forward network",
    "sparsity": "share of units removed, in every layer but the first",
    "criterion": "how a unit's importance for an input is scored; plainact is ShadowLLM's",
    "magnitude": "the criterion l2_norm, as in DejaVu: the norm of a unit's output",
    "dense": "the whole model, nothing removed",
    "random": "units removed at random: the floor",
    "static": "the same units removed for every input, by their mean score: what needs no predictor",
    "static_tuned": "the same units for every input, by scores that were tuned on the sparse model",
    "shadow": "one predictor for the whole model, which reads its first layer",
    "layerwise": "a predictor for every layer, which reads what enters the layer before",
    "layerwise_own": "a predictor for every layer, which reads what the layer's own heads put out",
    "dejavu": "a predictor for every layer, which reads the layer before, between its attention and its FFN",
    "segments": "a predictor for each group of layers, which reads what enters the group",
    "threshold, cats, griffin, relu": "no predictor: keeps neurons with a large activation, or a large gate, for the "
    "token; with a large activation over the prompt; or those that are not zero",
    "sparseinfer, proxy4": "a copy of the layer's own weights in 1 or 4 bits chooses; proxy4_ahead before attention",
    "retrained, tuned": "a predictor trained again on what the model does under its masks, or tuned there",
    "huggingface": "the model as Hugging Face's transformers runs it",
    "oracle": "the true scores of the input itself: the best that this criterion can do, not a bound for others",
}


def page(
    configuration: Mapping[str, Any],
    found: Tables,
    figures: Sequence[Drawn],
    introduction: str,
    header: Mapping[str, Any],
    files: Sequence[Path],
) -> str:
    """The page as HTML; introduction: reStructuredText; files: those whose origin is listed."""
    name = str(configuration["study"])
    run = header["run"]
    sections = {
        "Answer": "".join(map(_titled, (*at_bytes(found), *answers(found)))) + _words(),
        "Summary": "".join(map(_titled, summaries(found))),
        "Figures": "".join(map(_figures, figures)),
        "Published claims": "".join(_folded(block, _verdicts(block)) for block in claimed(found)),
        "Tables": "".join(map(_folded, (*at_bytes(found, True), *answers(found, True), *measured(found)))),
        "Configuration": f"<pre>{html.escape(yaml.safe_dump(dict(configuration), sort_keys=False))}</pre>",
        "Origin": _origin(run, files),
    }
    links = "".join(f'<a href="#{_id(heading)}">{heading}</a>' for heading in sections)
    body = "".join(f'<section id="{_id(title)}"><h2>{title}</h2>{text}</section>' for title, text in sections.items())
    made_of = html.escape(artifacts.origin(SCHEMA, header))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="{artifacts.METADATA_KEY}" content="{made_of}">'
        f"<title>{html.escape(name)}: contextual sparsity</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>Study {html.escape(name)}</h1>{prose(introduction)}"
        f"<p>Commit {html.escape(run['commit'])}; models: {html.escape(', '.join(configuration['models']))}; "
        f"seed {html.escape(str(configuration['seed']))}.</p>{_warnings(found, header)}<nav>{links}</nav></header>\n"
        f"<main>{body}</main></body></html>\n"
    )


def _warnings(found: Tables, header: Mapping[str, Any]) -> str:
    """What is missing on this page, and what was not timed; nothing for a complete study."""
    blocks = list(filter(None, (lacking(header.get("spec", {}).get("missing", [])), refused(found))))
    return "".join(f'<div class="warning">{_titled(block)}</div>' for block in blocks)


def prose(text: str) -> str:
    """Paragraphs of a caption, with ``words`` and **words** as they are meant."""
    text = html.escape(text.strip())
    text = re.sub(r"``(.+?)``", r"<code>\1</code>", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return "".join(f"<p>{part}</p>" for part in re.split(r"\n\s*\n", text))


def _id(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _titled(block: Block) -> str:
    return f'<p class="title">{html.escape(block.title)}</p>{_table(block)}'


def _table(block: Block) -> str:
    head = "".join(f'<th scope="col">{html.escape(name.replace("_", " "))}</th>' for name in block.words)
    head += "".join(f'<th scope="col" class="number">{html.escape(name)}</th>' for name in block.numbers)
    rows = "".join(f"<tr>{_cells(row, len(block.words))}</tr>" for row in block.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<p class="note">{html.escape(block.note)}</p>{_wide(table, "table", len(block.words + block.numbers) > 3)}'


def _wide(content: str, what: str, scrolls: bool = True) -> str:
    """Content that may be wider than the screen, in a box that scrolls, and on a narrow screen says so."""
    hint = f'<p class="scrolls">Scroll this {what} sideways →</p>' if scrolls else ""
    return f'{hint}<div class="wide" tabindex="0" role="region" aria-label="{what}">{content}</div>'


def _cells(row: Iterable[str], words: int) -> str:
    cells = [html.escape(cell) for cell in row]
    words_cells = "".join(f"<td>{cell}</td>" for cell in cells[:words])
    return words_cells + "".join(f'<td class="number">{cell}</td>' for cell in cells[words:])


def _folded(block: Block, counts: str = "") -> str:
    summary = f"{html.escape(block.title)} <span>{html.escape(counts)}</span>"
    return f"<details><summary>{summary}</summary>{_table(block)}</details>"


def _verdicts(block: Block) -> str:
    """How often each verdict was given: the last of a claim's words."""
    found = Counter(row[len(block.words) - 1] for row in block.rows)
    return ", ".join(f"{verdict}: {count}" for verdict, count in found.items())


def _words() -> str:
    terms = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in WORDS.items())
    return f"<details><summary>What the words mean</summary><dl>{terms}</dl></details>"


def _figures(one: Drawn) -> str:
    shown = "".join(_figure(one.model, name, path) for name, path in one.files.items())
    left_out = f"<p>{html.escape(one.sentence())}</p>" if one.left_out else ""
    return f"<details open><summary>{html.escape(one.model)}</summary>{shown}{left_out}</details>"


def _figure(model: str, name: str, path: Path) -> str:
    content = path.read_bytes()
    # pixels, from the first chunk of a PNG; as large as the figure was laid out
    width, height = (round(size * 96 / PNG_DPI) for size in struct.unpack(">2I", content[16:24]))
    data = b64encode(content).decode()
    image = (
        f'<img alt="{html.escape(f"{name} of {model}")}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}">'
    )
    caption = f"<figcaption>{prose(CAPTIONS.get(name, name))}</figcaption>"
    return f'<figure id="{html.escape(f"{model}-{name}")}">{_wide(image, "figure")}{caption}</figure>'


def _origin(run: Mapping[str, str], files: Sequence[Path]) -> str:
    """Versions, and a line for each file: what it is, and by which code, commit and device it was made."""
    versions = ", ".join(f"{name} {value}" for name, value in run.items())
    rows = []
    for path in files:
        found = artifacts.read_origin(path)
        header = found["header"]
        made = header.get("run", {})
        words = [str(found["schema"]), header.get("stage", ""), header.get("code", "")]
        rows.append([f"{path.parent.name}/{path.name}", *words, made.get("commit", ""), made.get("device", "")])
    names = ["file", "schema", "stage", "code", "commit", "device"]
    table = _titled(Block("Files behind this page", "shadowcore explain FILE tells more", names, [], rows))
    return f"<p>This page: {html.escape(versions)}.</p>{table}"
