"""Inference requests and responses of the Open Inference Protocol, in JSON with binary tensors behind it or without.

https://github.com/kserve/open-inference-protocol, with Triton's extensions for binary data and classification.
Shape suffixes: N rows, K columns, F encoded numbers, L classes.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import orjson
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, Strict

from app.errors import InvalidInput, ShapeMismatch, TooLarge, UnknownColumn
from app.learning.features import Features
from app.serving.columns import fit_column
from app.serving.encode import At, encode_frame, encode_numbers, refuse_missing
from app.serving.served_model import ServedModel
from app.serving.signature import (
    MATRIX,
    PREDICTIONS,
    PROBABILITIES,
    TensorType,
    input_types,
    labels_of,
    output_types,
    takes_matrix,
)
from app.serving.tensors import Tensor, check_datatype, column_of, from_bytes, from_json, length_prefixed, to_bytes
from app.specs.sentences import some_of, unknown_column
from app.specs.table import Column, Signature
from app.storage.json_depth import can_be_written

Size = Annotated[int, Strict(), Field(ge=0, le=2**62)]


class InferInput(BaseModel):
    """A tensor: its elements are in `data`, or `parameters.binary_data_size` bytes of them follow the JSON."""

    name: str
    shape: Annotated[list[Size], Field(min_length=1, max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class InferOutput(BaseModel):
    """A wanted output. `parameters`: `binary_data`, and `classification`: so many `value:index:label` a row."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """With `parameters.binary_data_output` all outputs follow the JSON as bytes.

    With `parameters.classes`, `probabilities` says in its own parameters which classes its columns are.
    """

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InferInput], Field(min_length=1)]
    outputs: list[InferOutput] | None = None


class Wanted(NamedTuple):
    """An output as a request wants it."""

    type: TensorType
    binary: bool
    classification: int


class Call(NamedTuple):
    """A request that was read and found in order; `inputs` is `[N, F]`."""

    request: InferRequest
    inputs: torch.Tensor
    wanted: list[Wanted]
    timeout_seconds: float | None


def read_call(model: ServedModel, request: InferRequest, binary: memoryview, max_rows: int) -> Call:
    """A request with the bytes that follow its JSON.

    Raises:
        ShapeMismatch, UnknownColumn, InvalidInput, TooLarge
    """
    features, signature = model.model.features, model.model.signature
    wanted = wanted_outputs(request, signature)
    tensors = read_tensors(request, binary, max_rows)
    if request.parameters and not can_be_written(request.parameters):
        raise InvalidInput.at("/parameters", "these are nested too deeply to be sent back")
    timeout = _timeout_seconds(request.parameters.get("timeout"))
    return Call(request, encode_tensors(features, signature, tensors), wanted, timeout)


def _timeout_seconds(microseconds: Any) -> float | None:
    if microseconds in (None, 0):
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise InvalidInput.at("/parameters/timeout", "the timeout must be a whole number of microseconds")
    return microseconds / 1e6


# ---- a request's tensors


def read_tensors(request: InferRequest, binary: memoryview, max_rows: int) -> list[Tensor]:
    """The inputs of a request, with the bytes that follow its JSON.

    Raises:
        ShapeMismatch, InvalidInput, TooLarge
    """
    tensors, offset = [], 0
    for index, item in enumerate(request.inputs):
        pointer = f"/inputs/{index}"
        check_datatype(item.datatype, f"{pointer}/datatype")
        if item.shape[0] > max_rows:
            raise TooLarge(f"there are more than the {max_rows} rows that one request may have")
        size = _binary_size(item, len(binary) - offset, pointer)
        if size is None:
            values = from_json(item.datatype, item.shape, item.data, f"{pointer}/data")
        else:
            values = from_bytes(item.datatype, item.shape, binary[offset : offset + size], pointer)
            offset += size
        tensors.append(Tensor(item.name, item.datatype, tuple(item.shape), values))
    if offset != len(binary):
        raise InvalidInput.at("/inputs", f"{len(binary) - offset} bytes follow that are no input's binary_data_size")
    return tensors


def _binary_size(item: InferInput, num_left: int, pointer: str) -> int | None:
    """How many of the bytes that are left are this input's, or None where its elements are in the JSON."""
    if "shared_memory_region" in item.parameters:
        raise InvalidInput.at(f"{pointer}/parameters", "shared memory is not spoken here; send binary data")
    size = item.parameters.get("binary_data_size")
    if size is None:
        if item.data is None:
            raise InvalidInput.at(pointer, "this input has neither data nor parameters.binary_data_size")
        return None
    pointer = f"{pointer}/parameters/binary_data_size"
    if type(size) is not int or size < 0:
        raise InvalidInput.at(pointer, "this must be a whole number of bytes")
    if item.data is not None:
        raise InvalidInput.at(pointer, "this input has both data and a binary_data_size")
    if size > num_left:
        raise ShapeMismatch.at(pointer, f"this says {size} bytes; {num_left} are left after the JSON")
    return size


