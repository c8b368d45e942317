"""The page of a study: whole, escaped, closed to any network, and looked at in a real browser on desk and phone."""

import contextlib
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from made_study import MODEL, final_tables, outcomes, write_tables
from markupsafe import escape

from shadowcore import artifacts, cli
from shadowcore.report import style
from shadowcore.report.captions import CAPTIONS
from shadowcore.report.drawn import SCHEMA
from shadowcore.report.figures import FIGURES
from shadowcore.report.page import prose
from shadowcore.report.tables import frame
from shadowcore.schemas import FINAL_TABLES

HOSTILE = "<script>alert('x')</script> & \"</pre><img src=http://example.org/x>"
CONFIGURATION = {"study": "mine", "seed": 0, "models": {MODEL: {"source": {"folder": {"path": HOSTILE}}}}}
DRAWN = ("perplexity", "latency")
INTRODUCTION = ROOT / "workflow" / "report" / "workflow.rst"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A made-up study's folder with its tables, two figures, one left out, and its page."""
    root = tmp_path_factory.mktemp("paged")
    documents = outcomes(windows=4, documents=8).to_pandas()
    tables = final_tables(documents[(documents["units"] != "heads") & (documents["criterion"] != "l2_norm")])
    write_tables(root, tables, {"stage": "aggregate", "code": "c" * 16, "run": {"commit": "1" * 12, "device": HOSTILE}})
    frames = {name: frame(table) for name, table in tables.items()}
    for name in DRAWN:
        figure = FIGURES[name](frames, MODEL)
        figure.set_layout_engine("none")  # the search for a layout takes most of the time
        style.save(figure, root / f"figures/{MODEL}/{name}", {"stage": "draw", "spec": {"model": MODEL}, "inputs": {}})
    left_out = {"fewshot": FIGURES["fewshot"](frames, MODEL)}
    record = {"drawn": list(DRAWN), "left_out": left_out}
    artifacts.write_record(root / f"figures/{MODEL}.json", SCHEMA, record, {"stage": "draw"})
    assert write(root, root / "index.html") == 0
    return root


def write(root, page, **more):
    return cli.main([
        "write-page", "--spec", json.dumps({"configuration": CONFIGURATION} | more),
        "--tables", *map(str, sorted(root.glob("tables/*.parquet"))),
        "--drawn", str(root / f"figures/{MODEL}.json"), "--introduction", str(INTRODUCTION), "--page", str(page),
    ])  # fmt: skip


