"""What many clients do all day: uploads, runs that end or are cancelled, predictions by every protocol, streams."""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import numpy as np

from scripts.crowd import Crowd

MODELS, DATASETS = ("a", "b", "c"), ("left", "right")
KEPT_VERSIONS = 3
PAUSE_SECONDS = 0.03
KEEP_ALIVE_SECONDS = 2.0  # less than the service's, which closes a connection just when it is used again
WEIGHTS = np.arange(1.0, 5.0)
STREAM = {"Accept": "text/event-stream"}
STEADY = {
    "model": "steady",
    "data": {"inputs": np.eye(4).tolist(), "targets": WEIGHTS.tolist()},
    "network": {"hidden_features": [16]},
    "validation": None,
    "stop": {"max_epochs": 5},
}
ROWS = np.random.default_rng(3).standard_normal((20, 4)).round(3)


class Load(Crowd):
    """`with Load(…):` has clients at work. `counts` are the requests of each kind; `fault` is told what must not be."""

    def __init__(self, url: str, seed: int, fault: Callable[[str], object], counts: Counter[str]) -> None:
        self.url, self.fault, self.counts = url, fault, counts
        kinds = (self._upload, self._train, self._train, self._predict, self._predict, self._look)
        super().__init__(
            partial(self._work, kind, random.Random(f"{seed} {number}")) for number, kind in enumerate(kinds)
        )

    def _work(self, once: Callable[[httpx.Client, random.Random], None], rng: random.Random) -> None:
        limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS)
        with httpx.Client(base_url=self.url, timeout=120, limits=limits) as http:
            while not self.ended.is_set():
                try:
                    once(http, rng)
                except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
                    self.fault(f"{once.__name__.strip('_')}: {type(error).__name__}: {error}")
                self.ended.wait(PAUSE_SECONDS)

    def ask(
        self, http: httpx.Client, method: str, path: str, expected: tuple[int, ...] = (200,), **request: Any
    ) -> httpx.Response:
        answer = http.request(method, path, **request)
        self.counts[f"{method} /{path.split('/')[1].split('?')[0]}"] += 1
        if answer.status_code not in expected:
            self.fault(f"{method} {path} was answered {answer.status_code}: {answer.text[:300]}")
        return answer

    # ---- the clients

    def _upload(self, http: httpx.Client, rng: random.Random) -> None:
        name = rng.choice(DATASETS)
        self.ask(http, "PUT", f"/datasets/{name}", (200, 201), content=_csv(rng))
        self.ask(http, "GET", f"/datasets/{name}/rows?limit=5")
        if rng.random() < 0.2:
            self.ask(http, "DELETE", f"/datasets/{name}", (204,))

    def _train(self, http: httpx.Client, rng: random.Random) -> None:
        model = rng.choice(MODELS)
        body = {"model": model, "data": _data(rng), "seed": rng.randrange(100), "stop": {"max_epochs": 20}}
        if rng.random() < 0.3:
            body["stop"] = {"max_epochs": 100_000}  # which is cancelled long before
        job = self.ask(http, "POST", "/train", (202, 404), json=body).json()
        if "id" not in job:
            return  # the dataset has just been deleted
        links = job["links"]
        if body["stop"] == {"max_epochs": 100_000}:
            self._cancel(http, links, rng)
        else:
            self._follow(http, links["events"], to_the_end=rng.random() < 0.8)
        if rng.random() < 0.3:
            self.ask(http, "DELETE", links["self"], (204, 409, 404))
        self._delete_old_versions(http, model)

    def _cancel(self, http: httpx.Client, links: dict[str, str], rng: random.Random) -> None:
        self._follow(http, links["events"], to_the_end=False)
        if rng.random() < 0.3:
            self.ask(http, "POST", links["self"] + "/pause", (202,))
        self.ask(http, "POST", links["self"] + "/cancel", (202,))
        self._follow(http, links["events"], to_the_end=True)

    def _follow(self, http: httpx.Client, path: str, *, to_the_end: bool) -> None:
        self.counts["event streams"] += 1
        with http.stream("GET", path, headers=STREAM) as answer:
            told = ""
            for part in answer.iter_text():
                told += part
                if not to_the_end:
                    return
        if not any(f'"state":"{state}"' in told for state in ("succeeded", "cancelled")):
            self.fault(f"the stream {path} ended with {told[-200:]!r}")

    def _delete_old_versions(self, http: httpx.Client, model: str) -> None:
        found = self.ask(http, "GET", f"/models/{model}", (200, 404)).json()
        for version in found.get("versions", [])[:-KEPT_VERSIONS]:
            self.ask(http, "DELETE", f"/models/{model}/versions/{version}", (204, 404))

    def _predict(self, http: httpx.Client, rng: random.Random) -> None:
        """By JSON, as a table, and as tensors, all of which must say the same."""
        rows = ROWS[rng.sample(range(len(ROWS)), rng.randrange(1, 9))]
        by_json = self.ask(http, "POST", "/predict", json={"model": "steady", "inputs": rows.tolist()}).json()
        text = "x0,x1,x2,x3\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
        csv = self.ask(http, "POST", "/predict?model=steady", content=text, headers={"Content-Type": "text/csv"})
        tensor = {"name": "inputs", "shape": list(rows.shape), "datatype": "FP32", "data": rows.tolist()}
        by_v2 = self.ask(http, "POST", "/v2/models/steady/infer", json={"inputs": [tensor]}).json()
        found = [
            by_json["predictions"],
            [float(line.rpartition(",")[2]) for line in csv.text.splitlines()[1:]],
            by_v2["outputs"][0]["data"],
        ]
        if not (np.allclose(found[0], found[1], atol=1e-4) and np.allclose(found[0], found[2], atol=1e-4)):
            self.fault(f"the same rows were answered {found}")

    def _look(self, http: httpx.Client, rng: random.Random) -> None:
        path = rng.choice(["/healthz", "/jobs?limit=20", "/models", "/datasets", "/metrics", "/info"])
        self.ask(http, "GET", path)


def _table(rng: random.Random) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows that no client has sent before."""
    inputs = np.random.default_rng(rng.randrange(2**32)).standard_normal((60, 4)).round(4)
    return inputs, (inputs @ WEIGHTS).round(4)


def _csv(rng: random.Random) -> str:
    inputs, targets = _table(rng)
    lines = (",".join(map(str, [*row, target])) for row, target in zip(inputs, targets, strict=True))
    return "x0,x1,x2,x3,y\n" + "\n".join(lines) + "\n"


def _data(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"dataset": rng.choice(DATASETS), "target": "y"}
    inputs, targets = _table(rng)
    return {"inputs": inputs.tolist(), "targets": targets.tolist()}
