"""The tests of CUDA devices, on one that is made of the host's memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on a real one")
def test_what_is_tested_on_a_card_holds_on_an_emulated_one() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.emulated_card", "-p", "no:cacheprovider", "-q", "tests/gpu"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (\w+)", ended.stdout.splitlines()[-1])}
    assert counts["passed"] > 5 * counts["skipped"], "of real cards alone are few"