def encode_tensors(features: Features, signature: Signature, tensors: Sequence[Tensor]) -> torch.Tensor:
    """A request's tensors to `[N, F]`.

    Raises:
        ShapeMismatch, UnknownColumn, InvalidInput
    """
    _check_names(signature, tensors)
    places = {tensor.name: index for index, tensor in enumerate(tensors)}
    if MATRIX in places and takes_matrix(signature):
        index = places[MATRIX]

        def at(row: int, column: int) -> str:
            return f"/inputs/{index}/data/{row}/{column}"

        return encode_numbers(features, _matrix(features, signature, tensors[index], index, at), at)
    num_rows = tensors[0].shape[0]
    columns = []
    for column in signature.inputs:
        index = places[column.name]
        columns.append(_column(features, column, tensors[index], index, num_rows))
    indices = [places[column.name] for column in signature.inputs]
    return encode_frame(features, pl.DataFrame(columns), lambda row, column: f"/inputs/{indices[column]}/data/{row}")


def _check_names(signature: Signature, tensors: Sequence[Tensor]) -> None:
    given = [tensor.name for tensor in tensors]
    if given == [MATRIX] and takes_matrix(signature):
        return
    wanted = [expected.name for expected in input_types(signature)]
    known = {*wanted, *signature.ignored, *(column.name for column in signature.targets)}
    if given == [MATRIX] and MATRIX not in known:
        detail = f"{MATRIX!r} is for models of numbers alone; this one takes a tensor for each of {some_of(wanted)}"
        raise UnknownColumn.at("/inputs/0/name", detail)
    for index, name in enumerate(given):
        if name not in known:
            raise UnknownColumn.at(f"/inputs/{index}/name", unknown_column(name, wanted))
        if name in given[:index]:
            raise InvalidInput.at(f"/inputs/{index}/name", f"the input {name!r} is given twice")
    if missing := [name for name in wanted if name not in given]:
        raise InvalidInput.at("/inputs", f"the model takes {some_of(missing)} too")


def _matrix(features: Features, signature: Signature, tensor: Tensor, index: int, at: At) -> NDArray[np.floating[Any]]:
    width = len(signature.inputs)
    if isinstance(tensor.values, pl.Series):
        raise InvalidInput.at(
            f"/inputs/{index}/datatype", f"{MATRIX!r} takes numbers, such as FP32, not {tensor.datatype}"
        )
    if len(tensor.shape) != 2 or tensor.shape[1] != width or tensor.shape[0] < 1:
        raise ShapeMismatch.at(
            f"/inputs/{index}/shape",
            f"{MATRIX!r} takes the shape [-1, {width}], with at least one row; got {list(tensor.shape)}",
        )
    numbers_NK: NDArray[np.floating[Any]] = tensor.values
    if numbers_NK.dtype not in (np.float32, np.float64):
        numbers_NK = tensor.values.astype(np.float64)
    present_NK = np.isfinite(numbers_NK)
    if not present_NK.all():
        refuse_missing(features, ~present_NK, at)
        numbers_NK = np.where(present_NK, numbers_NK, np.nan)
    return numbers_NK


