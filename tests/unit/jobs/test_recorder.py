"""What workers say is written down once, also where it has to wait for the database."""

from app.jobs.queue import JobQueue
from app.jobs.recorder import Recorder


def test_a_run_that_starts_again_before_anything_is_written_tells_nothing_twice(queue: JobQueue) -> None:
    recorder, job = Recorder(queue), queue.submit({}, "m")
    for last_epoch in (2, 3):
        recorder.begin(job)
        recorder.add(job.id, "warning", {"detail": "rows are left out"})
        for epoch in range(1, last_epoch + 1):
            recorder.add(job.id, "metrics", {"epoch": epoch})
    recorder.flush()
    assert [row["epoch"] for row in queue.history(job.id)] == [1, 2, 3]
    assert queue.get(job.id).warnings == ["rows are left out"]


def test_a_run_that_starts_again_tells_only_what_is_new(queue: JobQueue) -> None:
    recorder, job = Recorder(queue), queue.submit({}, "m")
    for last_epoch in (2, 4):
        recorder.begin(queue.get(job.id))
        for epoch in range(1, last_epoch + 1):
            recorder.add(job.id, "metrics", {"epoch": epoch})
        recorder.flush()
    assert [row["epoch"] for row in queue.history(job.id)] == [1, 2, 3, 4]
