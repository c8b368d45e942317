"""What a step of work frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

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
def test_freed_memory_is_not_fetched_from_the_system_again():
    def faults(call):
        return int(subprocess.run([sys.executable, "-c", STEPS.format(call)], check=True, capture_output=True).stdout)

    assert faults("cli.keep_freed_memory()") < faults("") / 10
