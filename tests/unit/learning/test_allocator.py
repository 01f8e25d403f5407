import platform
import subprocess
import sys

import pytest

FAULTS_OF_A_PASS = """
import resource

from app.learning.allocator import keep_heap

{first}

def use():
    blocks = [bytearray(2**22) for _ in range(4)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

use()
use()
before = faults()
for _ in range(10):
    use()
print((faults() - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_memory_that_was_freed_is_there_for_the_next_pass() -> None:
    """In a process of its own, as the others' allocator should stay as it is."""
    pages_of_a_pass = 4 * 2**22 // 4096
    assert faults("") > pages_of_a_pass / 2, "it would be so by itself"
    assert faults("keep_heap()") < pages_of_a_pass / 50


def faults(first: str) -> float:
    """Pages that the system had to give to each of ten passes over 16 MiB, after two before them."""
    command = [sys.executable, "-c", FAULTS_OF_A_PASS.format(first=first)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
