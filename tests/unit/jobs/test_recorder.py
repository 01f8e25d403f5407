"""What workers say is written down once, also where it has to wait for the database."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.jobs.epoch_times import EpochTimes
from app.jobs.queue import JobQueue
from app.jobs.recorder import PROGRESS_SECONDS, Recorder
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
            recorder.add_epochs(job.id, [{"epoch": epoch}])
    recorder.flush()
    assert [row["epoch"] for row in queue.history(job.id)] == [1, 2, 3]
    assert queue.get(job.id).warnings == ["rows are left out"]


def test_a_run_that_starts_again_tells_only_what_is_new(queue: JobQueue, recorder: Recorder) -> None:
    job = queue.submit({}, "m")
    for last_epoch in (2, 4):
        recorder.begin(queue.get(job.id))
        recorder.add_epochs(job.id, [{"epoch": epoch} for epoch in range(1, last_epoch + 1)])
        recorder.flush()
    assert [row["epoch"] for row in queue.history(job.id)] == [1, 2, 3, 4]


@pytest.mark.parametrize("at_once", [1, 3])
def test_epochs_are_timed_once_each_also_where_a_run_starts_again(
    queue: JobQueue, recorder: Recorder, counters: Counters, at_once: int
) -> None:
    job = queue.submit({}, "m")
    for last_epoch in (2, 4):
        recorder.begin(queue.get(job.id))
        epochs = [{"epoch": e, "step": 10 * e, "elapsed_seconds": 0.25 * e} for e in range(1, last_epoch + 1)]
        for first in range(0, last_epoch, at_once):
            recorder.add_epochs(job.id, epochs[first : first + at_once])
        recorder.flush()
    counts = counters.read().counts
    assert counts["gradserve_training_epoch_seconds", "m", "sum"] == 1.0
    assert counts["gradserve_training_epoch_seconds", "m", "0.25"] == 4
    assert counts["gradserve_training_step_seconds", "m", "count"] == 40
    assert counts["gradserve_training_step_seconds", "m", "sum"] == 1.0


@pytest.mark.parametrize("epochs_per_fit", [1, 2, 3])
def test_the_fits_of_a_cross_validation_are_timed_each_from_its_own_start(
    queue: JobQueue, recorder: Recorder, counters: Counters, epochs_per_fit: int
) -> None:
    job = queue.submit({}, "m")
    recorder.begin(job)
    for epoch in range(1, 7):
        of_fit = (epoch - 1) % epochs_per_fit + 1
        recorder.add_epochs(job.id, [{"epoch": epoch, "step": 5 * of_fit, "elapsed_seconds": 0.5 * of_fit}])
    counts = counters.read().counts
    assert counts["gradserve_training_step_seconds", "m", "count"] == 30
    assert counts["gradserve_training_step_seconds", "m", "sum"] == 3.0


def test_a_run_has_progressed_once_it_got_further_than_any_before(queue: JobQueue, recorder: Recorder) -> None:
    job = queue.submit({}, "m")
    for step, progressed in ((1, True), (1, False), (2, True), (0, False)):
        recorder.begin(queue.get(job.id))
        assert not recorder.progressed(job.id)
        recorder.add(job.id, "progress", {"step": step})
        assert recorder.progressed(job.id) is progressed
        recorder.flush()
    recorder.add_epochs(job.id, [{"epoch": 1}])
    assert recorder.progressed(job.id)


def test_progress_is_known_at_once_and_told_now_and_then(
    queue: JobQueue, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.submit({}, "m")
    recorder.begin(job)
    for seconds, step in ((100.0, 1), (100.1, 2), (100.0 + PROGRESS_SECONDS, 3), (100.1 + PROGRESS_SECONDS, 4)):
        clock = SimpleNamespace(monotonic=lambda seconds=seconds: seconds, time=time.time)
        monkeypatch.setattr("app.jobs.recorder.time", clock)
        recorder.add(job.id, "progress", {"step": step})
    monkeypatch.undo()
    recorder.flush()
    assert queue.get(job.id).progress == {"step": 4}
    assert [event.data["step"] for event in queue.events(job.id) if event.type == "progress"] == [1, 3]
