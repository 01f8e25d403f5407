"""Clients that go on while a service is being killed under them: one submits jobs, some predict."""

import threading
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np

from scripts.crowd import Crowd

Specs = dict[str, dict[str, Any]]

NUM_PREDICTORS = 2
NUM_UNFINISHED = 4  # jobs that are kept in the queue
PAUSE_SECONDS = 0.02
UNFINISHED = ('gradserve_jobs{state="queued"}', 'gradserve_jobs{state="running"}')


class Clients(Crowd):
    """`jobs` are the acknowledged ones, with the name of the spec of each. What must not happen is told to `fault`."""

    def __init__(self, url: str, specs: Specs, data: dict[str, Any], fault: Callable[[str], object]) -> None:
        self.url, self.specs, self.data, self.fault = url, specs, data, fault
        self.jobs: dict[str, str] = {}
        self.num_predictions = self.num_interrupted = 0
        self._training = threading.Event()
        self._training.set()
        super().__init__([self._submit_jobs, *[self._predict] * NUM_PREDICTORS])

    def stop_training(self) -> None:
        self._training.clear()
        self.threads[0].join()

    def stop(self) -> None:
        self._training.clear()
        super().stop()

    # ---- training

    def _submit_jobs(self) -> None:
        names = list(self.specs)
        with httpx.Client(base_url=self.url, timeout=30) as http:
            while self._training.is_set():
                if self._num_unfinished(http) < NUM_UNFINISHED:
                    self._submit(http, names[len(self.jobs) % len(names)])
                self.ended.wait(PAUSE_SECONDS)

    def _num_unfinished(self, http: httpx.Client) -> int:
        answer = self._ask(http, "GET", "/metrics")
        if answer is None:
            return NUM_UNFINISHED
        counts = [line for line in answer.text.splitlines() if line.startswith(UNFINISHED)]
        return sum(int(float(line.split()[-1])) for line in counts)

    def _submit(self, http: httpx.Client, name: str) -> None:
        """Until it is acknowledged: with its key, a request that is sent again makes no second job."""
        body = {"model": name, "data": self.data, **self.specs[name]}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        while (answer := self._ask(http, "POST", "/train", json=body, headers=headers)) is None:
            self.ended.wait(PAUSE_SECONDS)
        if answer.status_code == 202:
            self.jobs[answer.json()["id"]] = name

    # ---- predicting

    def _predict(self) -> None:
        """The model does not change, so neither may its answers (but for the order of sums in a batch)."""
        body = {"model": "reference-eager", "inputs": self.data["inputs"][:5]}
        expected: Any = None
        with httpx.Client(base_url=self.url, timeout=30) as http:
            while not self.ended.is_set():
                answer = self._ask(http, "POST", "/predict", json=body)
                if answer is not None and answer.status_code == 200:
                    self.num_predictions += 1
                    found = answer.json()["predictions"]
                    expected = expected or found
                    if not np.allclose(found, expected, atol=1e-5):
                        self.fault(f"the same rows were answered {expected} and {found}")
                self.ended.wait(PAUSE_SECONDS)

    def _ask(self, http: httpx.Client, method: str, path: str, **request: Any) -> httpx.Response | None:
        """None where the connection broke, which a killed process cannot help; other failures are faults."""
        try:
            answer = http.request(method, path, **request)
        except httpx.TransportError:
            self.num_interrupted += 1
            return None
        if answer.status_code not in (200, 202):
            self.fault(f"{method} {path} was answered {answer.status_code}: {answer.text}")
        return answer
