"""What a backup does with what is broken, or changes under its hands."""

from pathlib import Path

import pytest

from app.jobs.queue import JobQueue
from app.storage.backup import Places, back_up, places_of, restore
from app.storage.models import ModelStore
from tests.databases import new_database
from tests.published import numbers_model, publish


def at(root: Path) -> Places:
    return places_of(root / "data", root / "models", f"sqlite:///{root}/data/gradserve.db")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", None])
def test_a_broken_version_is_copied_as_it_is_and_stops_no_backup(tmp_path: Path, content: bytes | None) -> None:
    places = at(tmp_path)
    database = new_database(places.database)
    queue = JobQueue(database, max_queued_jobs=10)
    queue.submit({}, "m")
    database.close()
    for _ in range(2):
        publish(places.models, "m", numbers_model())
    (places.models / "m" / "1" / "config.json").unlink()
    if content is not None:
        (places.models / "m" / "1" / "config.json").write_bytes(content)
    num_files = back_up(places, tmp_path / "copy")
    restored = at(tmp_path / "new")
    assert restore(tmp_path / "copy", restored) == num_files
    kept = restored.models / "m" / "1" / "config.json"
    assert (kept.read_bytes() if kept.exists() else None) == content
    assert (kept.parent / "model.safetensors").exists()
    assert ModelStore(restored.models).newest("m").version == "2"


def test_files_are_on_disk_before_the_list_that_vouches_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, seen = at(tmp_path), []
    new_database(places.database).close()
    publish(places.models, "m", numbers_model())

    def files() -> None:
        seen.append({path.name for path in tmp_path.rglob("*") if "copy" in path.parts or "new" in path.parts})

    monkeypatch.setattr("app.storage.backup.os.sync", files)
    back_up(places, tmp_path / "copy")
    assert {"gradserve.db", "model.safetensors"} <= seen[0]
    assert "backup.json" not in seen[0]
    restore(tmp_path / "copy", at(tmp_path / "new"))
    assert (tmp_path / "new" / "data" / "gradserve.db").exists()
    assert len(seen) == 2
