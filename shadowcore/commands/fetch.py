"""`shadowcore fetch`: download all models, texts and benchmarks of a study into a folder.

    models/<name>/                    config.json, safetensors, tokenizer, and a README with the licence
    texts/<name>/documents.parquet    title and text of every document
    benchmarks/<task>/<split>.parquet the columns that the task's prompts read
    SOURCES.json                      source, licence and origin of each part
    SHA256SUMS                        checksums of all files; `sha256sum -c SHA256SUMS` checks a copy

With `offline: <the folder>` in its configuration, the study runs from this folder with the same results.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadowcore import benchmarks, preflight
from shadowcore.atomic import replacing
from shadowcore.benchmarks import BENCHMARKS
from shadowcore.config import Study, load_study
from shadowcore.errors import ConfigError, SourceError
from shadowcore.jobs import Jobs
from shadowcore.models import sources as model_sources
from shadowcore.provenance import file_sha256
from shadowcore.sections import made_here
from shadowcore.stages.base import Progress, parse_spec
from shadowcore.texts import sources as text_sources

SOURCES, SUMS = "SOURCES.json", "SHA256SUMS"
DOCUMENTS = "documents.parquet"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a configuration, such as config/paper.yaml")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="target, for `offline: FOLDER`")


def run(parsed: argparse.Namespace) -> None:
    study = load_study(parsed.config)
    preflight.check(Jobs(study))  # finds mistakes before gigabytes are downloaded
    fetch(study, parsed.to)


def fetch(study: Study, folder: Path) -> None:
    """Download what `folder` lacks of a study; SourceError or ConfigError if a source is wrong or not available."""
    if study.offline:
        raise ConfigError("offline: it is set, so nothing may be downloaded; remove the key to fetch the study")
    folder = Path(folder)
    if file := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        raise ConfigError(f"--to: '{file}' is a file; it must be a folder, which need not exist yet")
    parts = _parts(study)
    known = _read(folder / SOURCES)
    progress = Progress(f"fetch {study.study}")
    for done, (name, (source, download)) in enumerate(parts.items(), 1):
        place = folder / name
        if known.get(name, {}).get("source") != source or not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            known[name] = {"source": source} | download(place)
            _write(folder / SOURCES, json.dumps(known, indent=1, sort_keys=True) + "\n")
        progress.say(f"{name}: {known[name]['origin']}, licence {known[name]['licence'] or 'not named'}")
        progress(done, len(parts))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, SOURCES))
    _write(folder / SUMS, "".join(f"{file_sha256(path)}  {path.relative_to(folder)}\n" for path in files))


Download = Callable[[Path], dict[str, Any]]  # writes a part to its path; returns its licence and origin


def _parts(study: Study) -> dict[str, tuple[dict[str, Any], Download]]:
    """All parts by their paths in the folder: source in the configuration, and the function that downloads it."""
    parts: dict[str, tuple[dict[str, Any], Download]] = {}
    for name, model in study.models.items():
        kind, fields = next(iter(model.source.items()))
        if not made_here(model.source):
            source = parse_spec(model_sources.MODEL_SOURCES[kind], fields)
            parts[f"models/{name}"] = (model.source, partial(_model, source))
    for name, text in study.texts.items():
        kind, fields = next(iter(text.source.items()))
        source = parse_spec(text_sources.TEXT_SOURCES[kind], fields)
        parts[f"texts/{name}/{DOCUMENTS}"] = (text.source, partial(_text, source))
    for name in (task for task in study.evaluation.tasks if task in BENCHMARKS):
        task, offline_dir = BENCHMARKS[name], study.evaluation.offline_dir
        splits = {task.split, task.train} if max(study.evaluation.fewshot) and not task.rolling else {task.split}
        for split in sorted(filter(None, splits)):
            source = {"folder": offline_dir} if offline_dir else {"hub": list(task.hub)}
            parts[f"benchmarks/{name}/{split}.parquet"] = (source, partial(_benchmark, name, split, offline_dir))
    return parts


def _model(source: model_sources.ModelSource, place: Path) -> dict[str, Any]:
    """Download a model as plain files: hard links to the hub's cache, or copies where links are not possible."""
    linked = place.with_name(f".{place.name}.links")
    card = model_sources.fetch(source, linked)
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in linked.glob("[!.]*"):  # without the hidden record of hashes, which is only valid in that folder
        try:
            os.link(path.resolve(), partial / path.name)
        except OSError:
            shutil.copyfile(path, partial / path.name)
    licence = card["licence"]
    metadata = f"---\nlicense: {licence}\n---\n" if licence else ""
    (partial / "README.md").write_text(f"{metadata}{card['origin']}\n", encoding="utf-8")
    shutil.rmtree(linked)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    return {"licence": licence, "origin": card["origin"]}


def _text(source: text_sources.TextSource, place: Path) -> dict[str, Any]:
    documents, card = text_sources.fetch(source)
    _table(place, [{"title": document.title, "text": document.text} for document in documents])
    return {"licence": card["licence"], "origin": card["origin"]}


def _benchmark(name: str, split: str, offline_dir: str | None, place: Path) -> dict[str, Any]:
    documents, licence, origin = benchmarks.read(name, split, offline_dir)
    _table(place, documents)
    return {"licence": licence, "origin": origin}


def _table(place: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(place) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")


def _write(path: Path, content: str) -> None:
    with replacing(path) as partial:
        partial.write_text(content, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: damaged JSON ({error}); delete the file and fetch again") from None
