"""A few rounds of scripts/chaos: each kind of process is killed once."""

from pathlib import Path

import pytest

from scripts.chaos import VICTIMS, Chaos

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")


def test_nothing_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    report = Chaos(tmp_path, rounds=len(VICTIMS), seed=5, workers=2, minutes=10, shorter=5).run()
    assert report.faults == []
    assert set(report.rounds.values()) == {1}
    assert report.num_jobs > 0
    assert report.num_predictions > 0
