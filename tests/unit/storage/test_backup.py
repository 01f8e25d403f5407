"""What a backup does with what is broken, or changes under its hands."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.jobs.queue import JobQueue
from app.specs.alias import Alias
from app.storage.backup import Places, back_up, places_of, restore
from app.storage.database import Database
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


def test_a_job_whose_version_was_just_to_be_published_begins_anew(tmp_path: Path) -> None:
    """Its version is none of the backup's, so nothing there may say that it only has to be put in place."""
    places = at(tmp_path)
    database = new_database(places.database)
    queue = JobQueue(database, max_queued_jobs=10)
    done, begun = (queue.submit({}, "m").id for _ in range(2))
    queue.claim(2)
    for number, job_id in enumerate((done, begun), 1):
        assert queue.reserve(job_id, str(number), {"val_loss": 0.5}, "max_epochs")
        config = places.models / "m" / publish(places.models, "m", numbers_model()) / "config.json"
        config.write_bytes(orjson.dumps(orjson.loads(config.read_bytes()) | {"job_id": job_id}))
    queue.finish(done, "succeeded")
    database.close()
    back_up(places, tmp_path / "copy")
    restored = at(tmp_path / "new")
    restore(tmp_path / "copy", restored)
    database = Database(f"sqlite:///{restored.database}")
    queue = JobQueue(database, max_queued_jobs=10)
    assert (queue.get(done).version, queue.get(done).metrics) == ("1", {"val_loss": 0.5})
    found = queue.get(begun)
    assert (found.state, found.version, found.metrics, found.stop_reason) == ("running", None, None, None)
    database.close()
    assert [version for _, version in ModelStore(restored.models).all_versions()] == ["1"]
    assert ModelStore(restored.models).next_version("m") == "2", "as if it had not been there"


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


def test_aliases_name_what_is_in_the_backup_though_they_move_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = at(tmp_path)
    new_database(places.database).close()
    models = ModelStore(places.models)
    publish(places.models, "m", numbers_model())
    models.set_alias("m", "live", Alias(version="1"))
    copy = shutil.copytree
    copied: list[str] = []

    def copytree(source: Path, target: Path, **options: Any) -> Any:
        if not copied:  # a new version goes live just before the folder of the old one is copied
            publish(places.models, "m", numbers_model())
            models.set_alias("m", "live", Alias(version="2"))
            models.delete("m", "1")
        copied.append(source.name)
        return copy(source, target, **options)

    monkeypatch.setattr(shutil, "copytree", copytree)
    back_up(places, tmp_path / "copy")
    monkeypatch.undo()
    restore(tmp_path / "copy", at(tmp_path / "new"))
    restored = ModelStore(at(tmp_path / "new").models)
    assert restored.resolve("m", "live") == "2"
    assert restored.versions("m") == ["2"]
    assert copied == ["1", "2"]
