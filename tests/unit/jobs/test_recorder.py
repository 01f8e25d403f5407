"""What workers say is written down once, also where it has to wait for the database."""

from pathlib import Path

import pytest

from app.jobs.epoch_times import EpochTimes
from app.jobs.queue import JobQueue
from app.jobs.recorder import Recorder
from app.storage.counters import Counters


@pytest.fixture
def counters(tmp_path: Path) -> Counters:
    return Counters(tmp_path / "counters")


@pytest.fixture
def recorder(queue: JobQueue, counters: Counters) -> Recorder:
    return Recorder(queue, EpochTimes(counters))


def test_a_run_that_starts_again_before_anything_is_written_tells_nothing_twice(
    queue: JobQueue, recorder: Recorder
) -> None:
    job = queue.submit({}, "m")
    for last_epoch in (2, 3):
        recorder.begin(job)
        recorder.add(job.id, "warning", {"detail": "rows are left out"})
        for epoch in range(1, last_epoch + 1):
            recorder.add(job.id, "metrics", {"epoch": epoch})
    recorder.flush()
    assert [row["epoch"] for row in queue.history(job.id)] == [1, 2, 3]
    assert queue.get(job.id).warnings == ["rows are left out"]


def test_a_run_that_starts_again_tells_only_what_is_new(queue: JobQueue, recorder: Recorder) -> None:
    job = queue.submit({}, "m")
    for last_epoch in (2, 4):
        recorder.begin(queue.get(job.id))
        for epoch in range(1, last_epoch + 1):
            recorder.add(job.id, "metrics", {"epoch": epoch})
        recorder.flush()
    assert [row["epoch"] for row in queue.history(job.id)] == [1, 2, 3, 4]


def test_epochs_are_timed_once_each_also_where_a_run_starts_again(
    queue: JobQueue, recorder: Recorder, counters: Counters
) -> None:
    job = queue.submit({}, "m")
    for last_epoch in (2, 4):
        recorder.begin(queue.get(job.id))
        for epoch in range(1, last_epoch + 1):
            recorder.add(job.id, "metrics", {"epoch": epoch, "step": 10 * epoch, "elapsed_seconds": 0.25 * epoch})
        recorder.flush()
    counts = counters.read().counts
    assert counts["gradserve_training_epoch_seconds", "m", "sum"] == 1.0
    assert counts["gradserve_training_epoch_seconds", "m", "0.25"] == 4
    assert counts["gradserve_training_step_seconds", "m", "count"] == 40
    assert counts["gradserve_training_step_seconds", "m", "sum"] == 1.0


def test_the_fits_of_a_cross_validation_are_timed_each_from_its_own_start(
    queue: JobQueue, recorder: Recorder, counters: Counters
) -> None:
    job = queue.submit({}, "m")
    recorder.begin(job)
    for epoch in range(1, 7):
        of_fit = (epoch - 1) % 2 + 1
        recorder.add(job.id, "metrics", {"epoch": epoch, "step": 5 * of_fit, "elapsed_seconds": 0.5 * of_fit})
    counts = counters.read().counts
    assert counts["gradserve_training_step_seconds", "m", "count"] == 30
    assert counts["gradserve_training_step_seconds", "m", "sum"] == 3.0
