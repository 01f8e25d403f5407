"""What a service forgets by its settings, seen from outside."""

from collections.abc import Iterator

import httpx
import pytest

from tests.api.service import service, train
from tests.waiting import until

BODY = {"data": {"inputs": [[1], [2], [3], [4]], "targets": [2, 4, 6, 8]}, "stop": {"max_epochs": 6}}
LIMITS = {"max_finished_jobs": 2, "max_events_per_job": 2}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with service(tmp_path_factory.mktemp("service"), housekeeping_interval_seconds=0.05, **LIMITS) as client:
        yield client


def test_jobs_that_are_too_many_are_forgotten_and_their_versions_stay(client: httpx.Client) -> None:
    jobs = [train(client, BODY | {"model": "m", "seed": seed}) for seed in range(4)]
    until(lambda: len(client.get("/jobs").json()["data"]) == 2)
    assert [client.get(f"/jobs/{job['id']}").status_code for job in jobs] == [404, 404, 200, 200]
    assert len(client.get("/models/m").json()["versions"]) == 4
    assert client.get(f"/jobs/{jobs[0]['id']}/events").status_code == 404


def test_a_history_outlives_its_events(client: httpx.Client) -> None:
    job = train(client, BODY | {"model": "other"})
    events = until(lambda: (found := client.get(job["links"]["events"]).json()["data"])[2:] == [] and found)
    assert events[-1]["data"]["state"] == "succeeded"
    history = client.get(job["links"]["history"]).json()["data"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    client.delete("/models/other")
    assert [row["epoch"] for row in client.get(job["links"]["history"]).json()["data"]] == [6]
