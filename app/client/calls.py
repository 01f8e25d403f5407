"""Every call of the service, written once, as coroutines over a transport that awaits or blocks.

Answers are the JSON objects that `GET /openapi.json` describes, as dicts; errors are those of `app.client.errors`.
"""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.client.arrays import HEADER_LENGTH, infer_answer, infer_body, joined, numbers_of, parts_of
from app.client.bodies import HEADERLESS, body_of
from app.client.errors import BrokenOff, ClientError, JobFailed, Json, Overloaded, Unreachable
from app.client.events import Event, EventParser
from app.client.frames import ARROW, frame_like, is_frame
from app.client.requests import PATIENT, Requests

MAX_RECONNECTS = 8  # in a row without an event between them: about 15 seconds
RETRY_SECONDS = 0.5

OnEvent = Callable[[Event], object]
Version = str | int  # a number, or as a text also an alias


class Calls(Requests):
    # ---- datasets

    async def upload_dataset(self, name: str, source: Any, *, has_header: bool = True) -> Json:
        """Stores a table as dataset `name`, replacing what it was.

        `source` is a polars or pandas frame, the path of a file (CSV, TSV, NDJSON, Parquet, Arrow IPC; gzip), or blocks
        of one's bytes. Columns of a CSV without a header are named `x0`, `x1`, ….
        """
        media_type = "application/octet-stream" if has_header else HEADERLESS
        return await self._upload("PUT", _path("datasets", name), source, media_type)

    def datasets(self) -> AsyncGenerator[Json]:
        return self._pages("/datasets")

    async def dataset(self, name: str) -> Json:
        return await self._json("GET", _path("datasets", name))

    async def dataset_rows(self, name: str, limit: int = 50) -> list[Json]:
        """The first rows."""
        return await self._data(_path("datasets", name, "rows"), limit=str(limit))

    async def delete_dataset(self, name: str) -> None:
        await self._request("DELETE", _path("datasets", name))

    # ---- jobs

    async def submit(self, spec: Json | None = None, /, *, idempotency_key: str | None = None, **fields: Any) -> Json:
        """Queues a run, given as the body of `POST /train` or its fields, and returns its Job at once.

        Where the connection breaks it is sent once more under the same key, so that it is one run whatever arrived.
        """
        headers = _header("Idempotency-Key", idempotency_key or uuid.uuid4().hex)
        body = {**(spec or {}), **fields}
        try:
            return await self._json("POST", "/train", json=body, headers=headers)
        except Unreachable:
            await self._transport.sleep(RETRY_SECONDS)
            return await self._json("POST", "/train", json=body, headers=headers)

    async def train(self, spec: Json | None = None, /, *, on_event: OnEvent | None = None, **fields: Any) -> Json:
        """Like `submit`, but follows the run to its end; `on_event` sees each event. Raises JobFailed."""
        job = await self.submit(spec, **fields)
        async for event in self.events(job["id"]):
            if on_event and isawaitable(seen := on_event(event)):
                await seen
        job = await self.job(job["id"])
        if job["state"] != "succeeded":
            raise JobFailed(job)
        return job

    async def dry_run(self, spec: Json | None = None, /, **fields: Any) -> Json:
        """The resolved spec, `num_parameters` and estimates of a run that is not started."""
        return await self._json("POST", "/train", json={**(spec or {}), **fields}, params={"dry_run": "true"})

    def jobs(self, state: str | None = None, model: str | None = None) -> AsyncGenerator[Json]:
        return self._pages("/jobs", state=state, model=model)

    async def job(self, job_id: str) -> Json:
        return await self._json("GET", _path("jobs", job_id))

    async def wait(self, job_id: str) -> Json:
        """Returns the job once it has ended, whatever its end."""
        async for _ in self.events(job_id):
            pass
        return await self.job(job_id)

    async def cancel(self, job_id: str) -> Json:
        return await self._json("POST", _path("jobs", job_id, "cancel"))

    async def pause(self, job_id: str) -> Json:
        return await self._json("POST", _path("jobs", job_id, "pause"))

    async def resume(self, job_id: str) -> Json:
        return await self._json("POST", _path("jobs", job_id, "resume"))

    async def delete_job(self, job_id: str) -> None:
        await self._request("DELETE", _path("jobs", job_id))

    async def history(self, job_id: str) -> list[Json]:
        """Metrics per epoch."""
        return await self._data(_path("jobs", job_id, "history"))

    async def events(self, job_id: str, after: str | None = None) -> AsyncGenerator[Event]:
        """All events after the one with id `after`, live, up to the job's end, each once.

        A broken connection is taken up again where it broke; Unreachable when the service stays away.
        """
        failures = 0
        while True:
            try:
                ended = (await self.job(job_id))["terminal"]  # asked first: then the stream below holds everything
                async for event in self._stream_of_events(job_id, after):
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
                await self._transport.sleep(min(0.05 * 2**failures, 5.0))

    async def _stream_of_events(self, job_id: str, after: str | None) -> AsyncIterator[Event]:
        headers = {"Accept": "text/event-stream"} | (_header("Last-Event-ID", after) if after else {})
        parser = EventParser()
        async with self._streaming("GET", _path("jobs", job_id, "events"), headers=headers) as response:
            async for block in self._transport.blocks(response):
                for event in parser.feed(block):
                    yield event

    # ---- models

    def models(self) -> AsyncGenerator[Json]:
        return self._pages("/models")

    def versions(self, name: str) -> AsyncGenerator[Json]:
        """All versions of a model, the newest first."""
        return self._pages(_path("models", name, "versions"))

    async def model(self, name: str, version: Version | None = None) -> Json:
        return await self._json("GET", _path("models", name, *_numbered(version)))

    async def delete_model(self, name: str, version: Version | None = None) -> None:
        """Deletes a version, or the model with all of them."""
        await self._request("DELETE", _path("models", name, *_numbered(version)))

    async def set_alias(
        self, name: str, alias: str, version: Version, *, canary: Json | None = None, shadow: Json | None = None
    ) -> Json:
        """Points an alias at a version, and ends what it had beside it.

        `canary={"version": "2", "percent": 10}` answers a share of the requests; `shadow={"version": "2"}` is asked as
        well, and compared.
        """
        beside = {
            role: other | ({"version": str(other["version"])} if "version" in other else {})
            for role, other in (("canary", canary), ("shadow", shadow))
            if other is not None
        }
        return await self._json("PUT", _path("models", name, "aliases", alias), json={"version": str(version)} | beside)

    async def alias(self, name: str, alias: str) -> Json:
        """The version that it points to, and what it has beside it."""
        return await self._json("GET", _path("models", name, "aliases", alias))

    async def delete_alias(self, name: str, alias: str) -> None:
        await self._request("DELETE", _path("models", name, "aliases", alias))

    async def download(self, name: str, version: Version, file: str, path: str | Path) -> None:
        """Streams one file of a version (`model.safetensors`, `config.json`, …) into `path`."""
        await self._save(path, _path("models", name, *_numbered(version), "files", file))

    async def download_version(self, name: str, version: Version, path: str | Path) -> None:
        """All of a version into the file `path`, as the tar that `upload_version` takes."""
        await self._save(path, _path("models", name, *_numbered(version), "archive"))

    async def upload_version(self, name: str, archive: Any) -> Json:
        """Publishes a version that was downloaded, here or elsewhere, as the newest one of model `name`.

        `archive` is a tar, tar.gz or zip, or a version's folder.
        """
        return await self._upload("POST", _path("models", name, "versions"), archive)

    async def export(self, name: str, version: Version, path: str | Path, format: str = "onnx") -> None:  # noqa: A002
        """A version in another program's format, into `path`."""
        await self._save(path, _path("models", name, *_numbered(version), "export"), params={"format": format})

    # ---- predictions

    async def predict(
        self, model: str, inputs: Any, version: Version | None = None, *, routing_key: str | None = None
    ) -> Any:
        """Predictions for rows, in the form that the rows have.

        Lists of values, and objects by column name, give the JSON of `POST /predict`. An array of numbers (of numpy,
        torch, …) gives the same with arrays as `predictions` and `probabilities`. A polars or pandas frame gives a
        frame with as many rows: a column `prediction`, or `prediction_<target>` for each of several, and
        `probability_<class>` for classifiers.

        `version` is a number or an alias; where an alias has a canary, the same `routing_key` gets the same version.
        """
        if is_frame(inputs):
            table = self.predict_table(model, inputs, ARROW, version=version, routing_key=routing_key)
            return await self._transport.run(frame_like, inputs, [block async for block in table])
        if (array := numbers_of(inputs)) is not None:
            return await self._predict_array(model, array, version, routing_key)
        body = _versioned(model, version) | {"inputs": inputs}
        return await self._json("POST", "/predict", json=body, headers=_routed(routing_key))

    async def _predict_array(self, model: str, array: Any, version: Version | None, routing_key: str | None) -> Json:
        answers: list[Json] = []
        for part in parts_of(array):
            path = _path("v2", "models", model, *_numbered(version), "infer")
            body, headers = infer_body(part)
            response = await self._request("POST", path, content=body, headers=headers | _routed(routing_key))
            answers.append(infer_answer(response.content, response.headers[HEADER_LENGTH]))
            version = answers[0]["version"]  # a newer one may come while the rest is on its way
        return joined(answers)

    async def predict_table(
        self,
        model: str,
        source: Any,
        media_type: str,
        *,
        version: Version | None = None,
        accept: str | None = None,
        routing_key: str | None = None,
    ) -> AsyncGenerator[bytes]:
        """Predictions for a table of any size, block by block as they come: CSV or Arrow IPC, in and (`accept`) out."""
        content, known = await self._transport.run(body_of, source)
        headers = known | {"Content-Type": media_type, "Accept": accept or media_type} | _routed(routing_key)
        options = {"content": content, "headers": headers, "params": _versioned(model, version), "timeout": PATIENT}
        try:
            async with self._streaming("POST", "/predict", **options) as response:
                async for block in self._transport.blocks(response):
                    yield block
        except BrokenOff as error:
            detail = f"{error}; if it was for a row that can't be predicted, the service's log says which, and where"
            raise BrokenOff(f"{detail}: see the request_id {error.request_id}", error.request_id) from error

    async def evaluate(self, model: str, data: Json, version: Version | None = None) -> Json:
        """Loss and metrics of a model on `data`, given as in `POST /train`."""
        return await self._json("POST", "/evaluate", json=_versioned(model, version) | {"data": data}, timeout=PATIENT)

    # ---- operations

    async def ready(self) -> bool:
        """Whether the service is there and answers for its database, its disk and its warm-up."""
        try:
            await self._request("GET", "/readyz")
        except (Unreachable, Overloaded):
            return False
        return True

    async def info(self) -> Json:
        """Versions, devices and limits of the service."""
        return await self._json("GET", "/info")


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _numbered(version: Version | None) -> tuple[str, ...]:
    """The end of a model's address; an empty version is not the model itself."""
    return () if version is None else ("versions", str(version))


def _versioned(model: str, version: Version | None) -> dict[str, Any]:
    return {"model": model} | ({} if version is None else {"version": str(version)})


def _routed(key: str | None) -> dict[str, str]:
    return {} if key is None else _header("X-Routing-Key", key)


def _header(name: str, value: object) -> dict[str, str]:
    """A header with what the caller gave.

    Raises:
        ClientError: it is no text that a header can have.
    """
    text = str(value)
    if not (text.isascii() and text.isprintable()):
        raise ClientError(f"{text!r} can't be sent as {name}: only printable ASCII can")
    return {name: text}