def _column(features: Features, column: Column, tensor: Tensor, index: int, num_rows: int) -> pl.Series:
    if tensor.shape not in ((num_rows,), (num_rows, 1)) or num_rows < 1:
        raise ShapeMismatch.at(
            f"/inputs/{index}/shape",
            f"{column.name!r} takes the shape [-1, 1], with as many rows as the other inputs; got {list(tensor.shape)}",
        )
    cells = column_of(tensor)
    if tensor.datatype == "BYTES" and "" not in features.vocabularies.get(column.name, ()):
        cells = cells.set(cells == "", None)  # bytes have no null
    return fit_column(column, cells, lambda row: f"/inputs/{index}/data/{row}")


# ---- an answer's tensors


def wanted_outputs(request: InferRequest, signature: Signature) -> list[Wanted]:
    """What to answer with: all outputs, or those that are asked for.

    Raises:
        InvalidInput
    """
    types = {expected.name: expected for expected in output_types(signature)}
    as_bytes = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return [Wanted(expected, as_bytes, 0) for expected in types.values()]
    return [_wanted(item, f"/outputs/{index}", types, as_bytes) for index, item in enumerate(request.outputs)]


def _wanted(item: InferOutput, pointer: str, types: dict[str, TensorType], as_bytes: bool) -> Wanted:
    if item.name not in types:
        raise InvalidInput.at(f"{pointer}/name", f"there is no output {item.name!r}; there are {', '.join(types)}")
    if "shared_memory_region" in item.parameters:
        raise InvalidInput.at(f"{pointer}/parameters", "shared memory is not spoken here; ask for binary data")
    classification = item.parameters.get("classification", 0)
    if type(classification) is not int or classification < 0:
        raise InvalidInput.at(f"{pointer}/parameters/classification", "this must be a whole number of classes")
    if classification and item.name != PROBABILITIES:
        raise InvalidInput.at(f"{pointer}/parameters/classification", f"this is for the output {PROBABILITIES!r} only")
    return Wanted(types[item.name], item.parameters.get("binary_data", as_bytes) is True, classification)


def encode_response(model: ServedModel, call: Call, values: torch.Tensor) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary tensors follow it."""
    names_classes = call.request.parameters.get("classes") is True
    outputs, blobs = [], []
    for output in call.wanted:
        header, blob = _encode_output(model.model.signature, output, values)
        if names_classes and output.type.name == PROBABILITIES and not output.classification:
            header.setdefault("parameters", {})["classes"] = model.model.signature.classes
        outputs.append(header)
        blobs.append(blob)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if call.request.id is not None:
        answer["id"] = call.request.id
    if call.request.parameters:
        answer["parameters"] = call.request.parameters
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    binary = [blob for blob in blobs if blob is not None]
    return (b"".join([head, *binary]), len(head)) if binary else (head, None)


def _encode_output(signature: Signature, output: Wanted, values: torch.Tensor) -> tuple[dict[str, Any], bytes | None]:
    name, datatype, (_, width) = output.type
    elements: NDArray[Any] | list[str]
    if output.classification:
        datatype, width = "BYTES", min(output.classification, values.shape[1])
        elements = _classification(signature, values.numpy(), width)
    elif name == PREDICTIONS and signature.task != "regression":
        elements = labels_of(signature, values)
    else:
        elements = values.numpy().ravel()
    header: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(values), width]}
    if not output.binary:
        return header | {"data": elements}, None
    blob = to_bytes(elements if isinstance(elements, np.ndarray) else map(length_prefixed, elements))
    return header | {"parameters": {"binary_data_size": len(blob)}}, blob


def _classification(signature: Signature, values_NL: NDArray[np.float64], count: int) -> list[str]:
    """The likeliest classes of each row, as `value:index:label`."""
    assert signature.classes is not None
    order = np.argsort(-values_NL, axis=1, kind="stable")[:, :count]
    return [
        f"{values_NL[row, index]:f}:{index}:{signature.classes[index]}"
        for row, indices in enumerate(order.tolist())
        for index in indices
    ]
