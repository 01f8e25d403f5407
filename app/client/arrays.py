"""Arrays as binary tensors of the Open Inference Protocol, there and back. Imports numpy where it is used.

Shape suffixes: N rows, K columns, T targets, L classes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from app.client.errors import Json

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER_LENGTH = "Inference-Header-Content-Length"
BYTES_PER_REQUEST = 2**26
ROWS_PER_REQUEST = 2**18


def numbers_of(inputs: Any) -> "NDArray[Any] | None":
    """An array of numbers (of numpy, torch, …) as the tensor it can be sent as; None for anything else."""
    if not hasattr(inputs, "__array__"):
        return None
    import numpy as np

    array = np.asarray(inputs)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        return None
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def parts_of(array_NK: "NDArray[Any]") -> Iterator["NDArray[Any]"]:
    """The rows, so many at once as one request should have."""
    row_bytes = max(1, array_NK[:1].nbytes)
    step = max(1, min(ROWS_PER_REQUEST, BYTES_PER_REQUEST // row_bytes))
    for start in range(0, max(1, len(array_NK)), step):
        yield array_NK[start : start + step]


def infer_body(array_NK: "NDArray[Any]") -> tuple[bytes, dict[str, str]]:
    """A request for all outputs as bytes, with the names of the classes; and the headers that go with it."""
    from app.serving.tensors import DTYPES

    datatype = next(name for name, dtype in DTYPES.items() if dtype == array_NK.dtype)
    tensor = {
        "name": "inputs",
        "shape": array_NK.shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": array_NK.nbytes},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, "classes": True}})
    headers = {HEADER_LENGTH: str(len(head)), "Accept-Encoding": "identity", "Content-Type": "application/octet-stream"}
    return b"".join((head, array_NK.data)), headers


def infer_answer(body: bytes, header_length: str) -> Json:
    """An answer as `POST /predict` has it, with arrays where that has lists."""
    import numpy as np

    from app.serving.tensors import from_bytes

    offset = int(header_length)
    head = orjson.loads(body[:offset])
    answer: Json = {"model": head["model_name"], "version": head["model_version"]}
    for output in head["outputs"]:
        end = offset + output["parameters"]["binary_data_size"]
        values = from_bytes(output["datatype"], output["shape"], memoryview(body)[offset:end], "")
        array = values.copy() if isinstance(values, np.ndarray) else values.to_numpy().astype(object)
        answer[output["name"]] = array.reshape(output["shape"])
        if "classes" in output["parameters"]:
            answer["classes"] = output["parameters"]["classes"]
        offset = end
    if answer["predictions"].shape[1] == 1 and len(answer.get("classes", ())) != 1:
        answer["predictions"] = answer["predictions"][:, 0]
    return answer


def joined(answers: list[Json]) -> Json:
    """The answers of an array's parts as that of the whole."""
    if len(answers) == 1:
        return answers[0]
    import numpy as np

    arrays = {
        name: np.concatenate([answer[name] for answer in answers])
        for name, value in answers[0].items()
        if isinstance(value, np.ndarray)
    }
    return answers[0] | arrays
