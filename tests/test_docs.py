"""The pages for people: examples that run, commands, paths and links that exist."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT

from shadowcore import __version__, cli
from shadowcore.config import Study, load_study
from shadowcore.jobs import Jobs
from shadowcore.report.figures import FIGURES
from shadowcore.rules import RULES

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG"))])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXTEND = (ROOT / "docs" / "extend.md").read_text()


def blocks(text, language, start):
    """Code blocks whose first line begins with `start`: what follows there, and the rest."""
    for found, code in BLOCK.findall(text):
        first, _, rest = code.partition("\n")
        if found == language and first.startswith(f"# {start}"):
            yield first.removeprefix(f"# {start}"), rest


def insert(path, place, code):
    """Put an example where its page says: `a row of TABLE`, at its end, or `a function before TABLE`."""
    lines = path.read_text().splitlines(keepends=True)
    table = place.split()[-1]
    node = next(
        node for node in ast.parse("".join(lines)).body
        if isinstance(node, ast.AnnAssign) and node.target.id == table
    )  # fmt: skip
    at = node.lineno - 1
    if place.startswith("a row of"):
        at = node.end_lineno - 1
        brace = node.end_col_offset - 1
        row = lines[at][:brace].rstrip().removesuffix(",") + ("," if brace else "")  # a table of one line, or of many
        lines[at] = lines[at][brace:]
        code = f"{row}\n{code}"
    lines.insert(at, code + "\n")
    path.write_text("".join(lines))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with every example of docs/extend.md in its place."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "shadowcore", folder / "shadowcore")
    found = [*blocks(EXTEND, "python", "shadowcore/")]
    assert len(found) == 6
    for where, code in found:
        path, place = where.split(": ")
        insert(folder / "shadowcore" / path, place, code)
    return folder


def test_the_examples_of_adding_something_run_and_a_study_can_name_them(extended):
    tries = [code for _, code in blocks(EXTEND, "python", "try it")]
    assert len(tries) == 4
    checks = ["from pathlib import Path", "import yaml", "from shadowcore.config import parse_study"]
    checks += ["from shadowcore.jobs import Jobs", "from shadowcore.plan import work", "named = set()"]
    for _, changes in blocks(EXTEND, "yaml", "config/mine.yaml"):
        study = yaml.safe_load((ROOT / "config" / "quick.yaml").read_text())
        for key, value in yaml.safe_load(changes).items():
            study[key] = study[key] | value if isinstance(value, dict) else value
        study.pop("latency")
        checks.append(f"jobs = Jobs(parse_study({study!r}, 'mine'), Path({str(extended)!r}))")
        checks += ["assert work(jobs)", "named |= {one.method for one in jobs.conditions}"]
    checks.append("print('ran', *sorted(named))")
    script = "\n\n".join([*tries, *checks])
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=extended, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(extended), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    assert said.stdout.splitlines()[-1] == "ran dense halves largest oracle shadow static"


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)", re.sub(BLOCK, "", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


LINKING = [*PAGES, *(ROOT / folder / "README.md" for folder in ("config", "results", "results/reference"))]


@pytest.mark.parametrize("page", LINKING, ids=lambda path: path.parent.name + path.stem)
def test_links_and_paths_of_a_page_exist(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if not target.startswith(("http", "mailto")):
            path = page.parent / target if target else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), (target, anchor)
    for path in re.findall(r"`((?:shadowcore|workflow|config|tests|benchmarks|docs|profiles)/[\w./]*)`", text):
        assert (ROOT / path).exists() or path == "config/mine.yaml", path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_names_are_defined_in_the_modules_that_a_page_gives_for_them(page):
    for names, path in re.findall(r"((?:`[\w.]+`,? )+)`(shadowcore/[\w/]+\.py)`", page.read_text()):
        for name in re.findall(r"`([\w.]+)`", names):
            defined = rf"^( *def |class |\W*){name.rpartition('.')[2]}\b *[:=(]"
            assert re.search(defined, (ROOT / path).read_text(), re.MULTILINE) or "/" in name, (name, path)


def test_the_file_of_one_perplexity_is_one_of_the_quick_study():
    (path,) = re.findall(r"^results/quick/outcomes/.*", (ROOT / "docs" / "results.md").read_text(), re.MULTILINE)
    study = load_study(ROOT / "config" / "quick.yaml")
    conditions = Jobs(study, ROOT / "results").conditions
    slugs = (f"{one.model}/{one.data}/{one.slug(study.seed)}/{one.sparsity_pct}" for one in conditions)
    assert path.removeprefix("results/quick/outcomes/").removesuffix(".parquet") in set(slugs)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_of_a_page_exist_with_their_options(page, capsys):
    for name, rest in re.findall(r"\bshadowcore ([a-z][a-z-]+)\b([^`\n#]*)", page.read_text()):
        if name not in [*cli.STAGES, *cli.COMMANDS]:
            assert rest.startswith(":") or not rest.strip().startswith("--"), name
            continue
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        offered = capsys.readouterr().out
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in offered, f"{name} {option}"


def test_every_command_figure_stage_and_key_is_on_a_page():
    text = "".join(path.read_text() for path in PAGES)
    for name in cli.COMMANDS:
        assert f"shadowcore {name}" in text, name
    for name in FIGURES:
        assert f"`{name}`" in text, name
    assert set(RULES) <= set(re.findall(r"\w+", text))
    keys = (ROOT / "config" / "README.md").read_text()
    assert all(name in keys for name in Study.model_fields)


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") < 150


def test_the_citation_and_the_changes_are_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    arxiv = [one["identifiers"][0]["value"] for one in cited["references"]]
    assert arxiv == ["arXiv:2406.16635", "arXiv:2310.17157"] and cited["license"] == "Apache-2.0"


@pytest.fixture(scope="module")
def numbers():
    """The script that fills the pages."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import document_numbers

    return document_numbers


