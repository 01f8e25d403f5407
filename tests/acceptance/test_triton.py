"""Every call of `tritonclient.http`, sync and asyncio, against a running service."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from inspect import isawaitable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from scripts.service import Service
from tests.published import columns_model, numbers_model, publish

NUMBERS, COLUMNS = "triton-numbers", "triton-columns"
ROWS = np.array([[0.5, 1.0], [2.0, 3.0], [7.5, 0.0]])
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}  # of float32, relative to the largest term of a sum, whatever is left of it
Call = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def published(service: Service) -> None:
    for _ in range(2):
        publish(service.root / "models", NUMBERS, numbers_model())
    publish(service.root / "models", COLUMNS, columns_model())


@pytest.fixture(params=["sync", "asyncio"])
def call(request: pytest.FixtureRequest, service: Service) -> Iterator[Call]:
    """`call(name, …)`: a method of a client, of which there are two."""
    address = service.url.removeprefix("http://")
    with asyncio.Runner() as runner:

        async def make() -> Any:
            return triton_aio.InferenceServerClient(address)

        client = triton.InferenceServerClient(address) if request.param == "sync" else runner.run(make())

        async def finish(awaited: Awaitable[Any]) -> Any:
            return await awaited

        def call(name: str, *arguments: Any, **named: Any) -> Any:
            found = getattr(client, name)(*arguments, **named)
            return runner.run(finish(found)) if isawaitable(found) else found

        yield call
        call("close")


def tensor(values: NDArray[Any], name: str = "inputs", *, binary: bool = True) -> Any:
    made = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def predictions(service: Service, model: str, inputs: Any) -> Any:
    """What `/predict` says."""
    answer = httpx.post(f"{service.url}/predict", json={"model": model, "inputs": inputs})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_server(call: Call) -> None:
    assert call("is_server_live")
    assert call("is_server_ready")
    metadata = call("get_server_metadata")
    assert metadata["name"] == "gradserve"
    assert "binary_tensor_data" in metadata["extensions"]


def test_models(call: Call) -> None:
    assert call("is_model_ready", NUMBERS)
    assert call("is_model_ready", NUMBERS, "1")
    assert not call("is_model_ready", NUMBERS, "9")
    assert not call("is_model_ready", "nope")
    assert call("get_model_metadata", NUMBERS)["versions"] == ["1", "2"]
    config = call("get_model_config", COLUMNS, "1")
    assert [item["data_type"] for item in config["input"]] == ["TYPE_FP64", "TYPE_FP64", "TYPE_BOOL", "TYPE_STRING"]
    index = [(entry["name"], entry["version"], entry["state"]) for entry in call("get_model_repository_index")]
    assert {(NUMBERS, "1", "READY"), (NUMBERS, "2", "READY"), (COLUMNS, "1", "READY")} <= set(index)


def test_load_and_unload(call: Call, service: Service) -> None:
    call("load_model", COLUMNS)
    call("unload_model", COLUMNS)
    assert not call("is_model_ready", COLUMNS)
    assert ("UNAVAILABLE", "unloaded") in {
        (entry["state"], entry["reason"]) for entry in call("get_model_repository_index") if entry["name"] == COLUMNS
    }
    call("load_model", COLUMNS)
    assert call("is_model_ready", COLUMNS)
    call("unload_model", COLUMNS, unload_dependents=True)
    predictions(service, COLUMNS, [{"size": 1.0, "count": 1, "kept": True, "color": "red"}])
    assert call("is_model_ready", COLUMNS)
    with pytest.raises(InferenceServerException, match="can't be replaced"):
        call("load_model", COLUMNS, config="{}")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("datatype", [np.float32, np.float64])
def test_infer_numbers(call: Call, service: Service, binary: bool, compression: str | None, datatype: type) -> None:
    result = call(
        "infer",
        NUMBERS,
        [tensor(ROWS.astype(datatype), binary=binary)],
        model_version="2",
        outputs=[triton.InferRequestedOutput("predictions", binary_data=binary)],
        request_id="seven",
        timeout=10_000_000,
        parameters={"mine": "5"},
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    expected = predictions(service, NUMBERS, ROWS.tolist())["predictions"]
    np.testing.assert_allclose(result.as_numpy("predictions").ravel(), expected, **ROUNDING)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", NUMBERS, "2")
    assert response["parameters"]["mine"] == "5"
    assert ("data" in result.get_output("predictions")) is not binary


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_whole_numbers(call: Call, service: Service, datatype: str, binary: bool) -> None:
    rows = np.array([[1, 0], [0, 1]])
    result = call("infer", NUMBERS, [tensor(rows.astype(datatype), binary=binary)])
    expected = predictions(service, NUMBERS, rows.tolist())["predictions"]
    np.testing.assert_allclose(result.as_numpy("predictions").ravel(), expected, **ROUNDING)


@pytest.mark.parametrize("binary", [True, False])
def test_columns_and_labels(call: Call, service: Service, binary: bool) -> None:
    inputs = [
        tensor(np.array([[1.5], [0.2]]), "size", binary=binary),
        tensor(np.array([[3], [1]], np.int32), "count", binary=binary),
        tensor(np.array([[True], [False]]), "kept", binary=binary),
        tensor(np.array([["grün"], ["pink"]], dtype=object), "color", binary=binary),
    ]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("predictions", "probabilities")]
    result = call("infer", COLUMNS, inputs, outputs=outputs)
    said = predictions(
        service,
        COLUMNS,
        [
            {"size": 1.5, "count": 3, "kept": True, "color": "grün"},
            {"size": 0.2, "count": 1, "kept": False, "color": "pink"},
        ],
    )
    labels = [label.decode() if binary else label for label in result.as_numpy("predictions").ravel()]
    assert labels == said["predictions"]
    np.testing.assert_allclose(result.as_numpy("probabilities"), said["probabilities"], rtol=1e-6)
    named = call("infer", COLUMNS, inputs, parameters={"classes": True}).get_output("probabilities")
    assert named["parameters"]["classes"] == said["classes"]
    best = call("infer", COLUMNS, inputs, outputs=[triton.InferRequestedOutput("probabilities", class_count=1)])
    assert [text.decode().split(":")[2] for text in best.as_numpy("probabilities").ravel()] == said["predictions"]


def test_half_precision(call: Call, service: Service) -> None:
    result = call("infer", NUMBERS, [tensor(ROWS.astype(np.float16))])
    expected = predictions(service, NUMBERS, ROWS.tolist())["predictions"]
    np.testing.assert_allclose(result.as_numpy("predictions").ravel(), expected, **ROUNDING)


def test_requests_in_flight(service: Service) -> None:
    """`async_infer` of the sync client: each gets its own rows."""
    with triton.InferenceServerClient(service.url.removeprefix("http://"), concurrency=8) as client:
        waiting = [client.async_infer(NUMBERS, [tensor(ROWS[:1] * factor)]) for factor in range(32)]
        values = [pending.get_result().as_numpy("predictions").item() for pending in waiting]
    expected = predictions(service, NUMBERS, [(ROWS[0] * factor).tolist() for factor in range(32)])["predictions"]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_bodies_made_by_hand(service: Service) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([tensor(ROWS)])
    headers = {"Inference-Header-Content-Length": str(length)}
    answer = httpx.post(f"{service.url}/v2/models/{NUMBERS}/infer", content=bytes(body), headers=headers)
    result = triton.InferenceServerClient.parse_response_body(
        answer.content, header_length=int(answer.headers["Inference-Header-Content-Length"])
    )
    assert result.as_numpy("predictions").shape == (3, 1)


def test_aliases(call: Call, service: Service) -> None:
    httpx.put(f"{service.url}/models/{NUMBERS}/aliases/champion", json={"version": "1"}).raise_for_status()
    assert call("infer", NUMBERS, [tensor(ROWS)], "champion").get_response()["model_version"] == "1"
    assert call("infer", NUMBERS, [tensor(ROWS)]).get_response()["model_version"] == "2"


def test_errors_are_sentences(call: Call) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'nope'") as missing:
        call("infer", "nope", [tensor(ROWS)])
    assert missing.value.status() == "404"
    with pytest.raises(InferenceServerException, match="takes the shape"):
        call("infer", NUMBERS, [tensor(ROWS[:, :1])])
    with pytest.raises(InferenceServerException, match="there is no model 'nope'"):
        call("get_model_metadata", "nope")


def test_statistics(call: Call) -> None:
    def entry() -> dict[str, Any]:
        (found,) = call("get_inference_statistics", NUMBERS, "1")["model_stats"]
        return dict(found)

    call("infer", NUMBERS, [tensor(ROWS)], "1")
    before = entry()
    call("infer", NUMBERS, [tensor(ROWS)], "1")
    after = entry()
    assert after["inference_count"] - before["inference_count"] == len(ROWS)
    assert after["execution_count"] - before["execution_count"] == 1
    success = [said["inference_stats"]["success"] for said in (before, after)]
    assert success[1]["count"] - success[0]["count"] == 1
    assert success[1]["ns"] > success[0]["ns"]
    every = call("get_inference_statistics")["model_stats"]
    assert {(NUMBERS, "1"), (COLUMNS, "1")} <= {(item["name"], item["version"]) for item in every}


def test_what_the_service_does_not_have(call: Call) -> None:
    assert call("get_trace_settings")["trace_level"] == ["OFF"]
    assert call("get_trace_settings", NUMBERS)["trace_level"] == ["OFF"]
    assert call("get_log_settings")["log_error"] is True
    for memory in ("system", "cuda"):
        assert call(f"get_{memory}_shared_memory_status") == []
        call(f"unregister_{memory}_shared_memory")
        call(f"unregister_{memory}_shared_memory", "region")
    with pytest.raises(InferenceServerException, match="shared memory is not spoken here"):
        call("register_system_shared_memory", "region", "/key", 100)
    with pytest.raises(InferenceServerException, match="shared memory is not spoken here"):
        call("register_cuda_shared_memory", "region", b"handle", 0, 100)
    with pytest.raises(InferenceServerException, match="no tracing"):
        call("update_trace_settings", settings={"trace_level": ["TIMESTAMPS"]})
    with pytest.raises(InferenceServerException, match="GRADSERVE_LOG_LEVEL"):
        call("update_log_settings", {"log_verbose_level": 1})
