"""Which engine equal runs take: the first one's choice stays."""

import os
from pathlib import Path

import pytest

from app.errors import StorageFull
from app.storage import choice
from app.storage.choice import Choice
from tests.disks import small_disk


def refuse() -> str:
    raise AssertionError("it was measured before")


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_what_was_chosen_first_stays(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "engines" / "some"
    assert Choice(path).settle(lambda: engine) == engine
    assert Choice(path).settle(refuse) == engine


def test_a_file_that_names_no_engine_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "some").write_text("")
    assert Choice(tmp_path / "some").settle(lambda: "compiled") == "compiled"
    assert Choice(tmp_path / "some").settle(refuse) == "compiled"


def test_those_unused_for_longest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MAX_CHOICES", 3)
    for age, name in enumerate(["used", "new", "old"]):
        Choice(tmp_path / name).settle(lambda: "eager")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    Choice(tmp_path / "used").settle(refuse)
    Choice(tmp_path / "another").settle(lambda: "eager")
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "another", "used", "new"}


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        disk.fill()
        with pytest.raises(StorageFull):
            Choice(disk.path / "some").settle(lambda: "eager")
