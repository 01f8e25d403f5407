"""A clock that jumps, an hour back and a day ahead, decides nothing: libfaketime has a real service believe it."""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.service import Service
from tests.waiting import until

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="needs Debian's package faketime")
LONG: dict[str, Any] = {
    "data": {"inputs": [[1], [2]], "targets": [1, 2]},
    "stop": {"max_epochs": 10_000_000},
    "engine": "eager",  # a compiler does not run under the library that sets clocks
}
OFFSETS = {"-1h": -3600, "+1d": 86400}
SHORT: dict[str, Any] = LONG | {"stop": {"max_epochs": 2}}


@pytest.fixture
def set_clock(tmp_path: Path) -> Callable[[str], None]:
    file = tmp_path / "clock"

    def set_clock(offset: str) -> None:
        new = file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.replace(file)

    set_clock("+0")
    return set_clock


def submit(http: httpx.Client, model: str, spec: dict[str, Any]) -> str:
    answer = http.post("/train", json={"model": model, **spec})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def date(http: httpx.Client) -> float:
    """What time it is, as the service has it."""
    return parsedate_to_datetime(http.get("/healthz").headers["Date"]).timestamp()


def get(http: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/jobs/{job}").raise_for_status().json()
    return found


def test_no_job_ends_and_no_order_turns_with_the_clock(
    start_service: Callable[..., Service], set_clock: Callable[[str], None], tmp_path: Path
) -> None:
    service = start_service(
        LD_PRELOAD=str(LIBRARY),
        FAKETIME_TIMESTAMP_FILE=str(tmp_path / "clock"),
        FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        GRADSERVE_MAX_RUNNING_JOBS="2",
        GRADSERVE_WORKER_TIMEOUT_SECONDS="60",
    )
    with httpx.Client(base_url=service.url, timeout=60) as http:
        long = submit(http, "long", LONG)
        until(lambda: get(http, long)["progress"]["epoch"] > 0, 120)
        created, jobs = [], []
        for offset in ("-1h", "+1d", "-1h"):
            set_clock(offset)
            until(lambda set_to=offset: abs(date(http) - time.time() - OFFSETS[set_to]) < 60)  # type: ignore[misc]
            epoch = get(http, long)["progress"]["epoch"]
            jobs.append(submit(http, "short", SHORT))
            done = until(lambda: (seen := get(http, jobs[-1]))["terminal"] and seen, 120)
            assert done["state"] == "succeeded", done
            assert done["created_at"] <= done["started_at"] <= done["finished_at"]
            created.append(done["created_at"])
            until(lambda epoch=epoch: get(http, long)["progress"]["epoch"] > epoch, 120)  # type: ignore[misc]
        assert created[0] < created[2] < created[1], "the clock did jump"
        listed = [job["id"] for job in http.get("/jobs").json()["data"]]
        assert listed == [*reversed(jobs), long]
        found = get(http, long)
        assert (found["state"], found["warnings"]) == ("running", [])
        assert http.get("/models/short").json()["versions"] == ["1", "2", "3"]
        http.post(f"/jobs/{long}/cancel")
        until(lambda: get(http, long)["state"] == "cancelled", 60)
        events = http.get(f"/jobs/{long}/events", params={"limit": 200}).json()["data"]
        assert [event["id"] for event in events] == sorted(event["id"] for event in events)
