"""What processes count: read by all of them, never shrinking while one of them lives."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.storage.counters import BOUNDS, CHUNK_CELLS, Counters, Histogram
from tests.disks import small_disk

KEY = ("gradserve_things_total", "model", "1")


def add(counters: Counters, amount: float, *key: str) -> None:
    counters.values[counters.cell(*(key or KEY))] += amount


def test_what_is_counted_is_read(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    add(counters, 2)
    add(counters, 3)
    add(counters, 0.5, "other", 'a "quoted" label', "grün", "")
    counters.values[counters.cell("gauge", gauge=True)] = 7
    found = counters.read()
    assert found.counts == {KEY: 5, ("other", 'a "quoted" label', "grün", ""): 0.5}
    assert found.gauges == {os.getpid(): {("gauge",): 7}}


def test_processes_are_read_together(tmp_path: Path) -> None:
    one, other = Counters(tmp_path), Counters(tmp_path)
    add(one, 2)
    add(other, 3)
    add(other, 1, "only", "here")
    assert one.read().counts == other.read().counts == {KEY: 5, ("only", "here"): 1}


def test_counts_of_the_dead_stay_while_another_lives_and_their_gauges_go(tmp_path: Path) -> None:
    dead, living = Counters(tmp_path), Counters(tmp_path)
    add(dead, 2)
    dead.values[dead.cell("gauge", gauge=True)] = 7
    add(living, 3)
    dead.close()
    assert living.read().counts == {KEY: 5}
    assert all(not gauges for gauges in living.read().gauges.values())
    successor = Counters(tmp_path)
    assert successor.read().counts == {KEY: 5}
    assert len(list(tmp_path.iterdir())) == 2
    add(successor, 1)
    assert living.read().counts == {KEY: 6}


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"somebody else's")
    (tmp_path / "12-backup").mkdir()
    counters = Counters(tmp_path)
    add(counters, 2)
    assert counters.read().counts == {KEY: 2}
    Counters(tmp_path)
    assert (tmp_path / ".DS_Store").read_bytes() == b"somebody else's"


def test_a_service_that_starts_anew_counts_anew(tmp_path: Path) -> None:
    for _ in range(2):
        counters = Counters(tmp_path)
        assert counters.read().counts == {}
        add(counters, 2)
        counters.close()
    assert len(list(tmp_path.iterdir())) == 1


def count_and_wait(folder: Path, counted: "multiprocessing.synchronize.Event") -> None:
    add(Counters(folder), 4)
    counted.set()
    signal.pause()


def test_a_process_that_is_killed_has_counted_up_to_then(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    counted = spawn.Event()
    living = Counters(tmp_path)
    process = spawn.Process(target=count_and_wait, args=(tmp_path, counted))
    process.start()
    assert counted.wait(60)
    assert set(living.read().gauges) == {os.getpid(), process.pid}
    process.kill()
    process.join()
    assert set(living.read().gauges) == {os.getpid()}
    assert living.read().counts == {KEY: 4}


def test_what_has_no_room_is_not_counted_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.counters.MAX_CELLS", 4)
    monkeypatch.setattr("app.storage.counters.NOWHERE", 3)
    counters = Counters(tmp_path)
    add(counters, 1, "x" * 300)
    for number in range(10):
        add(counters, 1, "things", str(number))
    assert counters.read().counts == {("things", str(number)): 1 for number in range(3)}


def test_what_is_first_seen_on_a_full_disk_is_counted(tmp_path: Path) -> None:
    """From the room that was taken before; what comes when that is used up is not, and is once there is space."""
    with small_disk(tmp_path / "disk", 1) as disk:
        counters = Counters(disk.path / "counters")
        disk.fill()
        for number in range(2 * CHUNK_CELLS):
            add(counters, 1, "things", str(number))
        assert counters.read().counts == {("things", str(number)): 1 for number in range(CHUNK_CELLS)}
        disk.free()
        for number in range(2 * CHUNK_CELLS):
            add(counters, 1, "things", str(number))
        counts = counters.read().counts
        assert len(counts) == 2 * CHUNK_CELLS
        assert [counts["things", str(number)] for number in (0, 2 * CHUNK_CELLS - 1)] == [2, 1]
        counters.close()


def test_many_are_counted(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    for number in range(3 * CHUNK_CELLS):
        add(counters, number, "things", str(number))
    assert Counters(tmp_path).read().counts == {("things", str(number)): number for number in range(3 * CHUNK_CELLS)}


@given(st.lists(st.floats(0, 100), max_size=20))
def test_a_histogram_has_each_duration_once(tmp_path_factory: pytest.TempPathFactory, seconds: list[float]) -> None:
    counters = Counters(tmp_path_factory.mktemp("counters"))
    histogram = Histogram(counters, "seconds")
    for duration in seconds:
        histogram.observe(duration)
    counts = {key[1]: value for key, value in counters.read().counts.items()}
    assert counts.pop("sum") == pytest.approx(sum(seconds))
    below = 0.0
    for bound in BOUNDS:
        below += counts.pop(str(bound))
        assert below == sum(duration <= bound for duration in seconds)
    assert counts == {"+Inf": sum(duration > BOUNDS[-1] for duration in seconds)}
    counters.close()
