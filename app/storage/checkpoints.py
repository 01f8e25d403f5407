"""What a job needs to go on: one file, replaced by one rename, and the history of its epochs."""

from pathlib import Path
from typing import Any

import orjson

from app.storage.tensors import read_tensors, write_tensors


class Checkpoints:
    """A job's folder `data/jobs/<id>/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "checkpoint.safetensors"
        self.history_path = folder / "history.jsonl"

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Tensors and position of the last checkpoint, or None where there is none."""
        if not self.path.exists():
            return None
        tensors, metadata = read_tensors(self.path)
        position: dict[str, Any] = orjson.loads(metadata["position"])
        return tensors, position

    def save(self, tensors: dict[str, Any], position: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """The history goes first: what the checkpoint counts is never missing from it."""
        self.write_history(self.history_path, history)
        write_tensors(self.path, tensors, {"position": orjson.dumps(position).decode()})

    def load_history(self, num_epochs: int) -> list[dict[str, Any]]:
        if not num_epochs:
            return []
        lines = self.history_path.read_bytes().splitlines()
        return [orjson.loads(line) for line in lines[:num_epochs]]

    @staticmethod
    def write_history(path: Path, history: list[dict[str, Any]]) -> None:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in history))