def test_bytes_of_a_layers_kernels_are_those_of_its_weights_and_cache(numbers):
    tables = numbers.tried_tables
    for model in ("opt-1.3b", "llama-2-7b", "smollm2-135m"):
        size, sizes = tables.PUBLISHED[model], tables.PUBLISHED[model].dimensions
        read = tables.bytes_of_kernels(model, 0)
        cache = read.pop("attention")
        weights = size.multiplied - sizes.vocabulary * sizes.width
        assert sizes.layers * sum(read.values()) == weights * tables.BYTES
        assert cache == 2 * sizes.kv_heads * sizes.head_width * tables.CACHED_TOKENS * tables.BYTES
    half, dense = (tables.bytes_of_kernels("opt-1.3b", pct) for pct in (50, 0))
    assert all(2 * half[kernel] == dense[kernel] for kernel in dense if kernel != "query, key, value")
    assert 3 * half["query, key, value"] == 2.5 * dense["query, key, value"]  # keys and values stay


FILLED = [*PAGES, *(ROOT / folder / "README.md" for folder in ("config", "results"))]


@pytest.mark.parametrize("page", FILLED, ids=lambda path: path.parent.name + path.stem)
def test_numbers_of_a_page_are_those_of_the_tables(page, numbers):
    """Where they are not, `make docs` writes them."""
    text = page.read_text()
    emptied = numbers.REGION.sub(lambda one: one[1] + "\n" * one[3].startswith("\n") + one[4], text)
    assert numbers.filled(emptied) == text
    assert text.count("<!-- numbers") == text.count("<!-- end -->") == len(numbers.REGION.findall(text))
    # Markdown would end the paragraph there
    assert not re.search(r"^[ *]*<!-- numbers: [^>]*-->(?!\n)", text, re.MULTILINE)


def test_bytes_of_weights_whose_upper_halves_are_proxies(numbers):
    gain = numbers.byte_tables.upper_half_gain
    assert gain("opt-6.7b", "0", "inside") == "1.00"  # both halves of every weight are read once
    assert gain("opt-6.7b", "0", "beside") < "1.00"
    assert gain("opt-6.7b", "50", "beside") < gain("opt-6.7b", "50", "inside") < gain("opt-6.7b", "70", "inside")
