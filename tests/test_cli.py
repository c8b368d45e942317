"""The command line: help everywhere, one sentence and exit code 2 on bad input, nothing half-written."""

import platform
import subprocess
import sys

import pytest
import torch

from shadowcore import cli


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def test_help_lists_every_command(capsys):
    code, printed = run(capsys, "--help")
    assert code == 0 and all(name in printed.out for name in [*cli.STAGES, *cli.COMMANDS])


@pytest.mark.parametrize("name", sorted(cli.STAGES))
def test_every_stage_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0 and "--spec" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["trac"], "command: unknown 'trac'; did you mean 'trace'"),
    (["average", "--spec", "{", "--scores", "s"], "--spec: not JSON"),
    (["average", "--spec", '{"modl": "x"}', "--scores", "s"], "unknown key 'modl'; did you mean"),
    (["average", "--spec", '{"model": "x"}', "--scores", "s"], "missing key 'calibration'"),
    (["show", "nowhere"], "nowhere"), (["fetch", "nowhere.yaml", "--to", "x"], "nowhere.yaml: cannot be read"),
])  # fmt: skip
def test_bad_input_is_one_sentence(capsys, arguments, message):
    code, printed = run(capsys, *arguments)
    assert code == 2 and message in printed.err and len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    MemoryError(),
])  # fmt: skip
def test_too_little_memory_has_an_exit_code_of_its_own(capsys, monkeypatch, tmp_path, error):
    from shadowcore.stages import average

    def full(*_):
        raise error

    monkeypatch.setattr(average, "run", full)
    spec = '{"model": "m", "calibration": "c", "criteria": []}'
    code, printed = run(capsys, "average", "--spec", spec, "--scores", tmp_path / "s")
    (sentence,) = [line for line in printed.err.splitlines() if not line.startswith("[shadowcore]")]
    assert code == 3 and "out of memory" in sentence


def test_show_and_status_know_the_quick_study_as_their_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["show"]) == cli.main(["status"]) == 2
    said = capsys.readouterr().err
    assert "results/quick" in said and "config/quick.yaml" in said


STEPS = """
import resource
import numpy
from shadowcore import cli
{}
for _ in range(2):  # the first step gets the memory, whichever way
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [numpy.ones(2**22) for _ in range(3)]
        del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of glibc")
def test_memory_that_a_step_freed_is_not_fetched_from_the_system_again():
    def faults(call):
        return int(subprocess.run([sys.executable, "-c", STEPS.format(call)], check=True, capture_output=True).stdout)

    assert faults("cli.keep_freed_memory()") < faults("") / 10


GROWTH = """
import psutil
import torch
from shadowcore import cli
cli.keep_freed_memory()
before = psutil.Process().memory_info().vms
kept = []
for _ in range(20):
    logits = torch.empty(2**26)
    kept += [torch.empty(numbers) for numbers in (1, 3, 5, 16, 40, 500, 3000)]
    del logits
print(psutil.Process().memory_info().vms - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of glibc")
def test_small_results_between_large_blocks_do_not_make_the_memory_grow_without_limit():
    done = subprocess.run([sys.executable, "-c", GROWTH], check=True, capture_output=True)
    assert int(done.stdout) < 2 * cli.KEPT  # 20 blocks of 256 MiB are 5 GiB
