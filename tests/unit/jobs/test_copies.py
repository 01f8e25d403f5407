"""Weights are never there twice: what is written goes to the disk from where it is."""

from pathlib import Path

import pytest

from app.storage.checkpoints import Checkpoints
from app.storage.tensors import write_tensors
from tests.unit.learning.runs import Watcher, run, session

STATUS = Path("/proc/self/status")
SLACK_BYTES = 6 * 2**20

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's high-water mark")


def memory(entry: str) -> int:
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(entry))


def test_checkpoints_and_versions_are_written_without_a_copy(tmp_path: Path) -> None:
    started = session(network={"hidden_features": [1500, 1500]}, optimizer={"type": "adamw"}, validation=None)
    run(started, Watcher(lambda state: "pause"))
    checkpoints = Checkpoints(tmp_path)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    tensors, position = started.export()
    checkpoints.save(tensors, position, [])
    num_bytes = sum(value.nbytes for value in tensors.values())
    write_tensors(tmp_path / "model.safetensors", started.finish().export()[0])
    assert num_bytes > 4 * SLACK_BYTES
    assert memory("VmHWM") < before + SLACK_BYTES
