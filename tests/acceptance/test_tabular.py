"""Tables through `POST /predict` of a running service."""

import gzip
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from scripts.service import Service
from tests.published import COLUMNS, FEATURES, columns_model, numbers_model, publish
from tests.samples import untrained

NUMBERS, SPECIES, SIZES, WEATHER = "table-numbers", "table-species", "table-sizes", "table-weather"
CSV, ARROW, FILE = "text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
TABLE = COLUMNS.select(FEATURES)
ROWS_PER_BLOCK = 50_000


@pytest.fixture(scope="module", autouse=True)
def published(service: Service) -> None:
    models = service.root / "models"
    publish(models, NUMBERS, numbers_model())
    publish(models, SPECIES, columns_model())
    publish(models, SIZES, columns_model(["y", "z"]))
    publish(models, WEATHER, columns_model(["wet", "cold"]))


def post(
    service: Service, model: str, body: Any, content_type: str = CSV, accept: str = "*/*", **headers: str
) -> httpx.Response:
    return httpx.post(
        f"{service.url}/predict",
        params={"model": model},
        content=body,
        headers={"Content-Type": content_type, "Accept": accept, **headers},
        timeout=120,
    )


def said(service: Service, model: str, inputs: list[Any]) -> dict[str, Any]:
    """What `/predict` says to JSON."""
    answer = httpx.post(f"{service.url}/predict", json={"model": model, "inputs": inputs}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def stream_of(table: pl.DataFrame) -> bytes:
    body = io.BytesIO()
    table.write_ipc_stream(body)
    return body.getvalue()


def file_of(table: pl.DataFrame) -> bytes:
    body = io.BytesIO()
    table.write_ipc(body)
    return body.getvalue()


def read(answer: httpx.Response) -> pl.DataFrame:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("text/csv"):
        return pl.read_csv(answer.content)
    assert answer.headers["content-type"] == ARROW
    return pl.read_ipc_stream(answer.content)


@pytest.mark.parametrize("accept", [CSV, ARROW])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (CSV, TABLE.write_csv().encode()),
        (CSV, gzip.compress(TABLE.write_csv().encode())),
        ("text/csv; charset=utf-8", TABLE.write_csv(separator=";", decimal_comma=True).encode()),
        ("text/tab-separated-values", TABLE.write_csv(separator="\t").encode()),
        (ARROW, stream_of(TABLE)),
        (FILE, file_of(TABLE)),
        (CSV, COLUMNS.select(reversed(COLUMNS.columns)).write_csv().encode()),  # with targets, in another order
    ],
)
def test_every_form_gives_the_same(service: Service, content_type: str, body: bytes, accept: str) -> None:
    found = read(post(service, SPECIES, body, content_type, accept))
    expected = said(service, SPECIES, TABLE.to_dicts())
    assert found.columns == ["prediction", *(f"probability_{name}" for name in expected["classes"])]
    assert found["prediction"].to_list() == expected["predictions"]
    np.testing.assert_allclose(found[:, 1:].to_numpy(), expected["probabilities"], rtol=1e-6)


def test_the_answer_is_in_the_form_of_the_body(service: Service) -> None:
    assert post(service, SPECIES, TABLE.write_csv()).headers["content-type"].startswith("text/csv")
    assert post(service, SPECIES, stream_of(TABLE), ARROW).headers["content-type"] == ARROW
    assert (
        post(service, SPECIES, TABLE.write_csv(), accept="text/html, */*;q=0.1").headers["content-type"].startswith(CSV)
    )


@pytest.mark.parametrize("model", [SPECIES, SIZES, WEATHER])
def test_json_is_what_predict_says(service: Service, model: str) -> None:
    answer = post(service, model, stream_of(TABLE), ARROW, "application/json").json()
    expected = said(service, model, TABLE.to_dicts())
    assert answer.keys() == expected.keys()
    np.testing.assert_equal(answer["predictions"], expected["predictions"])
    np.testing.assert_allclose(answer.get("probabilities", 0), expected.get("probabilities", 0), rtol=1e-6)


def test_invocations_in_csv(service: Service) -> None:
    answer = httpx.post(
        f"{service.url}/invocations?model={SPECIES}", content=TABLE.write_csv(), headers={"Content-Type": CSV}
    )
    assert answer.json() == {"predictions": said(service, SPECIES, TABLE.to_dicts())["predictions"]}