class Read(HTMLParser):
    """Tags in order, with what is open at the end, every address, and the text."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.addresses, self.text, self.wrong = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(study):
    text = (study / "index.html").read_text()
    read = Read(text)
    assert not read.open and not read.wrong and "script" not in read.tags
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in read.addresses)
    anchors = {address[1:] for address in read.addresses if address.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', text)) and len(anchors) >= 5
    assert read.tags.count("img") == 2 and "fewshot (no task was" in read.text
    places = list(map(read.text.index, ("best method by perplexity", "ppl\n50 %", "Token perplexity against")))
    assert places == sorted(places)
    for words in (MODEL, "What the words mean", FINAL_TABLES["latency"].schema, "McNemar"):
        assert words in read.text
    size = sum((study / f"figures/{MODEL}/{name}.png").stat().st_size for name in DRAWN)  # byte for byte, in base 64
    assert 4 / 3 * size < len(text) < 4 / 3 * size + 300_000


def test_whatever_comes_from_outside_is_text(study):
    text = (study / "index.html").read_text()
    assert "<script" not in text and "<img src=http" not in text
    assert HOSTILE.replace('"', '\\"').split("&")[0] in Read(text).text  # of the configuration, ...
    assert text.count(escape(HOSTILE)) >= len(FINAL_TABLES)  # ... and of the devices in the headers


def test_the_page_says_where_it_is_from_and_repeats_to_the_byte(study, tmp_path):
    found = artifacts.read_origin(study / "index.html")
    assert found["schema"] == "page/1" and found["header"]["stage"] == "write-page"
    assert found["header"]["spec"]["configuration"] == CONFIGURATION
    assert write(study, tmp_path / "again.html") == 0
    assert (tmp_path / "again.html").read_bytes() == (study / "index.html").read_bytes()


MISSING = [{"job": "fetch_model/large", "reason": HOSTILE}, {"job": "12 jobs of evaluate", "reason": "not run"}]


@pytest.mark.parametrize("tables", [True, False])
def test_a_page_of_a_part_of_the_study_says_first_what_is_missing_and_why(study, tmp_path, tables):
    root = study if tables else shutil.copytree(study, tmp_path / "none", ignore=lambda *_: ["tables"])
    assert write(root, tmp_path / "part.html", missing=MISSING) == 0
    text = Read((tmp_path / "part.html").read_text()).text
    for one in MISSING:
        assert text.index(one["job"]) < text.index(one["reason"]) < text.index("Summary")
    assert "<script" not in (tmp_path / "part.html").read_text()
    assert artifacts.missing(tmp_path / "part.html") == MISSING
    whole = study / "index.html"
    assert "INCOMPLETE" not in whole.read_text() and artifacts.missing(whole) == []


def test_a_refused_mode_is_named_first_on_the_page_and_in_the_terminal(study, tmp_path, capsys):
    folder = shutil.copytree(study, tmp_path / "study")
    row = {"model": MODEL, "device": "Processor", "variant": "layerwise 50 %", "reason": "its logits differ [by 3.0]"}
    write_tables(folder, {"refused": FINAL_TABLES["refused"].build([row])})
    assert write(folder, folder / "index.html", missing=MISSING) == 0
    text = Read((folder / "index.html").read_text()).text
    assert text.index(row["variant"]) < text.index(row["reason"]) < text.index("Summary")
    for options in ([], ["--brief"], ["--all"]):
        assert cli.main(["show", str(folder), *options]) == 0
        said = capsys.readouterr().out
        assert said.index(MISSING[1]["job"]) < said.index(row["variant"]) < said.index("best method")
        assert row["reason"] in said
    assert cli.main(["show", str(study)]) == 0
    said = capsys.readouterr().out
    assert "REFUSED" not in said and "INCOMPLETE" not in said


def test_the_introduction_names_the_main_figure():
    assert re.findall(r"figure ``(\w+)``", INTRODUCTION.read_text()) == [next(iter(FIGURES))]


def test_captions_keep_their_words():
    said = prose("One ``a < b`` and\n**two**.\n\nThree & four.\n")
    assert said == "<p>One <code>a &lt; b</code> and\n<strong>two</strong>.</p><p>Three &amp; four.</p>"
    for text in (*CAPTIONS.values(), INTRODUCTION.read_text()):
        assert "``" not in prose(text) and "**" not in prose(text)


# What a reader would see, asked in the browser: the page in a frame as wide as a desk or a phone.
LOOK = """<!doctype html><body><iframe id=f width=%d height=900 src=index.html></iframe><script>
onload = () => { const page = f.contentDocument, view = f.contentWindow; const seen = {};
  seen.title = page.title; seen.mode = page.compatMode;
  seen.overflow = page.documentElement.scrollWidth - view.innerWidth;
  seen.images = [...page.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width]);
  const colour = e => view.getComputedStyle(e);
  seen.ink = colour(page.body).color; seen.paper = colour(page.body).backgroundColor;
  seen.figure = colour(page.images[0]).backgroundColor;
  seen.small = Math.min(...[...page.querySelectorAll('td,figcaption')].map(e => parseFloat(colour(e).fontSize)));
  seen.says = [...page.querySelectorAll('.scrolls')].filter(e => e.offsetParent).length;
  const boxes = [...page.querySelectorAll('details[open] .wide, section > .wide')];
  const wide = boxes.filter(e => e.scrollWidth > e.clientWidth); seen.wide = wide.length;
  seen.silent = wide.filter(e => !e.previousElementSibling?.matches('.scrolls')).length;
  seen.hidden = page.querySelectorAll('details').length; seen.rows = page.querySelectorAll('tbody tr').length;
  document.body.textContent = JSON.stringify(seen); };
</script></body>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, form, *values):
        self.asked.append(self.path)


@contextlib.contextmanager
def served(folder):
    """The address of a folder on this machine, and what was asked of it."""
    Quiet.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", Quiet.asked
        finally:
            server.shutdown()


def luminance(colour):
    """Of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)], ids=["desk", "phone", "night"])
def test_it_reads_well_in_a_real_browser(study, tmp_path, width, dark):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    shutil.copy(study / "index.html", tmp_path)
    (tmp_path / "look.html").write_text(LOOK % width)
    settings = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with served(tmp_path) as (address, asked):
        said = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--window-size=1400,1000", "--virtual-time-budget=5000", *settings, "--dump-dom", f"{address}/look.html"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    seen = json.loads(html.unescape(re.search(r"<body>(\{.*\})</body>", said.stdout).group(1)))
    assert set(asked) <= {"/look.html", "/index.html", "/favicon.ico"}
    assert seen["title"] == "mine: contextual sparsity" and seen["mode"] == "CSS1Compat"
    assert seen["overflow"] <= 0  # nothing but figures and tables scrolls sideways
    assert len(seen["images"]) == 2 and all(0.45 * real <= shown <= real for real, shown in seen["images"])
    assert seen["small"] >= 13 and seen["rows"] > 50
    # on a phone what is wider than the screen says that it scrolls
    assert seen["silent"] == 0 and (seen["says"] >= seen["wide"] > 2) == (width < 400)
    ink, paper, figure = (luminance(seen[name]) for name in ("ink", "paper", "figure"))
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 7 and (ink > paper) == dark and figure == 1
