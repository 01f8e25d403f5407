"""Whatever bytes come in, a codec gives a value or one of our errors, and nothing else.

`scripts/test tests/unit/test_fuzz_codecs.py --hypothesis-profile long` tries far more of them.
"""

import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import SafetensorError

from app.api.encodings import decompress
from app.api.invocations import Invocation, rows_of
from app.api.json_route import parse_json
from app.errors import GradserveError
from app.learning.model import Model
from app.serving import json_rows
from app.serving.encode import encode_rows
from app.serving.served_model import ServedModel
from app.serving.tabular_codec import RowReader
from app.serving.v2_codec import InferRequest, encode_response, read_call
from app.storage.formats import Format
from app.storage.row_stream import open_rows
from app.storage.tables import frame_from_inputs, frame_from_records
from app.storage.tensors import read_tensors, write_tensors
from app.storage.uploads import Upload, read_upload
from app.storage.version_archive import read_unpacked, unpack_version
from tests.published import COLUMNS, FEATURES, columns_model, numbers_model, publish
from tests.unit.mutations import cells, mutated, values

FRAME = COLUMNS.head(5).select(FEATURES)
LIMIT = 2**22


def written(method: str, **options: Any) -> bytes:
    content = io.BytesIO()
    getattr(FRAME, method)(content, **options)
    return content.getvalue()


CSV = written("write_csv", null_value="NA")
TABLES = [
    CSV,
    written("write_csv", separator="\t", quote_style="always"),
    b"sep=;\r\n" + written("write_csv", separator=";"),
    written("write_ndjson"),
    written("write_parquet"),
    written("write_ipc"),
    written("write_ipc", compression="lz4"),
    written("write_ipc_stream"),
    written("write_ipc_stream", compression="zstd"),
    gzip.compress(CSV),
    gzip.compress(written("write_ndjson")),
]
MODELS: dict[str, Model] = {
    "numbers": numbers_model(),
    "columns": columns_model(),
    "strict": columns_model(features={"missing": "impute", "categorical": "one_hot"}),
}
SERVED = {name: ServedModel(name, "1", model, 0) for name, model in MODELS.items()}
models = st.sampled_from(list(SERVED.values()))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def told(call: Callable[[], Any], *others: type[Exception]) -> Any:
    """What a call gives, None where it says in our words what is wrong; anything else fails the test."""
    try:
        return call()
    except (GradserveError, *others) as error:
        detail = str(error)
    assert detail
    return None


# ---- tables

bodies = mutated(TABLES) | st.binary(max_size=200) | st.text(max_size=100).map(str.encode)
declared = st.none() | st.sampled_from(get_args(Format))


@given(bodies, declared)
def test_tables(body: bytes, form: Format | None) -> None:
    with folder() as place:

        def read() -> pl.DataFrame:
            upload = Upload(place, LIMIT, form)
            upload.write(body)
            return pl.read_parquet(read_upload(upload, 50))

        table = told(read)
        if table is not None:
            assert table.height > 0
            assert 0 < table.width <= 50


@given(bodies, declared, models)
def test_rows_of_tables(body: bytes, form: Format | None, model: ServedModel) -> None:
    with folder() as place:

        def read() -> int:
            upload = Upload(place, LIMIT, form)
            upload.write(body)
            rows = open_rows(upload, 50)
            reader = RowReader(model, rows)
            return sum(len(reader.encode(part)) for part in rows.parts)

        told(read)


# ---- rows in JSON

rows = st.lists(st.lists(cells, max_size=5) | st.dictionaries(st.sampled_from(FEATURES), cells) | values, max_size=5)


@given(rows, models)
def test_rows(given_rows: list[Any], model: ServedModel) -> None:
    encoded = told(lambda: encode_rows(model.model.features, model.model.signature, given_rows))
    assert encoded is None or len(encoded) == len(given_rows)


