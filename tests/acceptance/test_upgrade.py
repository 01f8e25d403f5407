"""What the first release left behind is all there after an upgrade: jobs in every state, versions, and running jobs.

tests/golden/first_release was written by the first commit that had a command line (9aa99ea), and not by hand: nine
jobs, two versions and their tables. Three of the jobs were running when all of its processes were killed, one of them
asked to pause and one to cancel. `answers.json` is what that release said of them, `gradserve.sql` its database.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.client import Client
from scripts.service import Service, ServiceDied
from tests.waiting import until

FIRST = Path(__file__).parents[1] / "golden" / "first_release"
ANSWERS = json.loads((FIRST / "answers.json").read_text())
BIRDS = [{"island": "Biscoe", "bill_length_mm": 47, "long": True}, {"island": "Dream"}]
INPUTS = {"line": [[4], [11]], "birds": BIRDS}
JOBS = ANSWERS["jobs"]  # newest first
ENDS = {
    **{state: state for state in ("succeeded", "failed", "cancelled", "paused")},
    "running": "succeeded",
    "pausing": "paused",
    "cancelling": "cancelled",
    "queued": "succeeded",
}
"""What becomes of a job that the first release left in a state."""


def put_down(root: Path) -> None:
    """The folders as the first release left them."""
    shutil.copytree(FIRST, root, dirs_exist_ok=True)
    with closing(sqlite3.connect(root / "data" / "gradserve.db")) as database:
        database.executescript((FIRST / "gradserve.sql").read_text())


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service that has come upon these folders, once it has no more to do."""
    root = tmp_path_factory.mktemp("upgraded")
    put_down(root)
    with Service(root) as service, Client(service.url) as client:
        until(lambda: all(client.job(job["id"])["state"] == ENDS[job["state"]] for job in JOBS), 120)
        yield client


def spec_of(job: Any) -> Any:
    """As it stands in the first release's database."""
    with closing(sqlite3.connect(":memory:")) as first:
        first.executescript((FIRST / "gradserve.sql").read_text())
        return json.loads(first.execute("SELECT spec FROM jobs WHERE id = ?", [job["id"]]).fetchone()[0])


def test_a_job_of_every_state_was_left() -> None:
    assert [job["state"] for job in JOBS] == [*reversed(ENDS), "succeeded"]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["model"])
def test_every_job_is_there(upgraded: Client, job: Any) -> None:
    found = upgraded.job(job["id"])
    assert found["spec"] == spec_of(job)
    same = ("id", "model", "created_at")
    if job["state"] == ENDS[job["state"]]:
        same = tuple(job.keys() - {"num_epochs", "num_events"})
        assert len(upgraded.history(job["id"])) == job["num_epochs"]
    assert {name: found[name] for name in same} == {name: job[name] for name in same}
    assert sum(1 for _ in upgraded.events(job["id"])) >= job["num_events"] if found["terminal"] else True


def test_they_are_listed_in_their_order(upgraded: Client) -> None:
    assert [job["id"] for job in upgraded.jobs()] == [job["id"] for job in JOBS]


@pytest.mark.parametrize("model", INPUTS)
def test_a_version_of_the_first_release_serves(upgraded: Client, model: str) -> None:
    expected = ANSWERS["predictions"][model]
    found = upgraded.predict(model, INPUTS[model])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("predictions", "probabilities") and not isinstance(value[0], str):
            assert np.array(found[name]) == pytest.approx(np.array(value), rel=1e-5)
        else:
            assert found[name] == value
    assert upgraded.model(model, "1")["num_parameters"] > 0


def test_a_run_that_was_cut_short_ends_and_says_that_it_began_anew(upgraded: Client) -> None:
    job = next(job for job in upgraded.jobs() if job["model"] == "running")
    assert (job["state"], job["stop_reason"]) == ("succeeded", "max_epochs")
    assert any("begins anew" in warning for warning in job["warnings"])
    assert [row["epoch"] for row in upgraded.history(job["id"])] == list(range(1, 61))
    assert upgraded.predict("running", BIRDS)["predictions"][0] == "Gentoo"


def test_a_version_of_the_first_release_can_be_gone_on_from(upgraded: Client) -> None:
    before = upgraded.model("line", "1")
    start = {"model": "line", "version": "1"}
    job = upgraded.train(before["spec"] | {"model": "longer", "warm_start": start, "stop": {"max_steps": 1}})
    assert job["state"] == "succeeded"
    assert job["metrics"]["train_loss"] < before["metrics"]["train_loss"]


def test_a_job_that_was_paused_goes_on(upgraded: Client) -> None:
    job = next(job for job in upgraded.jobs() if job["model"] == "pausing")
    upgraded.resume(job["id"])
    assert upgraded.wait(job["id"])["state"] == "succeeded"


def test_the_dataset_is_there_and_can_be_trained_on(upgraded: Client) -> None:
    assert upgraded.dataset("birds")["num_rows"] == len(upgraded.dataset_rows("birds")) == 24
    job = upgraded.train(model="again", data={"dataset": "birds", "target": "species"}, stop={"max_epochs": 2})
    assert job["state"] == "succeeded"


def test_a_database_of_a_later_release_is_refused_in_a_sentence(tmp_path: Path) -> None:
    service = Service(tmp_path)
    put_down(tmp_path)
    with closing(sqlite3.connect(tmp_path / "data" / "gradserve.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        before = list(database.iterdump())
    with pytest.raises(ServiceDied, match="status 1"):
        service.start()
    (line,) = service.log.read_text().splitlines()
    assert line.startswith("Error: the database is at revision 9999, newer than this Gradserve")
    with closing(sqlite3.connect(tmp_path / "data" / "gradserve.db")) as database:
        assert list(database.iterdump()) == before
