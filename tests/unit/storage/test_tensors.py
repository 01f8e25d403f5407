"""Tensors on disk: the safetensors format, bit for bit, whole or not there."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from app.storage.tensors import DTYPES, read_tensors, write_tensors

ALL_TYPES = {
    "float64": torch.tensor([[1.5, float("nan")], [float("-inf"), -0.0]], dtype=torch.float64),
    "float32": torch.tensor([1e-45, 3.4e38, 0.1]),
    "float16": torch.tensor([0.1, 6e4], dtype=torch.float16),
    "int64": torch.tensor(-(2**63)),
    "int32": torch.tensor([2**31 - 1, -1, 0], dtype=torch.int32),
    "uint8": torch.arange(256, dtype=torch.uint8)[:251],
    "bool": torch.tensor([True, False, True]),
}


def same_bits(one: Tensor, other: Tensor) -> bool:
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)


def test_every_type_has_a_name() -> None:
    assert set(ALL_TYPES) == set(DTYPES)


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    write_tensors(path, ALL_TYPES, {"position": '{"epoch": 3}', "größe": "✓"})
    found, metadata = read_tensors(path)
    assert metadata == {"position": '{"epoch": 3}', "größe": "✓"}
    assert found.keys() == ALL_TYPES.keys()
    for name, value in ALL_TYPES.items():
        assert same_bits(found[name], value), name


def test_others_read_it(tmp_path: Path) -> None:
    write_tensors(tmp_path / "tensors", ALL_TYPES)
    with safe_open(tmp_path / "tensors", framework="pt") as opened:
        assert set(opened.keys()) == set(ALL_TYPES)
    for name, value in load_file(tmp_path / "tensors").items():
        assert same_bits(value, ALL_TYPES[name]), name


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 1, 3)])
def test_every_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bool, torch.int64):
        value = torch.ones(shape, dtype=dtype)
        write_tensors(tmp_path / "tensors", {"a": value, "b": torch.ones(1)})
        assert same_bits(read_tensors(tmp_path / "tensors")[0]["a"], value)


def test_nothing_at_all(tmp_path: Path) -> None:
    write_tensors(tmp_path / "tensors", {})
    assert read_tensors(tmp_path / "tensors") == ({}, {})


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    views = {"transposed": base.T, "column": base[:, 1], "expanded": torch.ones(1).expand(3), "same": base}
    write_tensors(tmp_path / "tensors", views)
    found = read_tensors(tmp_path / "tensors")[0]
    for name, value in views.items():
        assert same_bits(found[name], value.detach()), name


@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.integers(0, 9)), max_size=6))
def test_sizes_that_leave_others_unaligned(parts: list[tuple[str, int]]) -> None:
    tensors = {f"{i}": torch.arange(size).to(getattr(torch, dtype)) for i, (dtype, size) in enumerate(parts)}
    with TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "tensors", tensors)
        found = read_tensors(Path(folder) / "tensors")[0]
        assert all(same_bits(found[name], value) for name, value in tensors.items())


def test_what_was_read_can_be_changed_and_the_file_stays(tmp_path: Path) -> None:
    write_tensors(tmp_path / "tensors", {"a": torch.ones(3)})
    read_tensors(tmp_path / "tensors")[0]["a"].add_(1)
    assert read_tensors(tmp_path / "tensors")[0]["a"].tolist() == [1, 1, 1]


def test_the_file_can_be_replaced_while_it_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    write_tensors(path, {"a": torch.ones(3)})
    old = read_tensors(path)[0]
    write_tensors(path, {name: value + 1 for name, value in old.items()})
    assert old["a"].tolist() == [1, 1, 1]
    assert read_tensors(path)[0]["a"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tensors"
    write_tensors(path, {"a": torch.ones(3)})

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[fails], disk_full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(path, {"a": torch.zeros(3)})
    monkeypatch.undo()
    assert read_tensors(path)[0]["a"].tolist() == [1, 1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["tensors"]


def test_a_type_that_has_no_name_is_not_half_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_tensors(tmp_path / "tensors", {"a": torch.ones(3), "b": torch.ones(3, dtype=torch.complex64)})
    assert list(tmp_path.iterdir()) == []


def test_the_data_begin_aligned(tmp_path: Path) -> None:
    for length in range(1, 10):
        write_tensors(tmp_path / "tensors", {"a" * length: torch.ones(3)})
        content = (tmp_path / "tensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0
        assert json.loads(content[8 : 8 + size])["a" * length]["data_offsets"] == [0, 12]
