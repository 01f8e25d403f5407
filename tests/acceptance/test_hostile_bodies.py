"""Bodies that nobody should send: each gets a problem with what and where, in little memory, and the service goes on.

A row of the table is a request and the problem that it must get: status, code, and the pointer to the place where there
is one (for JSON, into the body; for tables `/row/column`; `?name` for a query parameter).
"""

import gzip
import io
import json
import struct
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import polars as pl
import pytest

from app.api.examples import RECORDS, SEED
from scripts.fuzz import max_bytes
from scripts.service import Service

SETTINGS = {
    "GRADSERVE_MAX_BODY_BYTES": str(8 * 2**20),
    "GRADSERVE_MAX_DATASET_BYTES": str(32 * 2**20),
    "GRADSERVE_MAX_ROWS": "1000",
}
MAX_GROWTH_BYTES = 512 * 2**20
MAX_SECONDS = 30.0  # far more than any takes, on a machine that does other things too


class Case(NamedTuple):
    name: str
    path: str
    body: bytes
    status: int
    code: str
    pointer: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    method: str = "POST"


JSON = {"Content-Type": "application/json"}
PARQUET_TYPE = "application/vnd.apache.parquet"


def told(path: str, name: str, body: Any, status: int, code: str, pointer: str | None = None, **headers: str) -> Case:
    """A JSON body: text as it stands, or a value."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Case(name, path, content, status, code, pointer, JSON | {k.replace("_", "-"): v for k, v in headers.items()})


# ---- what every JSON body can get wrong

NO_JSON: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n\t ",
    "half an object": b'{"model": "line", ',
    "two objects": b"{}{}",
    "NaN": b'{"model": "line", "inputs": [[NaN]]}',
    "Infinity": b'{"model": "line", "inputs": [[-Infinity]]}',
    "single quotes": b"{'model': 'line'}",
    "a comment": b'{"model": "line" /* the best */}',
    "a trailing comma": b'{"model": "line",}',
    "UTF-16": '{"model": "line"}'.encode("utf-16"),
    "Latin-1": '{"model": "líne"}'.encode("latin-1"),
    "half a character": b'{"model": "\xe2\x82"}',
    "half a surrogate": b'{"model": "\\ud800"}',
    "a NUL": b'{"model": "li\0ne"}',
    "nested without an end": b"[" * 100_000,
    "nested to the end": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a byte order mark": b'\xef\xbb\xbf{"model": "line"}',
    "UTF-32": '{"model": "line"}'.encode("utf-32"),
    "an endless number": b'{"model": "line", "inputs": [[' + b"9" * 400 + b"]]}",
    "1e400": b'{"model": "line", "inputs": [[1e400]]}',
    "a number in hex": b'{"model": "line", "inputs": [[0x10]]}',
    "a text without an end": b'{"model": "line',
    "half a gzip": gzip.compress(b'{"model": "line"}')[:-9],
    "a Python pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0",
}
NO_OBJECT = {"a list": [], "null": None, "text": b'"line"', "a number": 1}
PLACES_OF_JSON = ("/train", "/predict", "/evaluate", "/invocations", "/v2/models/line/infer")


def json_cases() -> Iterator[Case]:
    for path in PLACES_OF_JSON:
        for name, content in NO_JSON.items():
            yield told(path, name, content, 400, "unparseable")
        for name, value in NO_OBJECT.items():
            yield told(path, name, value, 422, "invalid_input", "")
        too_large = b'{"model": "' + b"x" * (8 * 2**20) + b'"}'
        yield told(path, "more than the limit", too_large, 413, "too_large")
        if not path.startswith("/v2"):  # where compressed bodies are spoken
            packed = {"Content_Encoding": "gzip"}
            bomb = gzip.compress(bytes(64 * 2**20))
            for name, content in (("gzip", gzip.compress(b"{}")), ("a bomb", bomb)):
                yield told(path, name, content, 415, "unsupported_media_type", **packed)
            yield told(path, "no type", b"{}", 415, "unsupported_media_type", Content_Type="text/plain")
            yield told(path, "Parquet", PARQUET, 415, "unsupported_media_type", Content_Type=PARQUET_TYPE)


DEEP = b"[" * 990 + b"1" + b"]" * 990
"""Nested as deeply as can just be read, and more deeply than can be written."""
PLACES_OF_VALUES: dict[str, tuple[str, bytes, str]] = {
    "a cell": ("/predict", b'{"model": "line", "inputs": [[%s]]}', "/inputs/0/0"),
    "a named cell": ("/predict", b'{"model": "birds", "inputs": [{"sex": %s}]}', "/inputs/0/sex"),
    "a field": ("/predict", b'{"model": "line", "inputs": [[1]], "more": %s}', "/more"),
    "a target": ("/train", b'{"model": "x", "data": {"inputs": [[1]], "targets": [%s]}}', "/data/targets/0/0"),
    "an input": ("/train", b'{"model": "x", "data": {"inputs": [[%s]], "targets": [1]}}', "/data/inputs/0/0"),
    "a record": ("/train", b'{"model": "x", "data": {"records": [{"a": %s}], "target": "a"}}', "/data/records/0/a"),
    "a tag": ("/train", b'{"model": "x", "data": {"inputs": [[1]], "targets": [1]}, "tags": {"a": %s}}', "/tags/a"),
    "a layer": (
        "/train",
        b'{"model": "x", "data": {"inputs": [[1]], "targets": [1]}, "network": {"layers": [%s]}}',
        "/network/layers/0",
    ),
    "a row": ("/evaluate", b'{"model": "line", "data": {"inputs": [%s], "targets": [1]}}', "/data/inputs/0/0"),
    "an instance": ("/invocations?model=line", b'{"instances": [%s]}', "/instances/0/0"),
    "a column": ("/invocations?model=birds", b'{"inputs": {"sex": [%s]}}', "/inputs/0/sex"),
    "an element": (
        "/v2/models/line/infer",
        b'{"inputs": [{"name": "inputs", "shape": [1, 1], "datatype": "FP32", "data": [%s]}]}',
        "/inputs/0/data",
    ),
    "a parameter": (
        "/v2/models/line/infer",
        b'{"parameters": {"a": %s}, "inputs": [{"name": "inputs", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}',
        "/parameters",
    ),
}


def nested_cases() -> Iterator[Case]:
    for name, (path, body, pointer) in PLACES_OF_VALUES.items():
        yield told(path, f"{name} that is nested", body % DEEP, 422, "invalid_input", pointer)


# ---- train


def train_cases() -> Iterator[Case]:
    def case(name: str, status: int, code: str, pointer: str | None, **changes: Any) -> Case:
        return told("/train", name, {**SEED, **changes}, status, code, pointer)

    def data(name: str, status: int, code: str, pointer: str | None, **changes: Any) -> Case:
        return case(name, status, code, pointer, data={"inputs": [[1], [2]], "targets": [1, 2]} | changes)

    wrong = (422, "invalid_input")
    yield case("a path as a name", *wrong, "/model", model="../../etc/passwd")
    yield case("a long name", *wrong, "/model", model="x" * 100_000)
    yield case("a number as a name", *wrong, "/model", model=7)
    yield case("an unknown field", *wrong, "/learning_rate", learning_rate=1)
    yield case("no data", *wrong, "/data", data=None)
    yield case("a dataset that is not there", 404, "dataset_not_found", None, data={"dataset": "none", "target": "y"})
    yield case("a digest of nothing", *wrong, "/data/digest", data={"digest": "sha256:1", "target": "y"})
    yield data("ragged rows", 422, "shape_mismatch", "/data/inputs/1", inputs=[[1], [1, 2]])
    yield data("no rows", *wrong, "/data/inputs", inputs=[], targets=[])
    yield data("empty rows", 422, "shape_mismatch", "/data/inputs/0", inputs=[[], []])
    yield data("rows that are numbers", *wrong, "/data/inputs/0", inputs=[1, 2])
    yield data("rows that are text", *wrong, "/data/inputs/0/0", inputs=[["a"], ["b"]])
    yield data("rows in rows", *wrong, "/data/inputs/0/0", inputs=[[[1]], [[2]]])
    yield data("inputs that are an object", *wrong, "/data/inputs", inputs={"0": [1]})
    yield data("too few targets", 422, "shape_mismatch", "/data/targets", targets=[1])
    yield data("ragged targets", 422, "shape_mismatch", "/data/targets/1", targets=[[1], [1, 2]])
    yield data("targets of two kinds", *wrong, "/data/targets/1", targets=[1, "a"])
    yield data("targets that are objects", *wrong, "/data/targets/0", targets=[{}, {}])
    yield data("negative weights", *wrong, "/data/sample_weight/1", sample_weight=[1, -1])
    yield data("weights that are all zero", *wrong, "/data/sample_weight", sample_weight=[0, 0])
    yield data("10 001 columns", 413, "too_large", None, inputs=[[0] * 10_001] * 2)
    yield data("1001 rows", 413, "too_large", None, inputs=[[1]] * 1001, targets=[1] * 1001)
    yield case("records of lists", *wrong, "/data/records/0", data={"records": [[1]], "target": "y"})
    yield case("records of nothing", *wrong, "/data/records/0", data={"records": [{}], "target": "y"})
    nested: Any = {"x": [1], "y": 2}
    yield case("lists in cells", *wrong, "/data/records/0/x", data={"records": [nested], "target": "y"})
    many = [{f"c{number}": 1 for number in range(10_001)}]
    yield case("records of 10 001 columns", 413, "too_large", None, data={"records": many, "target": "c0"})
    yield case(
        "a target that is no column", 422, "unknown_column", "/data/target", data={"records": [{"x": 1}], "target": "y"}
    )
    for value, name in ((-1, "negative"), (0, "of none"), (1.5, "of one and a half"), (10**30, "beyond all bounds")):
        yield case(f"a width {name}", *wrong, "/network/hidden_features/0", network={"hidden_features": [value]})
    yield case("a network too large", 413, "too_large", None, network={"hidden_features": [10**6, 10**6]})
    yield case("1001 widths", *wrong, "/network/hidden_features", network={"hidden_features": [1] * 1001})
    layer: dict[str, Any] = {"type": "relu"}
    for depth in range(201):
        layer = {"type": "residual", "layers": [layer]}
        if depth in (32, 200):
            yield case(f"layers in {depth} layers", *wrong, None, network={"layers": [layer]})
    yield case("a layer of no type", *wrong, "/network/layers/0/type", network={"layers": [{"type": "soup"}]})
    yield case("a negative batch", *wrong, "/descent/batch_size", descent={"batch_size": -1})
    yield case("no epochs", *wrong, "/stop/max_epochs", stop={"max_epochs": 0})
    yield case("an endless number", 400, "unparseable", None, seed=10**400)
    text = json.dumps({**SEED, "optimizer": {"type": "sgd", "learning_rate": "RATE"}})
    yield told("/train", "1e400", text.replace('"RATE"', "1e400"), 400, "unparseable")


# ---- predict and evaluate


def predict_cases() -> Iterator[Case]:
    def rows(name: str, inputs: Any, status: int, code: str, pointer: str | None, model: str = "line") -> Case:
        return told("/predict", name, {"model": model, "inputs": inputs}, status, code, pointer)

    wrong, shape = (422, "invalid_input"), (422, "shape_mismatch")
    yield rows("no rows", [], *shape, "/inputs")
    yield rows("ragged rows", [[1], [1, 2]], *shape, "/inputs/1")
    yield rows("a wide row", [[0] * 10_000], *shape, "/inputs/0")
    yield rows("rows that are numbers", [1, 2], *shape, "/inputs/0")
    yield rows("inputs that are text", "[[1]]", *wrong, "/inputs")
    yield rows("text", [["a"]], *wrong, "/inputs/0/0")
    yield rows("a list in a cell", [[[1]]], *wrong, "/inputs/0/0")
    yield rows("an endless number", [[10**400]], 400, "unparseable", None)
    yield rows("an unknown column", [{"z": 1}], 422, "unknown_column", "/inputs/0/z")
    yield rows("10 000 unknown columns", [{f"c{n}": 1 for n in range(10_000)}], 422, "unknown_column", None)
    yield rows("objects and lists", [{"x0": 1}, [1]], *shape, "/inputs/1")
    yield rows("1001 rows", [[1]] * 1001, 413, "too_large", None)
    yield rows("a model that is not there", [[1]], 404, "model_not_found", None, model="none")
    yield rows("a number as text", [{"bill_length_mm": "wide"}], *wrong, "/inputs/0/bill_length_mm", model="birds")
    yield told(
        "/predict", "a version as a number", {"model": "line", "version": 1, "inputs": [[1]]}, *wrong, "/version"
    )
    yield from evaluate_cases()
    yield from invocation_cases()


def evaluate_cases() -> Iterator[Case]:
    def data(name: str, status: int, code: str, pointer: str | None, **changes: Any) -> Case:
        rows = {"inputs": [[1], [2]], "targets": [1, 2]} | changes
        return told("/evaluate", name, {"model": "line", "data": rows}, status, code, pointer)

    wrong, shape = (422, "invalid_input"), (422, "shape_mismatch")
    yield data("no rows", *wrong, "/data/inputs", inputs=[], targets=[])
    yield data("too few targets", *shape, "/data/targets", targets=[1])
    yield data("text for numbers", *wrong, "/data/inputs/0/0", inputs=[["a"], ["b"]])
    yield data("targets that are objects", *wrong, "/data/targets/0", targets=[{}, {}])
    yield data("negative weights", *wrong, "/data/sample_weight/1", sample_weight=[1, -1])
    yield data("10 001 columns", 413, "too_large", None, inputs=[[0] * 10_001] * 2)
    yield data("1001 rows", 413, "too_large", None, inputs=[[1]] * 1001, targets=[1] * 1001)
    yield data("an unknown field", *wrong, "/data/more", more=1)
    nowhere = {"model": "line", "data": {"dataset": "none", "target": "y"}}
    yield told("/evaluate", "a dataset that is not there", nowhere, 404, "dataset_not_found")
    path = {"model": "line", "data": {"dataset": "../../etc/passwd", "target": "y"}}
    yield told("/evaluate", "a path as a dataset", path, *wrong, "/data/dataset")
    yield told("/evaluate", "no data", {"model": "line", "data": None}, *wrong, "/data")
    ragged = {"model": "line", "data": {"inputs": [[1], [2, 3]], "targets": [1, 2]}}
    yield told("/evaluate", "ragged rows", ragged, *shape, "/data/inputs/1")
    narrow = {"model": "line", "data": {"inputs": [[1, 2]], "targets": [1]}}
    yield told("/evaluate", "a wide row", narrow, *wrong, "/data/inputs")


def invocation_cases() -> Iterator[Case]:
    wrong, shape = (422, "invalid_input"), (422, "shape_mismatch")

    def rows(name: str, body: Any, status: int, code: str, pointer: str | None = None, model: str = "line") -> Case:
        return told(f"/invocations?model={model}", name, body, status, code, pointer)

    yield rows("no form", {}, *wrong, "")
    yield rows("no rows", {"instances": []}, *shape, "/instances")
    yield rows("ragged rows", {"instances": [[1], [1, 2]]}, *shape, "/instances/1")
    yield rows("text", {"instances": [["a"]]}, *wrong, "/instances/0/0")
    yield rows("a wide row", {"instances": [[0] * 10_000]}, *shape, "/instances/0")
    yield rows("1001 rows", {"instances": [[1]] * 1001}, 413, "too_large")
    yield rows("rows that are text", {"dataframe_records": ["a"]}, *wrong, "/dataframe_records/0")
    yield rows("an unknown column", {"dataframe_records": [{"z": 1}]}, 422, "unknown_column", None, "birds")
    yield rows("no data", {"dataframe_split": {"columns": ["a"]}}, *wrong, "/dataframe_split/data")
    yield rows("an unknown field", {"instances": [[1]], "more": 1}, *wrong, "/more")
    yield rows("a model that is not there", {"instances": [[1]]}, 404, "model_not_found", None, "none")
    yield told("/invocations?model=line", "two forms", {"instances": [[1]], "inputs": [[1]]}, *wrong, "")
    yield told("/invocations?model=line", "ragged columns", {"inputs": {"a": [1], "b": [1, 2]}}, *shape, "/inputs")
    split = {"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}
    yield told("/invocations?model=birds", "a split of another width", split, *shape, "/dataframe_split/data/0")


FRAME = pl.DataFrame({"bill_length_mm": [39.1, 46.2] * 50, "sex": ["male", None] * 50})


def written(method: str) -> bytes:
    content = io.BytesIO()
    getattr(FRAME, method)(content)
    return content.getvalue()


CSV, PARQUET, ARROW, STREAM = (written(f"write_{form}") for form in ("csv", "parquet", "ipc", "ipc_stream"))


def lying(content: bytes, place: int, form: str, value: int) -> bytes:
    """The bytes with another number at a place, which may count from the end."""
    place %= len(content)
    number = struct.pack(form, value)
    return content[:place] + number + content[place + len(number) :]


TABLES: dict[str, tuple[str, bytes]] = {
    "nothing": ("text/csv", b""),
    "no rows": ("text/csv", b"bill_length_mm,sex\n"),
    "ragged CSV": ("text/csv", b"bill_length_mm,sex\n1,a\n1,a,b\n"),
    "a quote without an end": ("text/csv", b'bill_length_mm,sex\n1,"a\n' + b"1,a\n" * 1000),
    "CSV in UTF-16": ("text/csv", CSV.decode().encode("utf-16")),
    "CSV in Latin-1": ("text/csv", "bill_length_mm,sex\n1,é\n".encode("latin-1")),
    "NULs": ("text/csv", b"bill_length_mm,sex\n1,a\0b\n"),
    "a column twice": ("text/csv", b"sex,sex\n1,2\n"),
    "10 001 columns": ("text/csv", ",".join(f"c{n}" for n in range(10_001)).encode() + b"\n" + b"," * 10_000 + b"\n"),
    "one line of 17 MiB": ("text/csv", b"bill_length_mm,sex\n" + b"x" * (17 * 2**20)),
    "CSV that is said to be Arrow": ("application/vnd.apache.arrow.stream", CSV),
    "half an Arrow file": ("application/vnd.apache.arrow.file", ARROW[: len(ARROW) // 2]),
    "an Arrow file without its end": ("application/vnd.apache.arrow.file", ARROW[:-10]),
    "an Arrow footer of 2 GiB": ("application/vnd.apache.arrow.file", lying(ARROW, -10, "<i", 2**31 - 1)),
    "an Arrow footer of less than nothing": ("application/vnd.apache.arrow.file", lying(ARROW, -10, "<i", -8)),
    "half an Arrow stream": ("application/vnd.apache.arrow.stream", STREAM[: len(STREAM) // 2]),
    "an Arrow message of 2 GiB": ("application/vnd.apache.arrow.stream", lying(STREAM, 4, "<i", 2**31 - 8)),
    "an Arrow message of less than nothing": ("application/vnd.apache.arrow.stream", lying(STREAM, 4, "<i", -8)),
    "an Arrow message that is none": ("application/vnd.apache.arrow.stream", lying(STREAM, 8, "<I", 2**31)),
    "nothing but Arrow's first bytes": ("application/vnd.apache.arrow.stream", b"\xff\xff\xff\xff"),
}
ONLY_DATASETS: dict[str, tuple[str, bytes]] = {
    "half a Parquet file": ("application/vnd.apache.parquet", PARQUET[: len(PARQUET) // 2]),
    "a Parquet file without its end": ("application/vnd.apache.parquet", PARQUET[:-4]),
    "a Parquet footer of 4 GiB": ("application/vnd.apache.parquet", lying(PARQUET, -8, "<I", 2**32 - 1)),
    "a Parquet footer of nothing": ("application/vnd.apache.parquet", lying(PARQUET, -8, "<I", 0)),
    "nothing but Parquet's first bytes": ("application/vnd.apache.parquet", b"PAR1PAR1"),
    "a web page": ("", b"<!doctype html><p>Hello"),
    "a zip": ("application/octet-stream", b"PK\x03\x04" + bytes(100)),
    "a JSON array": ("", b'[{"a": 1}]'),
    "NDJSON with a broken line": ("application/x-ndjson", b'{"a": 1}\n{"a": \n'),
    "NDJSON of lists": ("application/x-ndjson", b'{"a": 1}\n[1]\n'),
    "NDJSON with NaN": ("application/x-ndjson", b'{"a": NaN}\n'),
    "NDJSON with objects in cells": ("application/x-ndjson", b'{"a": {"b": 1}}\n'),
    "NDJSON of two kinds": ("application/x-ndjson", b'{"a": 1}\n{"a": "x"}\n'),
    "NDJSON, nested": ("application/x-ndjson", b'{"a":' + b"[" * 100_000),
    "a line without an end": ("application/x-ndjson", b'{"a": "' + b"x" * (17 * 2**20)),
    "half a gzip": ("application/gzip", gzip.compress(CSV)[:-12]),
    "a broken gzip": ("application/gzip", lying(gzip.compress(CSV), 12, "<I", 2**31 + 5)),
    "a gzip of another sum": ("application/gzip", lying(gzip.compress(CSV), -8, "<I", 7)),
    "gzip in gzip in gzip in gzip": (
        "application/gzip",
        gzip.compress(gzip.compress(gzip.compress(gzip.compress(CSV)))),
    ),
    "a bomb": ("application/gzip", gzip.compress(bytes(40 * 2**20))),
}


_WRONG, _LARGE = (422, "invalid_input", ""), (413, "too_large", None)
PROBLEMS_OF_TABLES: dict[str, tuple[int, str, str | None]] = {
    "no rows": _WRONG,
    "a column twice": _WRONG,
    "NDJSON with objects in cells": _WRONG,
    "NDJSON of two kinds": _WRONG,
    "10 001 columns": _LARGE,
    "a bomb": _LARGE,
}
"""Where it is not that the body can't be parsed."""


