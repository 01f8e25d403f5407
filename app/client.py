"""A client of the service: `Client("http://localhost:8000").train(model="line", data={"inputs": …, "targets": …})`.

Answers are the JSON objects that `GET /openapi.json` describes, as dicts; errors are those of `app.client_wire`.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import orjson

from app.client_wire import (
    ApiError,
    BadRequest,
    ClientError,
    Conflict,
    Event,
    JobFailed,
    Json,
    NotFound,
    Overloaded,
    Unauthorized,
    Unreachable,
    parse_events,
    raise_for_status,
)

__all__ = [
    "ApiError",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "Event",
    "JobFailed",
    "NotFound",
    "Overloaded",
    "Unauthorized",
    "Unreachable",
]

MAX_RECONNECTS = 8  # in a row without an event between them: about 15 seconds


class Client:
    """Talks to the service at `base_url`; safe to share between threads, closed by `with` or `close()`."""

    def __init__(self, base_url: str = "http://127.0.0.1:8000", api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(60.0, connect=10.0)
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ---- datasets

    def upload_dataset(self, name: str, path: str | Path) -> Json:
        """Streams a file (CSV, TSV, NDJSON, Parquet, Arrow IPC; gzip) up as dataset `name`, replacing what it was."""
        with Path(path).open("rb") as file:
            return self._json("PUT", _path("datasets", name), content=file, timeout=None)

    def datasets(self) -> Iterator[Json]:
        return self._pages("/datasets")

    def dataset(self, name: str) -> Json:
        return self._json("GET", _path("datasets", name))

    def delete_dataset(self, name: str) -> None:
        self._request("DELETE", _path("datasets", name))

    # ---- jobs

    def submit(self, spec: Json | None = None, /, *, idempotency_key: str | None = None, **fields: Any) -> Json:
        """Queues a run, given as the body of `POST /train` or its fields, and returns its Job at once."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._json("POST", "/train", json={**(spec or {}), **fields}, headers=headers)

    def train(
        self, spec: Json | None = None, /, *, on_event: Callable[[Event], None] | None = None, **fields: Any
    ) -> Json:
        """Like `submit`, but follows the run to its end; `on_event` sees each event. Raises JobFailed."""
        job = self.submit(spec, **fields)
        for event in self.events(job["id"]):
            if on_event:
                on_event(event)
        job = self.job(job["id"])
        if job["state"] != "succeeded":
            raise JobFailed(job)
        return job

    def dry_run(self, spec: Json | None = None, /, **fields: Any) -> Json:
        """The resolved spec, `num_parameters` and estimates of a run that is not started."""
        return self._json("POST", "/train", json={**(spec or {}), **fields}, params={"dry_run": "true"})

    def jobs(self, state: str | None = None, model: str | None = None) -> Iterator[Json]:
        return self._pages("/jobs", state=state, model=model)

    def job(self, job_id: str) -> Json:
        return self._json("GET", _path("jobs", job_id))

    def wait(self, job_id: str) -> Json:
        """Blocks until the job has ended, and returns it, whatever its end."""
        for _ in self.events(job_id):
            pass
        return self.job(job_id)

    def cancel(self, job_id: str) -> Json:
        return self._json("POST", _path("jobs", job_id, "cancel"))

    def pause(self, job_id: str) -> Json:
        return self._json("POST", _path("jobs", job_id, "pause"))

    def resume(self, job_id: str) -> Json:
        return self._json("POST", _path("jobs", job_id, "resume"))

    def delete_job(self, job_id: str) -> None:
        self._request("DELETE", _path("jobs", job_id))

    def history(self, job_id: str) -> list[Json]:
        """Metrics per epoch."""
        rows: list[Json] = self._json("GET", _path("jobs", job_id, "history"))["data"]
        return rows

    def events(self, job_id: str, after: str | None = None) -> Iterator[Event]:
        """All events after the one with id `after`, live, up to the job's end, each once.

        A broken connection is taken up again where it broke; Unreachable when the service stays away.
        """
        failures = 0
        while True:
            try:
                ended = self.job(job_id)["terminal"]  # asked first: then the stream below holds everything
                for event in self._stream(job_id, after):
                    yield event
                    after, failures = event.id, 0
                    if event.terminal:
                        return
                if ended:
                    return
            except (Unreachable, Overloaded):
                failures += 1
                if failures > MAX_RECONNECTS:
                    raise
                time.sleep(min(0.05 * 2**failures, 5.0))

    def _stream(self, job_id: str, after: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        with self._streaming(_path("jobs", job_id, "events"), headers) as chunks:
            yield from parse_events(chunks)

    # ---- models

    def models(self) -> Iterator[Json]:
        return self._pages("/models")

    def model(self, name: str, version: str | None = None) -> Json:
        return self._json("GET", _path("models", name, *(("versions", version) if version else ())))

    def delete_model(self, name: str, version: str | None = None) -> None:
        """Deletes a version, or the model with all of them."""
        self._request("DELETE", _path("models", name, *(("versions", version) if version else ())))

    def set_alias(self, name: str, alias: str, version: str) -> Json:
        return self._json("PUT", _path("models", name, "aliases", alias), json={"version": version})

    def delete_alias(self, name: str, alias: str) -> None:
        self._request("DELETE", _path("models", name, "aliases", alias))

    def download(self, name: str, version: str, file: str, path: str | Path) -> None:
        """Streams one file of a version (`model.safetensors`, `config.json`, …) into `path`."""
        address = _path("models", name, "versions", version, "files", file)
        with self._streaming(address) as chunks, Path(path).open("wb") as target:
            target.writelines(chunks)

    def predict(self, model: str, inputs: Any, version: str | None = None) -> Json:
        """Predictions for rows: lists of numbers, objects by column name, a numpy array, a polars or pandas frame."""
        return self._json("POST", "/predict", json=_versioned(model, version) | {"inputs": _rows(inputs)})

    def evaluate(self, model: str, data: Json, version: str | None = None) -> Json:
        """Loss and metrics of a model on `data`, given as in `POST /train`."""
        return self._json("POST", "/evaluate", json=_versioned(model, version) | {"data": data})

    # ---- operations

    def ready(self) -> bool:
        """Whether the service is there and answers for its database, its disk and its warm-up."""
        try:
            self._request("GET", "/readyz")
        except (Unreachable, Overloaded):
            return False
        return True

    def info(self) -> Json:
        """Versions, devices and limits of the service."""
        return self._json("GET", "/info")

    # ---- how requests are made

    def _pages(self, path: str, **params: str | None) -> Iterator[Json]:
        after: str | None = None
        while True:
            given = {key: value for key, value in (params | {"after": after}).items() if value is not None}
            page = self._json("GET", path, params=given)
            yield from page["data"]
            after = page["next"]
            if after is None:
                return

    def _json(self, method: str, path: str, *, json: Json | None = None, **options: Any) -> Json:
        if json is not None:
            options["content"] = orjson.dumps(json, str, orjson.OPT_SERIALIZE_NUMPY)  # NaN becomes null: missing
            options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        answer: Json = orjson.loads(self._request(method, path, **options).content)
        return answer

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._reaching():
            response = self._http.request(method, path, **options)
        raise_for_status(response)
        return response

    @contextmanager
    def _streaming(self, path: str, headers: dict[str, str] | None = None) -> Iterator[Iterator[bytes]]:
        with self._reaching(), self._http.stream("GET", path, headers=headers) as response:
            if response.is_error:
                response.read()
            raise_for_status(response)
            yield response.iter_bytes()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise Unreachable(f"no answer from {self.base_url}: {error or type(error).__name__}") from error


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _versioned(model: str, version: str | None) -> Json:
    return {"model": model} | ({"version": version} if version else {})


def _rows(inputs: Any) -> Any:
    if hasattr(inputs, "to_dicts"):  # polars
        return inputs.to_dicts()
    if hasattr(inputs, "to_dict"):  # pandas
        return inputs.to_dict("records")
    return inputs
