"""Real jobs in real worker processes, with a stand-in for the training itself."""

from app.storage.jobs import Job
from app.jobs.queue import JobQueue
from tests.waiting import until


def ended(queue: JobQueue, job: Job) -> Job:
    """The job once it has a terminal state."""
    return until(lambda: (found := queue.get(job.id)).finished_at is not None and found)


def test_a_job_runs_and_its_version_is_published(queue, models, start):
    start()
    job = ended(queue, queue.submit({"epochs": 3}, "penguins"))
    assert (job.state, job.version, job.stop_reason) == ("succeeded", "1", "max_epochs")
    assert job.metrics == {"train_loss": 1 / 3}
    assert models.versions("penguins") == ["1"]
    assert [row["epoch"] for row in queue.history(job.id)] == [1, 2, 3]
