"""The command line: help everywhere, one sentence and exit code 2 on bad input, nothing half-written."""

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trac"], "command: unknown 'trac'; did you mean 'trace'"),
        (["average", "--spec", "{", "--scores", "s"], "--spec: not JSON"),
        (["average", "--spec", '{"modl": "x"}', "--scores", "s"], "unknown key 'modl'; did you mean"),
        (["average", "--spec", '{"model": "x"}', "--scores", "s"], "missing key 'calibration'"),
        (["show", "nowhere"], "nowhere"),
        (["fetch", "nowhere.yaml", "--to", "x"], "nowhere.yaml: cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, message):
    code, printed = run(capsys, *arguments)
    assert code == 2 and message in printed.err and len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
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
