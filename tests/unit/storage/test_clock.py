"""A clock that jumps ahead makes nothing old."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from app.storage.clock import Clock

DAY, YEAR = 86400.0, 365 * 86400.0


@dataclass
class Machine:
    wall: float = 50 * YEAR
    monotonic: float = 0.0

    def clock(self, path: Path) -> Clock:
        return Clock(path / "clock", lambda: self.wall, lambda: self.monotonic)

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_it_goes_as_the_machine_s_does(tmp_path: Path) -> None:
    machine = Machine()
    clock = machine.clock(tmp_path)
    for _ in range(3):
        machine.pass_(600)
        assert clock.now() == machine.wall


@pytest.mark.parametrize("restart", [False, True])
def test_after_a_jump_ahead_it_runs_at_twice_the_speed_of_time(tmp_path: Path, restart: bool) -> None:
    machine = Machine()
    clock = machine.clock(tmp_path)
    before = clock.now()
    machine.wall += YEAR
    clock = machine.clock(tmp_path) if restart else clock
    assert clock.now() == before
    machine.pass_(DAY)
    assert clock.now() == before + 2 * DAY
    machine.wall -= YEAR
    assert clock.now() == machine.wall == before + DAY


def test_what_was_missed_while_nothing_ran_is_made_up_for(tmp_path: Path) -> None:
    machine = Machine()
    machine.clock(tmp_path).now()
    machine.wall += 10 * DAY
    clock = machine.clock(tmp_path)
    for _ in range(10):
        machine.pass_(DAY)
        clock.now()
    assert clock.now() == machine.wall


def test_a_file_that_is_no_time_counts_for_nothing(tmp_path: Path) -> None:
    machine = Machine()
    (tmp_path / "clock").write_text("noon")
    assert machine.clock(tmp_path).now() == machine.wall
