"""What a job needs to go on: one file, replaced by one rename, and the history of its epochs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from app.storage.files import write_atomically
from app.storage.tensors import read_tensors, write_tensors

ROWS = "rows-"  # how the names of mapped rows begin
FORMAT = "1"  # another one whenever a checkpoint of before could not be gone on from


@dataclass(frozen=True)
class OnDisk:
    path: Path

    def load(self) -> dict[str, Any]:
        return read_tensors(self.path)[0]


class Checkpoints:
    """A job's folder `data/jobs/<id>/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "checkpoint.safetensors"
        self.history_path = folder / "history.jsonl"
        self._named: set[str] = set()  # files of `keep` that a checkpoint on disk may name

    def remove_leftovers(self) -> None:
        """What a run that was killed was just writing. Only for who holds the folder alone."""
        for path in self.folder.iterdir():
            if path.name.startswith((".", ROWS)):
                path.unlink()

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Tensors and position of the last checkpoint.

        None where there is none, or one that a release has written whose checkpoints are others (`path` is there then).
        """
        if not self.path.exists():
            return None
        tensors, metadata = read_tensors(self.path)
        if metadata.get("format") != FORMAT:
            return None
        position: dict[str, Any] = orjson.loads(metadata["position"])
        return tensors, position

    def save(
        self,
        tensors: dict[str, Any],
        position: dict[str, Any],
        history: list[dict[str, Any]],
        kept_file: str | None = None,
    ) -> None:
        """The history goes first: what the checkpoint counts is never missing from it. Of `keep`, one file remains."""
        named = {kept_file} if kept_file else set()
        self._named |= named  # a write that fails at its very end has written it
        self.write_history(self.history_path, history)
        write_tensors(self.path, tensors, {"format": FORMAT, "position": orjson.dumps(position).decode()})
        self._named = named
        self._forget_others()

    def keep(self, weights: dict[str, Any]) -> OnDisk:
        """A copy of weights that takes disk rather than memory, in a file of its own: what the last checkpoint names
        stays as it is, whatever comes after. What was kept since then has had its day.
        """
        path = self.folder / f"best-{os.urandom(8).hex()}.safetensors"
        write_tensors(path, weights)
        self._forget_others(path.name)
        return OnDisk(path)

    def kept(self, name: str) -> OnDisk:
        """What `keep` has written under that name, which the last checkpoint names."""
        self._named.add(name)
        return OnDisk(self.folder / name)

    def _forget_others(self, *names: str) -> None:
        for path in self.folder.glob("best-*.safetensors"):
            if path.name not in self._named.union(names):
                path.unlink()

    def load_history(self, num_epochs: int) -> list[dict[str, Any]]:
        if not num_epochs:
            return []
        lines = self.history_path.read_bytes().splitlines()
        return [orjson.loads(line) for line in lines[:num_epochs]]

    @staticmethod
    def write_history(path: Path, history: list[dict[str, Any]]) -> None:
        write_atomically(path, b"".join(orjson.dumps(row) + b"\n" for row in history))
