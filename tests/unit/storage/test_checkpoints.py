"""What a job goes on from: whole, whatever fails on the way."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from app.storage.checkpoints import Checkpoints
from app.storage.files import write_atomically
from app.storage.tensors import write_tensors

HISTORY = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": None} for epoch in range(1, 6)]


def save(checkpoints: Checkpoints, step: int, **more: Any) -> None:
    checkpoints.save({"a": torch.full((3,), float(step))}, {"step": step}, HISTORY[:step], **more)


def loaded_step(checkpoints: Checkpoints) -> int:
    found = checkpoints.load()
    assert found is not None
    tensors, position = found
    assert tensors["a"].tolist() == [position["step"]] * 3
    assert checkpoints.load_history(position["step"]) == HISTORY[: position["step"]]
    return int(position["step"])


def test_a_new_job_has_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "jobs" / "1")
    assert checkpoints.load() is None
    assert checkpoints.load_history(0) == []
    save(checkpoints, 1)
    assert loaded_step(checkpoints) == 1


def test_the_last_one_counts(tmp_path: Path) -> None:
    for step in (1, 3, 2):
        save(Checkpoints(tmp_path), step)
        assert loaded_step(Checkpoints(tmp_path)) == step


@pytest.mark.parametrize("metadata", [{}, {"format": "0"}, {"format": "99"}])
def test_another_releases_checkpoint_is_there_and_none(tmp_path: Path, metadata: dict[str, str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    write_tensors(checkpoints.path, {"a": torch.zeros(3)}, {**metadata, "position": "[]"})
    assert checkpoints.path.exists()
    assert checkpoints.load() is None


def test_the_history_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 2)
    checkpoints.write_history(checkpoints.history_path, HISTORY)  # and then the power went
    assert checkpoints.load_history(2) == HISTORY[:2]


@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_a_write_that_fails_leaves_the_last_one_whole(
    which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at the `which`th sync of a save."""
    checkpoints, calls, fsync = Checkpoints(tmp_path), [], os.fsync
    save(checkpoints, 2)

    def fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == which:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        save(checkpoints, 4)
    monkeypatch.undo()
    assert loaded_step(checkpoints) in (2, 4)
    save(checkpoints, 5)
    assert loaded_step(checkpoints) == 5


def test_kept_weights_last_as_long_as_a_checkpoint_names_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.keep({"w": torch.tensor([1.0])})
    save(checkpoints, 1, kept_file=first.path.name)
    second = checkpoints.keep({"w": torch.tensor([2.0])})
    assert checkpoints.kept(first.path.name).load()["w"].item() == 1.0
    save(checkpoints, 2, kept_file=second.path.name)
    assert not first.path.exists()
    assert checkpoints.kept(second.path.name).load()["w"].item() == 2.0
    save(checkpoints, 3)
    assert not second.path.exists()


def best_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("best-*")}


def test_between_two_checkpoints_kept_weights_do_not_pile_up(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.keep({"w": torch.tensor([1.0])})
    save(checkpoints, 1, kept_file=first.path.name)
    for number in (2.0, 3.0, 4.0):
        last = checkpoints.keep({"w": torch.tensor([number])})
        assert best_files(tmp_path) == {first.path.name, last.path.name}
    assert last.load()["w"].item() == 4.0
    resumed = Checkpoints(tmp_path)
    assert resumed.kept(first.path.name).load()["w"].item() == 1.0
    new = resumed.keep({"w": torch.tensor([5.0])})
    assert best_files(tmp_path) == {first.path.name, new.path.name}


def test_a_checkpoint_that_fails_when_it_is_in_place_keeps_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.keep({"w": torch.tensor([1.0])})
    save(checkpoints, 1, kept_file=first.path.name)
    second = checkpoints.keep({"w": torch.tensor([2.0])})

    def fails(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("app.storage.tensors.sync_folder", fails)
    with pytest.raises(OSError, match="Input/output"):
        save(checkpoints, 2, kept_file=second.path.name)
    monkeypatch.undo()
    assert loaded_step(checkpoints) == 2
    third = checkpoints.keep({"w": torch.tensor([3.0])})
    assert best_files(tmp_path) == {first.path.name, second.path.name, third.path.name}


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, b"three")
    monkeypatch.undo()
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    for name in (".checkpoint.safetensors.abcd", ".history.jsonl.abcd", "rows-abcd", "lock"):
        (tmp_path / name).write_bytes(b"x")
    checkpoints.remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "history.jsonl", "lock"}
    assert loaded_step(checkpoints) == 1
