"""Every public method of both clients of `tritonclient.http`, by introspection: one without a case here fails."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient._plugin import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from app.learning.model import Model
from scripts.service import Service
from tests.acceptance.test_triton import Call, call, predictions, tensor
from tests.published import COLUMNS, DRAWN, columns_model, numbers_model, publish
from tests.samples import untrained

__all__ = ["call"]  # a fixture

MODEL, UNLOADED = "calls", "calls-unloaded"
ROWS = np.array([[0.5, 1.0], [2.0, 3.0]])
INPUTS = [tensor(ROWS)]


@pytest.fixture(scope="module", autouse=True)
def published(service: Service) -> None:
    for name in (MODEL, UNLOADED):
        publish(service.root / "models", name, numbers_model())


class Marking(InferenceServerClientPlugin):  # type: ignore[misc]
    """Counts requests."""

    def __init__(self) -> None:
        self.num_requests = 0

    def __call__(self, request: Any) -> None:
        self.num_requests += 1


def refused(call: Call, name: str, *arguments: Any, **named: Any) -> bool:
    """With 422 and a sentence, not as a path that nobody knows."""
    with pytest.raises(InferenceServerException) as caught:
        call(name, *arguments, **named)
    return caught.value.status() == "422" and " " in caught.value.message()


def plugged(call: Call) -> bool:
    call("register_plugin", plugin := Marking())
    assert call("plugin") is plugin
    call("is_server_live")
    call("unregister_plugin")
    call("is_server_live")
    return plugin.num_requests == 1


def made_by_hand(call: Call) -> bool:
    """As the clients make and read bodies themselves."""
    body, length = call("generate_request_body", INPUTS, request_id="7")
    assert b'"id":"7"' in body[:length]
    answered = call("infer", MODEL, INPUTS).get_response()
    assert answered["model_name"] == MODEL
    said = b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP64","shape":[1],"data":[2.5]}]}'
    return bool(call("parse_response_body", said).as_numpy("y").tolist() == [2.5])


def loaded_and_unloaded(call: Call) -> bool:
    call("unload_model", UNLOADED)
    assert not call("is_model_ready", UNLOADED)
    call("load_model", UNLOADED)
    return bool(call("is_model_ready", UNLOADED))


def inferred(call: Call, name: str = "infer") -> bool:
    answer = call(name, MODEL, INPUTS)
    found = answer.get_result() if name == "async_infer" else answer
    return bool(found.as_numpy("predictions").shape == (2, 1))


CASES: dict[str, Callable[[Call], Any]] = {
    "is_server_live": lambda call: call("is_server_live"),
    "is_server_ready": lambda call: call("is_server_ready"),
    "is_model_ready": lambda call: call("is_model_ready", MODEL, "1") and not call("is_model_ready", "nobody"),
    "get_server_metadata": lambda call: call("get_server_metadata")["name"] == "gradserve",
    "get_model_metadata": lambda call: call("get_model_metadata", MODEL, "1")["inputs"][0]["shape"] == [-1, 2],
    "get_model_config": lambda call: call("get_model_config", MODEL)["max_batch_size"] == 0,
    "get_model_repository_index": lambda call: MODEL in [e["name"] for e in call("get_model_repository_index")],
    "load_model": loaded_and_unloaded,
    "unload_model": loaded_and_unloaded,
    "get_inference_statistics": lambda call: call("get_inference_statistics", MODEL)["model_stats"][0]["name"] == MODEL,
    "infer": inferred,
    "async_infer": lambda call: inferred(call, "async_infer"),
    "generate_request_body": made_by_hand,
    "parse_response_body": made_by_hand,
    "get_trace_settings": lambda call: call("get_trace_settings", MODEL)["trace_level"] == ["OFF"],
    "update_trace_settings": lambda call: refused(call, "update_trace_settings", settings={"trace_rate": "1"}),
    "get_log_settings": lambda call: call("get_log_settings")["log_error"] is True,
    "update_log_settings": lambda call: refused(call, "update_log_settings", {"log_verbose_level": 1}),
    "get_system_shared_memory_status": lambda call: call("get_system_shared_memory_status") == [],
    "get_cuda_shared_memory_status": lambda call: call("get_cuda_shared_memory_status", "region") == [],
    "register_system_shared_memory": lambda call: refused(call, "register_system_shared_memory", "region", "/key", 9),
    "register_cuda_shared_memory": lambda call: refused(call, "register_cuda_shared_memory", "region", b"key", 0, 9),
    "unregister_system_shared_memory": lambda call: call("unregister_system_shared_memory") is None,
    "unregister_cuda_shared_memory": lambda call: call("unregister_cuda_shared_memory", "region") is None,
    "plugin": plugged,
    "register_plugin": plugged,
    "unregister_plugin": plugged,
    "close": lambda call: call("close") is None,
}
METHODS = {
    kind: [name for name in dir(client.InferenceServerClient) if not name.startswith("_")]
    for kind, client in (("sync", triton), ("asyncio", triton_aio))
}


def test_there_is_a_case_for_every_method_and_none_besides() -> None:
    assert set(CASES) == {name for names in METHODS.values() for name in names}


@pytest.mark.parametrize(
    ("call", "name"), [(kind, name) for kind, names in METHODS.items() for name in names], indirect=["call"]
)
def test_a_method(call: Call, name: str) -> None:
    assert CASES[name](call)


# ---- datatypes

TIMES = COLUMNS.with_columns(when=pl.datetime(2026, 1, 1) + pl.duration(hours=pl.int_range(0, COLUMNS.height)))
CODES = COLUMNS.with_columns(
    code=pl.col("count") % 3 + 10,
    level=pl.col("count") * 0.5,
    odd=pl.col("count") % 2,
    third=(pl.col("count") % 3 == 0).cast(pl.Int8),
)
TABLES = {"datetimes": TIMES, "whole numbers": CODES, "fractions": CODES, "several 0 and 1": CODES}
FEATURES_OF: dict[str, Any] = {"data": {"features": ["size", "color"]}}
MODELS: dict[str, tuple[Callable[[], Model], str, type]] = {
    "text": (columns_model, "BYTES", str),
    "flags": (lambda: columns_model("wet"), "BOOL", bool),
    "several flags": (lambda: columns_model(["wet", "cold"]), "BOOL", bool),
    "several 0 and 1": (lambda: untrained(CODES, ["odd", "third"], **FEATURES_OF, **DRAWN), "INT64", int),
    "whole numbers": (lambda: untrained(CODES, "code", task="multiclass", **FEATURES_OF, **DRAWN), "INT64", int),
    "fractions": (lambda: untrained(CODES, "level", task="multiclass", **FEATURES_OF, **DRAWN), "FP64", float),
    "numbers": (lambda: columns_model(["y", "z"]), "FP64", float),
    "datetimes": (lambda: untrained(TIMES, "y", data={"features": ["when", "size"]}, **DRAWN), "FP64", float),
}


def cells(column: pl.Series, datatype: str) -> NDArray[Any]:
    """A column as a tensor of the datatype that the metadata name; times as text."""
    if datatype == "BYTES":
        texts = column.dt.to_string("iso") if column.dtype.is_temporal() else column
        return np.array(texts.fill_null("").to_list(), dtype=object)[:, None]
    array = column.fill_null(0).to_numpy().astype({"FP64": np.float64, "BOOL": np.bool_}[datatype])[:, None]
    assert np_to_triton_dtype(array.dtype) == datatype
    return array


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_every_datatype_that_a_model_can_have(call: Call, service: Service, kind: str, binary: bool) -> None:
    """In and out; what the metadata say is what the client gets, and the values are those of `/predict`."""
    make, datatype, python_type = MODELS[kind]
    name = f"types-{kind.replace(' ', '-')}"
    if not (service.root / "models" / name).exists():
        publish(service.root / "models", name, make())
    metadata = call("get_model_metadata", name)
    table = TABLES.get(kind, COLUMNS)
    inputs = [
        tensor(cells(table[given["name"]], given["datatype"]), given["name"], binary=binary)
        for given in metadata["inputs"]
    ]
    outputs = [triton.InferRequestedOutput(given["name"], binary_data=binary) for given in metadata["outputs"]]
    result = call("infer", name, inputs, outputs=outputs)
    given_columns = [given["name"] for given in metadata["inputs"]]
    rows = table.select(given_columns).with_columns(pl.col(pl.Float64).fill_null(0)).to_dicts()
    plain = [{key: v.isoformat() if hasattr(v, "isoformat") else v for key, v in row.items()} for row in rows]
    said = predictions(service, name, plain)
    for given in metadata["outputs"]:
        found = result.as_numpy(given["name"])
        assert list(found.shape) == [table.height, *given["shape"][1:]]
        assert result.get_output(given["name"])["datatype"] == given["datatype"]
        if given["name"] == "probabilities":
            np.testing.assert_allclose(found, said["probabilities"], rtol=1e-6)
    assert metadata["outputs"][0]["datatype"] == datatype
    values = result.as_numpy("predictions").ravel().tolist()
    labels = [value.decode() if isinstance(value, bytes) else value for value in values]
    expected = np.array(said["predictions"], dtype=object).ravel().tolist()
    assert {type(value) for value in labels} == {type(value) for value in expected} == {python_type}
    if said.get("classes"):
        assert labels == expected
    else:
        np.testing.assert_allclose(labels, expected, rtol=1e-6)
