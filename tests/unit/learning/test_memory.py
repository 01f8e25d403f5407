"""What a run takes of memory, and what there is."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from app.errors import TooLarge
from app.learning import devices
from app.learning.batches import Batching
from app.learning.devices import (
    ControlGroup,
    control_groups,
    memory_left_bytes,
    memory_limit_bytes,
    require_room,
    set_float32_precision,
)
from app.learning.memory import (
    CARD_BASE_BYTES,
    Memory,
    RowsBytes,
    gathered_bytes,
    part_rows,
    rows_bytes,
    run_memory,
    state_bytes,
)
from app.learning.optimizers import build_optimizers
from app.specs.optimizers import OptimizerSpec
from tests.samples import resolved, table_of
from tests.unit.learning.test_model import planned
from tests.unit.learning.test_optimizers import TABLE

GIB = 2**30


@pytest.mark.parametrize("fields", [fields for fields, _ in TABLE])
def test_the_optimizers_state_is_what_it_makes(fields: dict[str, Any]) -> None:
    spec: Any = TypeAdapter(OptimizerSpec).validate_python(fields)
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    network(torch.zeros(1, 2, 6)).sum().backward()
    built = build_optimizers(spec, network.parameters())
    for optimizer in built:
        optimizer.step()
    states = [value for optimizer in built for state in optimizer.state.values() for value in state.values()]
    kept = sum(value.nbytes for value in states if torch.is_tensor(value) and value.ndim)
    assert state_bytes(spec, list(network.parameters())) == kept


def test_copies_of_the_weights_count() -> None:
    def takes(**spec: Any) -> int:
        wide = {"network": {"hidden_features": [2000, 2000]}, "validation": None, "engine": "eager"}
        memory_bytes: int = planned(**(wide | spec))[1].memory_bytes
        return memory_bytes

    plain, weights = (
        takes(optimizer={"type": "sgd"}),
        4 * planned(network={"hidden_features": [2000, 2000]})[1].num_parameters,
    )
    assert takes(optimizer={"type": "adamw"}) - plain == pytest.approx(2 * weights, rel=0.01)
    assert takes(optimizer={"type": "sgd"}, ema_decay=0.9) - plain == pytest.approx(weights, rel=0.01)
    assert takes(optimizer={"type": "sgd"}, stop={"restore_best": True}) - plain == pytest.approx(weights, rel=0.01)
    rate = {"type": "sgd", "learning_rate": "auto"}
    assert takes(optimizer=rate) - plain == pytest.approx(weights, rel=0.01)
    assert takes(optimizer=rate, stop={"restore_best": True}) - plain == pytest.approx(weights, rel=0.01)
    assert takes(optimizer={"type": "adamw"}, freeze=["layers.2"]) - plain < 0


def test_the_compiled_engine_copies_small_parameters_and_their_state() -> None:
    def copied(hidden_features: list[int], **spec: Any) -> int:
        asked = {"network": {"hidden_features": hidden_features}, "validation": None, "optimizer": {"type": "adam"}}
        eager, compiled = (planned(**asked, engine=engine, **spec)[1].memory_bytes for engine in ("eager", "compiled"))
        return compiled - eager

    def num_parameters(hidden_features: list[int]) -> int:
        return planned(network={"hidden_features": hidden_features})[1].num_parameters

    assert copied([100, 100]) == 3 * 4 * num_parameters([100, 100])
    assert copied([100, 100], ema_decay=0.9) == 4 * 4 * num_parameters([100, 100])
    assert copied([1000, 1000]) == 3 * 4 * (num_parameters([1000, 1000]) - 1_000_000)


def test_parts_of_wide_tables_have_fewer_rows() -> None:
    assert part_rows(1) == part_rows(64) == 2**16
    assert part_rows(65) == 2**15
    assert part_rows(10_000) == 2**8
    assert part_rows(2**30) == 1


def test_a_full_batch_is_not_gathered() -> None:
    assert gathered_bytes(Batching(10**6, 10**6, shuffle=False), 100, 1) == 0
    assert gathered_bytes(Batching(10**6, 10), 100, 5) == 2 * 5 * 10 * 4 * 100
    assert gathered_bytes(Batching(10**6, 10), 100, 1e9) <= 2 * 2**26


@pytest.mark.parametrize(("target", "most"), [("y", 25), ("k", 20)])
@pytest.mark.parametrize("more", [{}, {"validation": None}])
def test_a_mapped_table_takes_few_bytes_a_row(target: str, most: int, more: dict[str, Any]) -> None:
    """Whatever its width: 10 GB of rows of 64 numbers are 39 million rows."""

    def takes(num_rows: int) -> int:
        frame = pl.DataFrame({"x": [0.0, 1.5], "y": [1.5, 2.0], "k": ["a", "b"]})
        table = table_of(frame).model_copy(update={"num_rows": num_rows})
        spec = resolved(frame, target, {"features": ["x"]}, **more)
        rows = rows_bytes(spec, table, num_inputs=64, num_outputs=1, max_rows_bytes=1)
        return run_memory("cpu", 0, rows).num_bytes

    few, many = 10**7, 4 * 10**7
    assert 8 < (takes(many) - takes(few)) / (many - few) <= most


@pytest.mark.parametrize(("encoded", "stays"), [(2**30, True), (2**33, False)])
def test_rows_are_counted_on_a_card_where_they_stay_there(encoded: int, stays: bool) -> None:
    """That is in half of what it has beside the network."""
    rows, learning = RowsBytes(encoded, 0, 0, 0), 2**32
    found = run_memory("cuda:0", learning, rows, on_card=2**34)
    assert found.card_bytes == CARD_BASE_BYTES + learning + (encoded if stays else 0)
    assert found.host_bytes >= encoded
    assert run_memory("cpu", learning, rows).card_bytes == 0


@pytest.mark.parametrize(
    ("precision", "device", "rounds"),
    [("float32", "cuda", False), ("tf32", "cuda", True), ("bfloat16", "cuda", True), ("bfloat16", "cpu", False)],
)
def test_float32_is_float32_in_convolutions_as_well(precision: str, device: str, rounds: bool) -> None:
    """cuDNN has settings of its own, by which it would round."""
    set_float32_precision(precision, torch.device(device))
    try:
        assert torch.get_float32_matmul_precision() == ("high" if rounds else "highest")
        assert torch.backends.cudnn.allow_tf32 is rounds
    finally:
        set_float32_precision("float32", torch.device("cpu"))


# ---- what there is


@pytest.mark.parametrize(
    ("line", "folder", "file"),
    [
        ("0::/a/b", "a/b", "memory.max"),
        ("0::/a/b", "a", "memory.max"),
        ("0::/elsewhere", ".", "memory.max"),
        ("4:cpu,memory:/a/b", "memory/a/b", "memory.limit_in_bytes"),
        ("4:memory:/a/b", "memory", "memory.limit_in_bytes"),
    ],
)
def test_the_limits_of_all_control_groups_count(line: str, folder: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(f"7:pids:/other\n{line}\n")
    for other in ("a/b", "memory/a/b"):
        (tmp_path / other).mkdir(parents=True)
        (tmp_path / other / "memory.max").write_text("max\n")
    (tmp_path / folder / file).write_text("123456\n")
    assert control_groups(tmp_path / "cgroup", tmp_path) == [ControlGroup(123456, 0)]
    assert control_groups(tmp_path / "none", tmp_path) == []


@pytest.mark.parametrize(
    ("line", "limit", "usage", "prefix"),
    [
        ("0::/a", "a/memory.max", "a/memory.current", ""),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes", "memory/a/memory.usage_in_bytes", "total_"),
    ],
)
def test_what_a_group_has_taken_is_without_the_pages_of_files(
    line: str, limit: str, usage: str, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(line)
    (tmp_path / limit).parent.mkdir(parents=True)
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / usage).write_text("700\n")
    stat = {"anon": 9, "active_file": 0, "inactive_file": 0} | {
        f"{prefix}active_file": 50,
        f"{prefix}inactive_file": 25,
    }
    lines = "".join(f"{name} {value}\n" for name, value in stat.items())
    (tmp_path / limit).with_name("memory.stat").write_text(lines)
    assert control_groups(tmp_path / "cgroup", tmp_path) == [ControlGroup(1000, 625)]


def test_the_process_has_a_limit_and_something_left() -> None:
    assert 2**28 < memory_left_bytes() < memory_limit_bytes() <= devices.devices()[0]["memory_bytes"]  # type: ignore[operator]


@pytest.mark.parametrize("groups", [[], [ControlGroup(8 * GIB, 5 * GIB), ControlGroup(2 * GIB, 0)]])
def test_what_is_left_is_the_least_of_the_machines_and_the_groups(
    groups: list[ControlGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(devices, "MEMINFO", meminfo)
    monkeypatch.setattr(devices, "control_groups", lambda: groups)
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable: 1024 kB\n")
    assert memory_left_bytes() == 2**20
    meminfo.write_text(f"MemAvailable: {2**32} kB\n")
    assert memory_left_bytes() == (2 * GIB if groups else memory_limit_bytes())


def test_a_run_beyond_the_limit_is_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_limit_bytes", lambda: GIB)
    planned(network={"hidden_features": [2000, 2000]})
    with pytest.raises(TooLarge, match=r"would take about 1\.\d GiB, and this machine has 1\.0 GiB") as caught:
        planned(network={"hidden_features": [9_000, 9_000]}, optimizer={"type": "adamw"}, max_parameters=10**9)
    assert caught.value.code == "would_not_fit"


def test_a_run_beyond_what_is_left_is_refused_or_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs beside it stays; what other jobs take comes back."""
    needed = Memory(2 * GIB, shared_bytes=GIB // 2)
    monkeypatch.setattr(devices, "memory_limit_bytes", lambda: 4 * GIB)
    monkeypatch.setattr(devices, "memory_left_bytes", lambda: 3 * GIB // 2)
    assert require_room(needed, "cpu", busy=lambda: False) == []
    monkeypatch.setattr(devices, "memory_left_bytes", lambda: GIB)
    figures = r"about 2\.0 GiB, 1\.5 GiB of it anew, and of this machine's 4\.0 GiB 1\.0 GiB are left"
    with pytest.raises(TooLarge, match=f"{figures} beside what runs on it") as caught:
        require_room(needed, "cpu", busy=lambda: False)
    assert caught.value.code == "would_not_fit"
    [warning] = require_room(needed, "cpu", busy=lambda: True)
    assert re.search(f"{figures} while other jobs run", warning)


def test_so_is_a_run_beyond_a_cards_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _card: SimpleNamespace(total_memory=GIB))
    settled, facts = planned(network={"hidden_features": [64]}, device="cuda:1")
    assert settled.device == "cuda:1"
    assert facts.memory_bytes > planned(network={"hidden_features": [64]}, device="cpu")[1].memory_bytes
    with pytest.raises(TooLarge, match=r"GiB, and cuda:1 has 1\.0 GiB"):
        planned(network={"hidden_features": [10_000, 10_000]}, max_parameters=10**9, device="cuda:1")