def table_cases() -> Iterator[Case]:
    for name, (media_type, content) in (TABLES | ONLY_DATASETS).items():
        headers = {"Content-Type": media_type} if media_type else {}
        problem = PROBLEMS_OF_TABLES.get(name, (400, "unparseable", None))
        yield Case(name, "/datasets/hostile", content, *problem, headers, "PUT")
        if name in TABLES:
            for path in ("/predict?model=birds", "/invocations?model=birds"):
                yield Case(name, path, content, *problem, headers)


# ---- versions


def archive(**sizes: int) -> bytes:
    """A tar.gz of files of zeros."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as packed:
        for name, size in sizes.items():
            info = tarfile.TarInfo(name)
            info.size = size
            packed.addfile(info, io.BytesIO(bytes(size)))
    return body.getvalue()


def zipped(**files: bytes) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return body.getvalue()


def version_cases() -> Iterator[Case]:
    wrong, not_parsed = (422, "invalid_input"), (400, "unparseable")
    good = zipped(**{"config.json": b"{}", "metrics.json": b"{}", "model.safetensors": b"", "history.jsonl": b""})
    for name, content, problem in (
        ("nothing", b"", not_parsed),
        ("a CSV", CSV, not_parsed),
        ("a pickle", b"\x80\x04\x95" + bytes(100), not_parsed),
        ("half a zip", good[: len(good) // 2], not_parsed),
        ("a zip of 60 000 entries", lying(good, -12, "<H", 60_000), wrong),
        ("a zip with an end beyond its own", lying(good, -6, "<I", 2**32 - 1), not_parsed),
        ("half a tar.gz", archive(**{"config.json": 10})[:-9], not_parsed),
        ("no version", good, wrong),
        ("an empty tar", archive(), wrong),
        ("a file too many", zipped(**{"model.pkl": b""}), wrong),
        ("a path out of the archive", zipped(**{"../../config.json": b"{}"}), wrong),
        ("a path from the root", zipped(**{"/etc/cron.d/config.json": b"{}"}), wrong),
        ("a config of 300 MB", archive(**{"config.json": 300 * 2**20}), (413, "too_large")),
        ("metrics that are a bomb", zipped(**{"metrics.json": bytes(40 * 2**20)}), (413, "too_large")),
        ("gzip in gzip", gzip.compress(archive(**{"config.json": 10})), not_parsed),
    ):
        yield Case(name, "/models/hostile/versions", content, *problem)
    yield Case("a path as a name", "/models/..%2f..%2fetc/versions", good, 404, "not_found")


# ---- v2


def v2_cases() -> Iterator[Case]:
    path, wrong, shape = "/v2/models/line/infer", (422, "invalid_input"), (422, "shape_mismatch")
    good = {"name": "inputs", "shape": [1, 1], "datatype": "FP32", "data": [1]}

    def tensor(title: str, status: int, code: str, pointer: str | None, **changes: Any) -> Case:
        tensor = {key: value for key, value in (good | changes).items() if value is not ...}
        return told(path, title, {"inputs": [tensor]}, status, code, pointer)

    def binary(name: str, blob: bytes, status: int, code: str, pointer: str | None, **changes: Any) -> Case:
        tensor = {"name": "inputs", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": len(blob)}}
        head = json.dumps({"inputs": [tensor | changes]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return Case(name, path, head + blob, status, code, pointer, headers)

    yield tensor("a negative shape", *wrong, "/inputs/0/shape/0", shape=[-1, 1])
    yield tensor("a shape of text", *wrong, "/inputs/0/shape/0", shape=["1", 1])
    yield tensor("no shape", *wrong, "/inputs/0/shape", shape=[])
    yield tensor("a shape of nine", *wrong, "/inputs/0/shape", shape=[1] * 9)
    yield tensor("a shape beyond all bounds", *wrong, "/inputs/0/shape/0", shape=[10**30, 1])
    yield tensor("a huge shape", 413, "too_large", None, shape=[2**62, 2**62])
    yield tensor("a wide shape", *shape, "/inputs/0/data", shape=[1, 2**62])
    yield tensor("a huge shape of nothing", *shape, None, shape=[0, 2**62, 2**62], data=[])
    yield tensor("a shape of nothing", *shape, None, shape=[0, 1], data=[])
    yield tensor("data of another length", *shape, "/inputs/0/data", data=[1, 2])
    yield tensor("ragged data", *shape, "/inputs/0/data", shape=[2, 1], data=[[1], [1, 2]])
    yield tensor("text for numbers", *wrong, "/inputs/0/data", data=["a"])
    yield tensor("no data", *wrong, "/inputs/0", data=...)
    yield tensor("an unknown datatype", *wrong, "/inputs/0/datatype", datatype="FP4")
    yield tensor("numbers out of range", *wrong, "/inputs/0/data", datatype="INT8", data=[300])
    yield tensor("an endless number", 400, "unparseable", None, data=[10**400])
    yield tensor("another input", 422, "unknown_column", "/inputs/0/name", name="x")
    yield tensor("shared memory", *wrong, "/inputs/0/parameters", parameters={"shared_memory_region": "r"})
    yield told(path, "no inputs", {"inputs": []}, *wrong, "/inputs")
    yield told(path, "an input twice", {"inputs": [good, good]}, *wrong, "/inputs/1/name")
    yield told(path, "10 000 inputs", {"inputs": [good] * 10_000}, *wrong, "/inputs/1/name")
    yield told(
        path, "an output that is not there", {"inputs": [good], "outputs": [{"name": "x"}]}, *wrong, "/outputs/0/name"
    )
    yield binary("too few bytes", bytes(3), *shape, "/inputs/0")
    yield binary("a size of more than there is", bytes(4), *shape, None, parameters={"binary_data_size": 2**40})
    yield binary("a size of less than nothing", bytes(4), *wrong, None, parameters={"binary_data_size": -4})
    yield binary("bytes of nobody", bytes(8), *wrong, "/inputs", parameters={"binary_data_size": 4})
    yield binary("a huge shape of bytes", bytes(4), *shape, "/inputs/0", shape=[1, 2**62])
    yield binary("a text of 4 GiB", struct.pack("<I", 2**32 - 1) + b"a", *wrong, "/inputs/0", datatype="BYTES")
    yield binary("half a length", b"\1\0", *wrong, "/inputs/0", datatype="BYTES")
    yield binary("a text in Latin-1", struct.pack("<I", 1) + b"\xe9", *wrong, "/inputs/0", datatype="BYTES")
    for length in ("-1", "1e3", "99999999999999999999999", "four", "5000"):
        content = json.dumps({"inputs": [good]}).encode()
        header = {"Inference-Header-Content-Length": length}
        yield Case(f"a header of length {length}", path, content, 400, "unparseable", None, header)
    packed = gzip.compress(json.dumps({"inputs": [good]}).encode())
    for name, encoding, content, status, code in (
        ("half a gzip", "gzip", packed[:-9], 400, "unparseable"),
        ("no gzip", "gzip", b"{}", 400, "unparseable"),
        ("no deflate", "deflate", b"\x78\x9c\xff\xff", 400, "unparseable"),
        ("a bomb", "gzip", gzip.compress(bytes(64 * 2**20)), 413, "too_large"),
        ("another encoding", "br", packed, 415, "unsupported_media_type"),
    ):
        yield Case(name, path, content, status, code, None, {"Content-Encoding": encoding})


CASES = {
    "json": json_cases,
    "nested": nested_cases,
    "train": train_cases,
    "predict": predict_cases,
    "tables": table_cases,
    "v2": v2_cases,
    "versions": version_cases,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("hostile"), settings=SETTINGS) as service:
        for body in (SEED, RECORDS):
            job = httpx.post(f"{service.url}/train", json=body, headers={"Prefer": "wait=60"}, timeout=90).json()
            assert job["state"] == "succeeded"
        yield service


@pytest.mark.parametrize("kind", CASES)
def test_every_body_gets_its_problem(service: Service, kind: str) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        before, expected = max_bytes(service), predictions(client)
        for case in CASES[kind]():
            started = time.monotonic()
            answer = client.request(case.method, case.path, content=case.body, headers=case.headers)
            name = f"{case.method} {case.path}: {case.name}"
            assert time.monotonic() - started < MAX_SECONDS, name
            assert answer.headers["content-type"] == "application/problem+json", (name, answer.text)
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (case.status, case.code), (name, problem)
            pointers = [fault["pointer"] for fault in problem.get("errors", ())]
            assert case.pointer is None or case.pointer in pointers, (name, problem)
        assert max_bytes(service) - before < MAX_GROWTH_BYTES
        assert predictions(client) == expected
        assert "request failed" not in service.log.read_text()


def predictions(client: httpx.Client) -> Any:
    answer = client.post("/predict", json={"model": "line", "inputs": [[4], [11]]})
    return answer.raise_for_status().json()["predictions"]


def test_of_keys_that_come_twice_the_last_counts(service: Service) -> None:
    """As in other readers of JSON; what is checked is what is used."""
    with httpx.Client(base_url=service.url) as client:
        twice = b'{"model": "none", "inputs": [[4]], "model": "line", "inputs": [["a"]], "inputs": [[4], [11]]}'
        answer = client.post("/predict", content=twice, headers=JSON)
        assert answer.json()["predictions"] == predictions(client)


def test_a_body_may_be_as_large_as_the_limits_allow(service: Service) -> None:
    """The table is not so easy to pass because everything is refused: just within the limits, there is an answer."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        rows = [[number] for number in range(1000)]
        assert len(client.post("/predict", json={"model": "line", "inputs": rows}).json()["predictions"]) == 1000
        wide = ",".join(f"c{number}" for number in range(2000)) + "\n" + ",".join(["1"] * 2000) + "\n"
        answer = client.put("/datasets/wide", content=wide, headers={"Content-Type": "text/csv"})
        assert answer.status_code == 201
        assert len(answer.json()["columns"]) == 2000
