"""Tensors of the Open Inference Protocol on the wire."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from app.errors import InvalidInput
from app.serving.tensors import DTYPES, from_bytes, from_json, length_prefixed, to_bytes

SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@pytest.mark.parametrize("datatype", DTYPES)
@given(data=st.data())
def test_numbers_survive_both_forms(datatype: str, data: st.DataObject) -> None:
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else None
    array = data.draw(arrays.arrays(DTYPES[datatype], SHAPES, elements=elements))
    binary = from_bytes(datatype, array.shape, memoryview(to_bytes(array)), "/inputs/0")
    np.testing.assert_array_equal(binary, array)
    for form in (array.tolist(), array.ravel().tolist()):
        np.testing.assert_array_equal(from_json(datatype, array.shape, form, "/inputs/0/data"), array)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_text_is_written_as_triton_writes_it(texts: list[str]) -> None:
    packed = to_bytes(map(length_prefixed, texts))
    assert deserialize_bytes_tensor(packed).tolist() == [text.encode() for text in texts]
    if texts:
        assert packed == serialize_byte_tensor(np.array(texts, dtype=object)).item()
    found = from_bytes("BYTES", [len(texts)], memoryview(packed), "/inputs/0")
    assert isinstance(found, pl.Series)
    assert found.to_list() == texts


def test_null_is_missing() -> None:
    np.testing.assert_array_equal(from_json("FP32", [3], [1, None, True], "/"), np.array([1, np.nan, 1], np.float32))
    texts = from_json("BYTES", [2, 1], [["a"], [None]], "/")
    assert isinstance(texts, pl.Series)
    assert texts.to_list() == ["a", None]


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2, 2], b"\0" * 15),
        ("FP32", [2, 2], b"\0" * 17),
        ("FP64", [2**62, 2**62], b"\0" * 8),
        ("INT8", [0, 2], b"\0"),
        ("FP32", [0, 2**62, 2**62], b""),
        ("BOOL", [0, 2**62, 2**62], b""),
        ("BYTES", [1], b"\xff\xff\xff\xffabc"),
        ("BYTES", [1], b"\x04\0\0\0abc"),
        ("BYTES", [1], b"\x03\0"),
        ("BYTES", [1], b""),
        ("BYTES", [1], b"\0\0\0\0\0\0\0\0"),
        ("BYTES", [2**62], b"\0\0\0\0"),
        ("BYTES", [1], b"\x01\0\0\0\xff"),
    ],
)
def test_bytes_that_lie_are_refused(datatype: str, shape: list[int], data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        from_bytes(datatype, shape, memoryview(data), "/inputs/3")
    assert caught.value.faults[0].pointer == "/inputs/3"


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], "ab"),
        ("FP32", [2], [1]),
        ("FP32", [2, 2], [[1, 2], [3]]),
        ("FP32", [2, 2], [[1], [2, 3, 4]]),
        ("FP32", [2, 2], [[1, 2], 3]),
        ("FP32", [4], [[1, 2], [3, 4]]),
        ("FP32", [1], ["1.5"]),
        ("FP32", [1], [1e300]),
        ("FP64", [1], [10**400]),
        ("INT64", [1], [1.5]),
        ("INT64", [1], [2**63]),
        ("INT8", [1], [True]),
        ("UINT8", [1], [-1]),
        ("BOOL", [1], [1]),
        ("BYTES", [1], [5]),
        ("BYTES", [2], ["x" * 1000, {}]),
        ("FP32", [2**62], [1]),
        ("FP32", [0, 2**62, 2**62], []),
    ],
)
def test_json_that_does_not_fit_is_refused(datatype: str, shape: list[int], data: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        from_json(datatype, shape, data, "/inputs/3/data")
    assert caught.value.faults[0].pointer == "/inputs/3/data"