def test_several_targets(service: Service) -> None:
    assert read(post(service, SIZES, TABLE.write_csv())).columns == ["prediction_y", "prediction_z"]
    weather = read(post(service, WEATHER, TABLE.write_csv(), accept=ARROW))
    assert weather.schema == {
        "prediction_wet": pl.Boolean,
        "prediction_cold": pl.Boolean,
        "probability_wet": pl.Float64,
        "probability_cold": pl.Float64,
    }


def test_plain_numbers(service: Service) -> None:
    """Whatever the columns are called, they are taken in order; a body without a header says so."""
    expected = said(service, NUMBERS, [[1, 2], [3, 4]])["predictions"]
    for body, content_type in (
        ("a,b\n1,2\n3,4\n", CSV),
        ("x1,x0\n2,1\n4,3\n", CSV),
        ("1,2\n3,4\n", "text/csv; header=absent"),
    ):
        np.testing.assert_allclose(read(post(service, NUMBERS, body, content_type))["prediction"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("separator", "pack"), [(",", bytes), (";", bytes), (",", gzip.compress)], ids=["comma", "semicolon", "gzip"]
)
def test_rows_without_a_header_have_the_model_s_columns_in_order(
    service: Service, separator: str, pack: Callable[[bytes], bytes]
) -> None:
    body = TABLE.write_csv(include_header=False, separator=separator, decimal_comma=separator == ";").encode()
    found = read(post(service, SPECIES, pack(body), "text/csv; header=absent"))
    assert found["prediction"].to_list() == said(service, SPECIES, TABLE.to_dicts())["predictions"]


def test_rows_without_a_header_may_be_as_wide_as_those_of_training(service: Service) -> None:
    """Columns that a file without a header was learned from have the same names in another such file."""
    table = COLUMNS.select("y", "size", "z", "count").rename({"y": "x0", "size": "x1", "z": "x2", "count": "x3"})
    publish(service.root / "models", "table-headerless", untrained(table, "x0", data={"features": ["x1", "x3"]}))
    expected = read(post(service, "table-headerless", table.write_csv()))
    for rows in (table, table.select("x1", "x3")):
        body = rows.write_csv(include_header=False)
        assert read(post(service, "table-headerless", body, "text/csv; header=absent")).equals(expected)
    answer = post(service, "table-headerless", "1,2,3\n", "text/csv; header=absent")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "the table has 3 columns; the model takes 2: x1, x3"


def test_gaps_are_missing_values(service: Service) -> None:
    found = read(post(service, SPECIES, "color,kept,count,size\nNA,true,1,\n,no,2,nan\nred,0,3,1.5\n"))
    rows = [
        {"kept": True, "count": 1},
        {"kept": False, "count": 2},
        {"color": "red", "kept": False, "count": 3, "size": 1.5},
    ]
    assert found["prediction"].to_list() == said(service, SPECIES, rows)["predictions"]
    fewer = read(post(service, SPECIES, "kept,count\ntrue,1\n"))
    assert fewer["prediction"].to_list() == said(service, SPECIES, rows[:1])["predictions"]


@pytest.mark.parametrize("model", [SPECIES, SIZES, WEATHER])
def test_a_row_beyond_float32_has_no_prediction(service: Service, model: str) -> None:
    """By any protocol, and its neighbours have theirs."""
    table = pl.DataFrame({"size": [1.0, 1e300], "count": [1, 1], "kept": [True, True], "color": ["red", "red"]})
    json = said(service, model, table.to_dicts())
    assert json["predictions"][0] is not None
    assert json["predictions"][1] in (None, [None, None])
    for accept in (CSV, ARROW):
        found = read(post(service, model, table.write_csv(), accept=accept))
        assert None not in found.row(0)
        assert set(found.row(1)) == {None}
    inputs: list[dict[str, Any]] = [
        {"name": name, "datatype": datatype, "shape": [2], "data": table[name].to_list()}
        for name, datatype in (("size", "FP64"), ("count", "INT64"), ("kept", "BOOL"), ("color", "BYTES"))
    ]
    outputs = httpx.post(f"{service.url}/v2/models/{model}/infer", json={"inputs": inputs}, timeout=60).json()[
        "outputs"
    ]
    for output in outputs if model != WEATHER else outputs[1:]:  # a flag is true or false
        start = output["shape"][1]
        assert not set(output["data"][:start]) & {None, ""}
        assert set(output["data"][start:]) <= {None, ""}


@pytest.mark.parametrize(
    ("model", "body", "content_type", "status", "code"),
    [
        (SPECIES, "size,count,kept,color\n1,2,true,red\nx,2,true,red\n", CSV, 422, "invalid_input"),
        (SPECIES, "size,count,kept,color\n1,2,maybe,red\n", CSV, 422, "invalid_input"),
        (SPECIES, "species\nAdelie\n", CSV, 422, "invalid_input"),
        (SPECIES, "size,count,kept,colour\n1,2,true,red\n", CSV, 422, "unknown_column"),
        (SPECIES, "size,count,kept,color\n", CSV, 422, "invalid_input"),
        (SPECIES, "size,count,kept,color\n1,2,true\n", CSV, 400, "unparseable"),
        (SPECIES, "", CSV, 400, "unparseable"),
        (SPECIES, "size", ARROW, 400, "unparseable"),
        (SPECIES, stream_of(TABLE)[:-300], ARROW, 400, "unparseable"),
        (SPECIES, stream_of(TABLE.with_columns(size=pl.lit("big"))), ARROW, 422, "invalid_input"),
        (NUMBERS, "a,b,c\n1,2,3\n", CSV, 422, "shape_mismatch"),
        ("nope", "a\n1\n", CSV, 404, "model_not_found"),
        ("NO", "a\n1\n", CSV, 422, "invalid_input"),
        (SPECIES, "{}", "application/x-ndjson", 415, "unsupported_media_type"),
    ],
)
def test_errors_before_the_first_byte_are_problems(
    service: Service, model: str, body: Any, content_type: str, status: int, code: str
) -> None:
    answer = post(service, model, body, content_type)
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_fault_names_the_row(service: Service) -> None:
    answer = post(service, SPECIES, "size,count,kept,color\n1,2,true,red\nbig,2,true,red\n").json()
    assert answer["errors"] == [{"pointer": "/1/size", "detail": "'size' takes numbers, not 'big'"}]


def test_an_error_after_the_first_byte_cuts_the_answer_short(service: Service) -> None:
    rows = "1.5,2,true,red\n" * 400_000
    with pytest.raises(httpx.RemoteProtocolError):
        post(service, SPECIES, f"size,count,kept,color\n{rows}big,2,true,red\n")
    assert "'size' takes numbers, not 'big'" in service.log_end()
    assert "/400000/size" in service.log_end()


@pytest.mark.skipif(sys.platform != "linux", reason="that a process tells which files it has open is Linux's")
def test_an_answer_that_is_cut_short_leaves_no_file_open(service: Service) -> None:
    rows = "1.5,2,true,red\n" * 400_000
    with pytest.raises(httpx.RemoteProtocolError):
        post(service, SPECIES, f"size,count,kept,color\n{rows}big,2,true,red\n", accept="application/json")
    assert service.process
    files = Path(f"/proc/{service.process.pid}/fd").iterdir()
    assert not [file for file in files if file.resolve().is_relative_to(service.root / "data" / "datasets")]


def numbered_rows(num_blocks: int) -> Iterator[bytes]:
    yield b"x0,x1\n"
    for block in range(num_blocks):
        yield b"".join(
            b"%d.000000,%d.500000000000\n" % (block * ROWS_PER_BLOCK + row, row) for row in range(ROWS_PER_BLOCK)
        )


def peak_of(service: Service, num_blocks: int) -> int:
    """The most memory, in megabytes, that the service had while a table passed through it, which came out whole."""
    assert service.process
    process = Path(f"/proc/{service.process.pid}")
    (process / "clear_refs").write_text("5")  # the peak begins anew
    url, num_lines, last = f"{service.url}/predict?model={NUMBERS}", 0, b""
    body, headers = numbered_rows(num_blocks), {"Content-Type": CSV}
    with httpx.stream("POST", url, content=body, headers=headers, timeout=120) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_bytes():
            num_lines += chunk.count(b"\n")
            last = (last + chunk)[-100:]
    num_rows = num_blocks * ROWS_PER_BLOCK
    assert num_lines == num_rows + 1
    expected = said(service, NUMBERS, [[num_rows - 1, ROWS_PER_BLOCK - 0.5]])["predictions"]
    np.testing.assert_allclose(float(last.split()[-1]), expected, rtol=1e-4)
    status = (process / "status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) // 1024


def test_a_large_table_passes_through(service: Service) -> None:
    """Rows keep their order, and 150 more megabytes of them take no more memory, which is little at any size."""
    least = peak_of(service, 1)
    small, large = peak_of(service, 30), peak_of(service, 120)
    assert large - small < 50
    assert large - least < 150
