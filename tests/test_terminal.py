"""Folders with any letters in their names, and terminals with few: no command ends in a traceback."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from test_workflow import PARTS

# what `LC_ALL=C` was before Python made it UTF-8, and what an old terminal still is
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
REFERENCE = ROOT / "results" / "reference" / "smollm2"
WRONG = re.compile(r"Unicode\w+Error|NameError|Traceback")


def said_by(*command, cwd=ROOT, **more):
    ran = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=cwd, env=os.environ | {"PYTHONPATH": str(cwd)} | more,
        capture_output=True,
    )  # fmt: skip
    return ran.returncode, (ran.stdout + ran.stderr).decode("utf-8", "replace")


@pytest.mark.parametrize(
    "command",
    [["show", REFERENCE, "--brief"], ["plan", "config/smoke.yaml"]],
    ids=lambda command: command[0],
)
def test_a_terminal_without_these_letters_gets_question_marks(command):
    code, said = said_by("shadowcore", *command, **ASCII)
    assert code == 0 and not WRONG.search(said) and said.isascii(), said[-2000:]


def test_an_error_may_name_what_the_terminal_cannot_print(tmp_path):
    code, said = said_by("shadowcore", "status", tmp_path / "müde ± 1.yaml", **ASCII)
    assert code == 2 and not WRONG.search(said) and said.isascii() and len(said.splitlines()) == 1


def test_a_clone_may_stand_in_any_folder(tmp_path):
    folder = tmp_path / 'br{ace} it\'s "é"'
    folder.mkdir()
    for part in PARTS:
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, folder / part)
    dry_run = ["snakemake", "--configfile", "config/smoke.yaml", "--dry-run", "--quiet", "reason"]
    code, said = said_by(*dry_run, cwd=folder, **ASCII)
    assert code == 0 and not WRONG.search(said) and "write_page" in said, said[-2000:]


def test_text_files_are_read_as_utf_8_wherever_we_are():
    without = re.compile(
        r"\.(read|write)_text\((?![^\n]*encoding=)|(?<![.\w])open\((?![^\n]*(encoding=|\"[rwa]+b\+?\"))"
    )
    for path in [*(ROOT / "shadowcore").rglob("*.py"), ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not without.search(line), f"{path}: {line}"
