"""What a service forgets by its settings, seen from outside."""

from pathlib import Path

from tests.api.service import service, train
from tests.waiting import until

BODY = {"data": {"inputs": [[1], [2], [3], [4]], "targets": [2, 4, 6, 8]}, "stop": {"max_epochs": 6}}
AT_ONCE = {"housekeeping_interval_seconds": 0.05}


def test_jobs_that_are_too_many_are_forgotten_and_their_versions_stay(tmp_path: Path) -> None:
    with service(tmp_path, max_finished_jobs=2, **AT_ONCE) as client:
        jobs = [train(client, BODY | {"model": "m", "seed": seed}) for seed in range(4)]
        until(lambda: len(client.get("/jobs").json()["data"]) == 2)
        assert [client.get(f"/jobs/{job['id']}").status_code for job in jobs] == [404, 404, 200, 200]
        assert len(client.get("/models/m").json()["versions"]) == 4
        assert client.get(f"/jobs/{jobs[0]['id']}/events").status_code == 404


def test_a_history_outlives_its_events(tmp_path: Path) -> None:
    with service(tmp_path, max_events_per_job=2, **AT_ONCE) as client:
        job = train(client, BODY | {"model": "m"})
        events = until(lambda: (found := client.get(job["links"]["events"]).json()["data"])[2:] == [] and found)
        assert events[-1]["data"]["state"] == "succeeded"
        history = client.get(job["links"]["history"]).json()["data"]
        assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
        client.delete("/models/m")
        assert [row["epoch"] for row in client.get(job["links"]["history"]).json()["data"]] == [6]