@given(rows, models)
def test_rows_in_parts_are_as_in_one_piece(given_rows: list[Any], model: ServedModel) -> None:
    whole = told(lambda: encode_rows(model.model.features, model.model.signature, given_rows))
    text = memoryview(orjson.dumps(given_rows)[1:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "PART_BYTES", 8)
        parts = told(lambda: json_rows.encode_parts(model, text, 1000))
    assert (whole is None) == (parts is None)
    assert whole is None or whole.nan_to_num(7).equal(parts.nan_to_num(7))


@given(mutated([b'{"model": "m", "inputs": [[1, 2], [3.5, null]]}', b'{"inputs": [{"a": "]"}], "model": "m"}']), models)
def test_bodies_in_parts(body: bytes, model: ServedModel) -> None:
    found = told(lambda: json_rows.cut(body))
    if found is not None:
        told(lambda: json_rows.encode_parts(model, found.rows, 1000))


@given(st.lists(values, max_size=4), st.lists(values, max_size=4), st.none() | st.lists(values, max_size=4))
def test_inputs_and_targets(inputs: list[Any], targets: list[Any], weights: list[Any] | None) -> None:
    frame = told(lambda: frame_from_inputs(inputs, targets, weights))
    assert frame is None or frame.height == len(inputs)


@given(st.lists(st.dictionaries(st.text("ab /~", max_size=2), cells) | values, max_size=5))
def test_records(records: list[Any]) -> None:
    frame = told(lambda: frame_from_records(records))
    assert frame is None or frame.height == len(records)


forms = st.fixed_dictionaries(
    {},
    optional={
        "dataframe_split": st.fixed_dictionaries(
            {"data": st.lists(st.lists(values, max_size=3), max_size=3)},
            optional={"columns": st.lists(st.sampled_from(FEATURES), max_size=3)},
        ),
        "dataframe_records": st.lists(st.dictionaries(st.sampled_from(FEATURES), values), max_size=3),
        "instances": values,
        "inputs": values | st.dictionaries(st.sampled_from(FEATURES), st.lists(cells, max_size=3)),
    },
)


@given(forms, models)
def test_invocations(form: Any, model: ServedModel) -> None:
    def read() -> Any:
        pointer, found = rows_of(Invocation.model_validate(form), model.model.signature)
        return encode_rows(model.model.features, model.model.signature, found, pointer)

    told(read, ValidationError)


# ---- the Open Inference Protocol


def request(model: Model, *, binary: bool) -> bytes:
    """A valid one, the bytes behind its JSON, too."""
    if model is MODELS["numbers"]:
        head: Any = {"name": "inputs", "shape": [2, 2], "datatype": "FP32"}
        tail = bytes(16)
        data: Any = {"parameters": {"binary_data_size": 16}} if binary else {"data": [1, 2, 3, 4]}
        return json.dumps({"id": "a", "inputs": [head | data]}).encode() + (tail if binary else b"")
    kinds = {"size": ("FP64", [0.5, None]), "count": ("INT64", [1, 2]), "kept": ("BOOL", [True, False])}
    inputs = [
        {"name": name, "shape": [2, 1], "datatype": kind, "data": data}
        for name, (kind, data) in {**kinds, "color": ("BYTES", ["red", "x"])}.items()
    ]
    wanted = [{"name": "probabilities", "parameters": {"classification": 2}}, {"name": "predictions"}]
    if binary:
        del inputs[3]["data"]
        inputs[3]["parameters"] = {"binary_data_size": 12}
        wanted[1]["parameters"] = {"binary_data": True}
    text = json.dumps({"inputs": inputs, "outputs": wanted, "parameters": {"classes": True, "timeout": 10**9}}).encode()
    return text + (b"\x03\0\0\0red\x01\0\0\0x" if binary else b"")


REQUESTS = [request(model, binary=binary) for model in MODELS.values() for binary in (False, True)]


def answered(model: ServedModel, body: bytes, length: int) -> Any:
    asked = InferRequest.model_validate(parse_json(body[:length]))
    call = read_call(model, asked, memoryview(body)[length:], 1000)
    text, size = encode_response(model, call, model.model.predict(call.inputs))
    return json.loads(text[:size])


def json_length(body: bytes) -> int:
    """Where the JSON ends, as the header of a request says it."""
    end = body.rfind(b"}")
    return end + 1 if end >= 0 else len(body)


@pytest.mark.parametrize("model", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("binary", [False, True])
def test_the_requests_that_are_mutated_are_valid(model: ServedModel, binary: bool) -> None:
    body = request(model.model, binary=binary)
    assert len(answered(model, body, json_length(body))["outputs"]) >= 1


@given(mutated(REQUESTS), models)
def test_inference_requests(body: bytes, model: ServedModel) -> None:
    told(lambda: answered(model, body, json_length(body)), ValidationError)


tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["inputs", *FEATURES]),
        "shape": st.lists(st.integers(0, 3) | st.sampled_from([2**31, 2**62]), min_size=1, max_size=3),
        "datatype": st.sampled_from(["BOOL", "UINT64", "INT8", "FP16", "FP32", "FP64", "BYTES"]),
    },
    optional={
        "data": st.lists(values, max_size=6),
        "parameters": st.dictionaries(st.text(max_size=4), values, max_size=2),
    },
)


@given(st.lists(tensors, min_size=1, max_size=4), st.dictionaries(st.text(max_size=4), values, max_size=2), models)
def test_inference_tensors(inputs: list[Any], parameters: Any, model: ServedModel) -> None:
    body = orjson.dumps({"inputs": inputs, "parameters": parameters})
    told(lambda: answered(model, body, len(body)), ValidationError)


@given(
    mutated([gzip.compress(CSV), gzip.compress(CSV) * 2]) | st.binary(max_size=60), st.sampled_from(["gzip", "deflate"])
)
def test_compressed_bodies(body: bytes, encoding: str) -> None:
    plain = told(lambda: decompress(body, encoding, 1000))
    assert plain is None or len(plain) <= 1000


# ---- versions


def packed() -> list[bytes]:
    """A version as it travels: tar, gzip of it, zip."""
    tar, zipped = io.BytesIO(), io.BytesIO()
    with folder() as root:
        publish(root, "m", MODELS["columns"])
        with (
            tarfile.open(fileobj=tar, mode="w") as archive,
            zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as other,
        ):
            for path in sorted((root / "m" / "1").iterdir()):
                archive.add(path, path.name)
                other.write(path, path.name)
    return [tar.getvalue(), gzip.compress(tar.getvalue()), zipped.getvalue()]


@given(mutated(packed()))
def test_archives_of_versions(body: bytes) -> None:
    with folder() as place:
        target = place / "unpacked"
        target.mkdir()
        (place / "archive").write_bytes(body)

        def read() -> Any:
            unpack_version(place / "archive", target, LIMIT)
            return read_unpacked(target, "m")

        told(read)
        assert {path.name for path in place.iterdir()} <= {"archive", "archive.tar", "unpacked"}
        assert sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) < 3 * LIMIT


def weights() -> bytes:
    with folder() as place:
        write_tensors(place / "model.safetensors", MODELS["columns"].export()[0], {"position": "{}"})
        return (place / "model.safetensors").read_bytes()


WEIGHTS = weights()


@given(mutated([WEIGHTS, WEIGHTS[:400]]))
def test_weights(body: bytes) -> None:
    with folder() as place:
        (place / "model.safetensors").write_bytes(body)
        found = told(lambda: read_tensors(place / "model.safetensors"), SafetensorError)
        assert found is None or sum(tensor.nbytes for tensor in found[0].values()) <= len(body)
