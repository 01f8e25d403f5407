"""Small requests share a pass and get what the general way would have given them."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from app.errors import InvalidInput, TooLarge, Unparseable
from app.serving import json_rows
from app.serving.dense import Dense
from app.serving.encode import encode_rows
from app.serving.served_model import ServedModel
from app.serving.small import SmallRequests
from app.serving.statistics import Request, Statistics
from app.storage.counters import Counters
from tests.samples import untrained

FRAME = pl.DataFrame(
    {
        "a": [0.0, 1.0, 5.0],
        "b": [3.0, 1.0, 2.0],
        "y": [0.25, 1.5, 2.5],
        "z": [9.0, 7.5, 1.0],
        "k": ["u", "v", "w"],
        "f": [True, False, True],
    }
)
ROWS = [[1, 2.5], [-3, True], [1e300, 0]]


def served(target: str | list[str] = "y", activation: str = "relu", **spec: Any) -> ServedModel:
    network = {"hidden_features": [4], "activation": activation}
    data = {"features": ["a", "b"]}
    model = untrained(FRAME, target, data=data, network=network, init={"weight": "normal"}, validation=None, **spec)
    return ServedModel("m", "1", model, 0, Dense.of(model))


@pytest.mark.parametrize("target", ["y", ["y", "z"], "k", "f"])
@pytest.mark.parametrize(
    "features",
    [{}, {"features": None}, {"features": {"standardize": False}}, {"features": {"standardize": "target"}}],
)
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "silu", "identity"])
def test_values_are_those_of_the_network(target: Any, features: Any, activation: str) -> None:
    model = served(target, activation, **features)
    assert model.dense
    packed = model.dense.pack(ROWS[:2])
    assert packed
    encoded = encode_rows(model.model.features, model.model.signature, ROWS[:2])
    np.testing.assert_allclose(model.dense.predict(packed), model.model.predict(encoded).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "rows", [[[1]], [[1, 2, 3]], [[1, None]], [[1, "2"]], ["ab"], [{"a": 1, "b": 2}], [5], [[1, [2]]]]
)
def test_what_is_no_row_of_numbers_takes_the_general_way(rows: list[Any]) -> None:
    model = served()
    assert model.dense
    assert model.dense.pack(rows) is None


def test_other_networks_take_the_general_way() -> None:
    assert served(activation="gelu").dense is None


def test_requests_that_are_in_flight_together_share_passes_and_get_their_own_rows(tmp_path: Path) -> None:
    model, counters = served("k"), Counters(tmp_path)
    statistics = Statistics(counters)
    small = SmallRequests(statistics)
    requests = [[[index, row] for row in range(1 + 7 * index % 60)] for index in range(60)]

    async def main() -> list[Any]:
        futures = [small.answer(Request(model), rows) for rows in requests]
        assert all(futures)
        futures[3].cancel()  # type: ignore[union-attr]
        return await asyncio.gather(*[future for future in futures if future], return_exceptions=True)

    answers = asyncio.run(main())
    assert isinstance(answers.pop(3), asyncio.CancelledError)
    for rows, said in zip(requests[:3] + requests[4:], answers, strict=True):
        encoded = encode_rows(model.model.features, model.model.signature, rows)
        expected = model.answer(model.model.predict(encoded))
        assert said["predictions"] == expected["predictions"]
        np.testing.assert_allclose(said["probabilities"], expected["probabilities"], atol=1e-6)
    statistics.settle()
    counts = counters.read().counts
    assert counts["gradserve_inference", "m", "1", "exec_count"] == 2  # 1 800 rows; no pass has more than 1 024
    assert counts["gradserve_inference", "m", "1", "count"] == sum(map(len, requests))
    counters.close()


def test_those_who_come_while_passes_are_waited_for_may_take_the_last_one(tmp_path: Path) -> None:
    model, counters = served(), Counters(tmp_path)
    small = SmallRequests(Statistics(counters))
    faults = list[Any]()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        futures = [small.answer(Request(model), [[1, 2]] * 64) for _ in range(50)]  # more than three passes
        loop.call_soon(lambda: futures.append(small.answer(Request(model), [[1, 2]])))
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(futures) == 51
        assert all(future and future.done() for future in futures)

    asyncio.run(main())
    assert not faults
    counters.close()


def test_a_request_that_is_alone_waits_for_nobody_once_the_one_before_was(tmp_path: Path) -> None:
    model, counters = served(), Counters(tmp_path)
    small = SmallRequests(Statistics(counters))

    async def main() -> list[bool]:
        at_once = []
        for together in (1, 1, 2, 2, 1):
            futures = [small.answer(Request(model), [[1, 2]]) for _ in range(together)]
            at_once.append(all(future and future.done() for future in futures))
            await asyncio.gather(*[future for future in futures if future])
            await asyncio.sleep(0)  # the turn is over
        return at_once

    assert asyncio.run(main()) == [False, True, True, False, False]
    counters.close()


# ---- large bodies, part by part


def encoded_in_parts(model: ServedModel, body: bytes, max_rows: int = 10**6) -> torch.Tensor:
    found = json_rows.cut(body)
    assert found
    return json_rows.encode_parts(model, found.rows, max_rows)


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"m","inputs":[[1,2],[3,4],[5,6.5]]}',
        b'{ "inputs" : [ [1, 2] , [3, 4] , [5, 6.5] ] , "model": "m" }',
        b'{"inputs":[[1,2],{"a":3,"b":4},[5,6.5]],"model":"m"}',
        b'{"inputs":[[1,2],[3,4],[5.0,650e-2]],"model":"a\\"inputs\\":[["}',
    ],
)
def test_parts_give_what_the_whole_does(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(json_rows, "PART_BYTES", 1)
    model = served()
    expected = encode_rows(model.model.features, model.model.signature, [[1, 2], [3, 4], [5, 6.5]])
    assert torch.equal(encoded_in_parts(model, text), expected)


def test_texts_that_look_like_the_end_of_a_row_are_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "PART_BYTES", 1)
    found = untrained(FRAME, data={"features": ["a", "k"]}, validation=None)
    model = ServedModel("m", "1", found, 0)
    rows = [{"a": 1, "k": "x},"}, {"a": 2, "k": "u"}]
    body = b'{"inputs":[{"a":1,"k":"x},"},{"a":2,"k":"u"}],"model":"m"}'
    assert torch.equal(encoded_in_parts(model, body), encode_rows(found.features, found.signature, rows))


def test_the_rows_are_counted_where_it_takes_a_parse_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "PART_BYTES", 1)
    model = ServedModel("m", "1", untrained(FRAME, data={"features": ["a", "k"]}, validation=None), 0)
    body = b'{"inputs":[{"a":1,"k":"x},"},{"a":2,"k":"u"}],"model":"m"}'
    assert len(encoded_in_parts(model, body, max_rows=2)) == 2
    with pytest.raises(TooLarge, match="more than the 1 rows"):
        encoded_in_parts(model, body, max_rows=1)


def test_faults_are_where_they_are_in_the_whole_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "PART_BYTES", 1)
    with pytest.raises(InvalidInput) as caught:
        encoded_in_parts(served(), b'{"inputs":[[1,2],[3,4],[5,"x"]],"model":"m"}')
    assert [fault.pointer for fault in caught.value.faults] == ["/inputs/2/1"]


@pytest.mark.parametrize("rows", [b"[1,[2]]", b"[[1],2],[3,4]", b"[[1,2],[]],[3,4]"])
def test_lists_in_rows_are_no_numbers(rows: bytes) -> None:
    """As many numbers as there should be, in lists as long as they should be, are not enough."""
    with pytest.raises(InvalidInput):
        encoded_in_parts(served(), b'{"inputs":[' + rows + b'],"model":"m"}')


@pytest.mark.parametrize("rows", [b"[1,2],", b"[1,2],[3", b"[1,2] [3,4]", b"[01,2]", b"[1,2],[3,NaN]"])
def test_what_is_no_json_is_told(monkeypatch: pytest.MonkeyPatch, rows: bytes) -> None:
    monkeypatch.setattr(json_rows, "PART_BYTES", 1)
    with pytest.raises(Unparseable):
        encoded_in_parts(served(), b'{"inputs":[' + rows + b'],"model":"m"}')


def test_more_rows_than_may_be_are_refused_before_the_rest_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "PART_BYTES", 1)
    with pytest.raises(TooLarge):
        encoded_in_parts(served(), b'{"inputs":[[1,2],[3,4],[5,"x"]],"model":"m"}', max_rows=1)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model":"m"}', b'{"x":{"inputs":[[1]]}}', b'{"inputs":[[1]],"v":"]"}'])
def test_what_is_not_found_at_once_is_left_to_a_full_parse(body: bytes) -> None:
    assert json_rows.cut(body) is None
