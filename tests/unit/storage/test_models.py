"""Published versions: there whole or not at all, never numbered twice, never other than they were published."""

import json
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from app.errors import (
    Conflict,
    CorruptVersion,
    FileNotInVersion,
    InvalidInput,
    ModelNotFound,
    VersionNotFound,
)
from app.specs.alias import Alias, Canary, Shadow
from app.storage import models as models_module
from app.storage.files import sync_folder
from app.storage.models import ModelStore
from app.storage.tensors import write_tensors
from app.storage.version import FILES, FORMAT_VERSION, Version, write_version
from tests.logs import logged_by
from tests.waiting import until


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


TOLD = {"format_version": FORMAT_VERSION, "created_at": 1.5, "num_parameters": 3, "signature": {}, "spec": {}}
"""What every version's config.json says."""


def stage(store: ModelStore, job_id: str, **config: Any) -> None:
    folder = store.staging(job_id)
    write_tensors(folder / "model.safetensors", {"w": torch.arange(3.0)})
    (folder / "history.jsonl").write_bytes(b'{"epoch":1}\n')
    write_version(folder, TOLD | {"job_id": job_id} | config, {"train_loss": 0.5})


def publish(store: ModelStore, name: str = "m", job_id: str = "job", **config: Any) -> str:
    version = store.next_version(name)
    stage(store, f"{job_id}-{version}", **config)
    store.publish(f"{job_id}-{version}", name, version)
    return version


# ---- publishing


def test_a_version_appears_with_its_publication(store: ModelStore) -> None:
    stage(store, "job")
    assert store.names() == []
    assert not store.published("job", "m", "1")
    store.publish("job", "m", "1")
    assert store.names() == ["m"]
    assert store.versions("m") == ["1"]
    assert store.published("job", "m", "1")
    assert not store.published("another", "m", "1")
    found = store.get("m", "1")
    assert found.metrics == {"train_loss": 0.5}
    assert found.config["job_id"] == "job"
    assert found.load_tensors()["w"].tolist() == [0, 1, 2]
    assert not (store.root / ".staging" / "job").exists()


def test_publication_is_one_rename(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(store, "job")
    renames: list[str] = []
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        renames.append(path.name)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        store.publish("job", "m", "1")
    assert renames == ["job"]
    assert store.names() == []
    assert store.next_version("m") == "1"
    monkeypatch.setattr(Path, "rename", rename)
    store.publish("job", "m", "1")
    assert store.versions("m") == ["1"]


def test_a_version_that_is_out_is_on_disk(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder's name, and where it is the first one its model's, would survive the power's loss."""
    synced: list[tuple[str, list[str]]] = []

    def sync(folder: Path) -> None:
        synced.append((folder.name, sorted(path.name for path in folder.iterdir() if path.is_dir())))
        sync_folder(folder)

    monkeypatch.setattr("app.storage.models.sync_folder", sync)
    publish(store)
    publish(store)
    root = store.root.name
    assert synced == [(root, [".staging", "m"]), ("m", ["1"]), ("m", ["1", "2"])]


def test_publishing_again_changes_nothing(store: ModelStore) -> None:
    stage(store, "job")
    store.publish("job", "m", "1")
    store.publish("job", "m", "1")
    assert store.versions("m") == ["1"]


def test_a_taken_place_is_not_taken_again(store: ModelStore) -> None:
    stage(store, "one")
    stage(store, "two")
    store.publish("one", "m", "1")
    with pytest.raises(Conflict, match="version 1"):
        store.publish("two", "m", "1")
    assert store.get("m", "1").config["job_id"] == "one"
    store.publish("two", "m", store.next_version("m"))
    assert store.versions("m") == ["1", "2"]


def test_a_number_whose_version_was_deleted_is_not_given_again(store: ModelStore) -> None:
    """Not to one who asked for it before, either."""
    for job in ("slow", "one", "two"):
        stage(store, job)
    asked = store.next_version("m")
    for job in ("one", "two"):
        store.publish(job, "m", store.next_version("m"))
    store.delete("m")
    with pytest.raises(Conflict, match="version 1"):
        store.publish("slow", "m", asked)
    assert store.next_version("m") == "3"
    store.publish("slow", "m", "3")
    assert store.versions("m") == ["3"]


def test_what_is_not_complete_is_no_version(store: ModelStore) -> None:
    publish(store)
    (store.root / "m" / "2").mkdir()
    (store.root / "m" / "2" / "model.safetensors").write_bytes(b"half")
    (store.root / "n" / "1").mkdir(parents=True)
    (store.root / "m" / "notes").mkdir()
    (store.root / "m" / "notes" / "config.json").write_bytes(b"{}")
    (store.root / "Not A Name" / "1").mkdir(parents=True)
    (store.root / "Not A Name" / "1" / "config.json").write_bytes(b"{}")
    assert store.names() == ["m"]
    assert store.versions("m") == ["1"]


def test_staging_starts_empty_and_is_never_listed(store: ModelStore) -> None:
    stage(store, "job")
    assert list(store.staging("job").iterdir()) == []
    stage(store, "job")
    assert store.names() == []
    for name in (".staging", "..", "", "a/b"):
        with pytest.raises(ModelNotFound):
            store.versions(name)
    store.discard("job")
    assert list((store.root / ".staging").iterdir()) == []
    store.discard("job")


def test_versions_are_counted_as_numbers(store: ModelStore) -> None:
    for _ in range(11):
        publish(store)
    assert store.versions("m") == [str(number) for number in range(1, 12)]
    assert store.resolve("m", None) == "11"


def test_a_number_is_never_used_again(store: ModelStore) -> None:
    assert [publish(store), publish(store)] == ["1", "2"]
    store.delete("m", "2")
    assert publish(store) == "3"
    store.delete("m")
    assert store.names() == []
    assert publish(store) == "4"
    assert store.versions("m") == ["4"]


def test_a_folder_that_was_copied_in_is_a_version(store: ModelStore, tmp_path: Path) -> None:
    publish(store)
    other = ModelStore(tmp_path / "elsewhere")
    other.root.mkdir()
    (other.root / "copy").mkdir()
    (store.root / "m" / "1").rename(other.root / "copy" / "7")
    assert other.get("copy", "7").load_tensors()["w"].tolist() == [0, 1, 2]
    assert other.next_version("copy") == "8"


# ---- reading


def test_what_is_deleted_while_it_is_read_is_not_there(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    publish(store)
    read = models_module.read_version

    def deleted_first(path: Path, name: str, version: str) -> Version:
        ModelStore(store.root).delete(name, version)
        return read(path, name, version)

    monkeypatch.setattr(models_module, "read_version", deleted_first)
    with pytest.raises(VersionNotFound):
        store.get("m", "2")
    monkeypatch.undo()
    found = store.get("m", "1")
    store.delete("m", "1")
    with pytest.raises(ModelNotFound), store.reading("m", "1"):
        found.load_tensors()


def test_a_list_of_all_passes_over_what_goes_meanwhile(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "b"):
        publish(store, name)
    monkeypatch.setattr(store, "names", lambda: ["a", "b", "gone"])
    assert store.all_versions() == [("a", "1"), ("b", "1"), ("b", "2")]


def test_a_misspelt_model_is_told_the_nearest_that_is_there(store: ModelStore) -> None:
    with pytest.raises(ModelNotFound, match=r"^there is no model 'penguin'$"):
        store.versions("penguin")
    for name in ("penguins", "cars"):
        publish(store, name)
    with pytest.raises(ModelNotFound, match=r"^there is no model 'penguin'; did you mean 'penguins'[?]$"):
        store.versions("penguin")
    store.delete("penguins")
    with pytest.raises(ModelNotFound, match=r"^there is no model 'penguin'$"):
        store.versions("penguin")


def test_what_is_not_there(store: ModelStore) -> None:
    publish(store)
    with pytest.raises(ModelNotFound, match="'other'"):
        store.get("other", "1")
    with pytest.raises(VersionNotFound, match=r"'2'.*its versions are 1"):
        store.get("m", "2")
    for version in ("0", "01", "-1", "1 ", "..", "latest", ""):
        with pytest.raises(VersionNotFound):
            store.resolve("m", version)


def test_no_folder_is_no_models(store: ModelStore) -> None:
    assert store.names() == []
    assert store.next_version("m") == "1"


def test_a_number_that_something_else_has_for_a_name_is_passed_over(store: ModelStore) -> None:
    """It could not be published under it."""
    publish(store, "m")
    (store.root / "m" / "7").mkdir()
    (store.root / "m" / "7" / "notes.txt").touch()
    assert store.versions("m") == ["1"]
    assert store.next_version("m") == "8"


@pytest.mark.parametrize("file", [file for file in FILES if file != "config.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "replace"])
def test_what_was_not_published_is_not_loaded(store: ModelStore, file: str, damage: str) -> None:
    publish(store)
    path = store.root / "m" / "1" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "delete":
        changed = {
            "flip": bytes([content[0] ^ 1]) + content[1:],
            "cut": content[:-1],
            "replace": b"\x80\x04K\x01.",  # a pickle
        }[damage]
        path.write_bytes(changed)
    if file == "metrics.json":
        with pytest.raises(CorruptVersion, match="version 1 of model 'm'"):
            store.get("m", "1").load_tensors()
    else:
        with pytest.raises(CorruptVersion, match=file):
            store.get("m", "1").load_tensors()


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 16, (10**9).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_none_are_corrupt_whatever_their_digest(store: ModelStore, content: bytes) -> None:
    folder = store.staging("job")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "history.jsonl").write_bytes(b"")
    write_version(folder, TOLD | {"job_id": "job"}, {})
    store.publish("job", "m", "1")
    with pytest.raises(CorruptVersion, match="version 1 of model 'm' can't be read"):
        store.get("m", "1").load_tensors()


def test_a_config_that_can_not_be_read_is_corrupt(store: ModelStore) -> None:
    publish(store)
    for content in (b"", b"{", b"[]", b"{}", b'{"digests": {}}'):
        (store.root / "m" / "1" / "config.json").write_bytes(content)
        with pytest.raises(CorruptVersion, match="version 1 of model 'm'"):
            store.get("m", "1")


def test_a_config_that_says_something_else_than_was_published_is_corrupt(store: ModelStore) -> None:
    """Also where it is still JSON; of any one byte but those of the digest's own name, which says nothing."""
    publish(store, classes=["Adelie"], shift=0.5)
    path = store.root / "m" / "1" / "config.json"
    content = path.read_bytes()
    name = content.index(b"config_digest")
    for place in {*range(len(content))} - {*range(name, name + len("config_digest"))}:
        flipped = bytes([*content[:place], content[place] ^ 1, *content[place + 1 :]])
        path.write_bytes(flipped)
        with pytest.raises(CorruptVersion, match="version 1 of model 'm'"):
            store.get("m", "1").load_tensors()
    path.write_bytes(content)
    assert store.get("m", "1").load_tensors()


def test_a_config_of_before_it_had_a_digest_is_read(store: ModelStore) -> None:
    publish(store)
    path = store.root / "m" / "1" / "config.json"
    config = orjson.loads(path.read_bytes())
    del config["config_digest"]
    path.write_bytes(orjson.dumps(config))
    assert store.get("m", "1").load_tensors()


def test_the_newest_is_the_newest_that_can_be_read(store: ModelStore) -> None:
    for _ in range(3):
        publish(store)
    (store.root / "m" / "3" / "config.json").write_bytes(b"torn")
    assert store.newest("m").version == "2"
    assert [version.version for version in store.readable("m", "321")] == ["2", "1"]
    for version in "12":
        (store.root / "m" / version / "metrics.json").unlink()
    with pytest.raises(CorruptVersion, match="no version of model 'm'"):
        store.newest("m")


@pytest.mark.parametrize("content", [b"", b"\0\0", b"two", "²".encode()])
def test_a_broken_marker_of_the_last_version_is_rebuilt(store: ModelStore, content: bytes) -> None:
    for _ in range(2):
        publish(store)
    (store.root / "m" / "last_version").write_bytes(content)
    with logged_by("app.storage.models") as logs:
        assert publish(store) == "3"
    assert logs[0]["file"].endswith("m/last_version")
    assert (store.root / "m" / "last_version").read_bytes() == b"3"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"champion": 3}', b'{"champion": {"version": "1", "x": 1}}'])
def test_broken_aliases_are_refused_and_versions_serve_on(store: ModelStore, content: bytes) -> None:
    publish(store)
    store.set_alias("m", "champion", Alias(version="1"))
    path = store.root / "m" / "aliases.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    with logged_by("app.storage.aliases") as logs:
        for call in (
            lambda: store.resolve("m", "champion"),
            lambda: store.set_alias("m", "other", Alias(version="1")),
            lambda: store.delete("m", "1"),
        ):
            with pytest.raises(CorruptVersion, match="'m'") as caught:
                call()
            assert caught.value.code == "corrupt_aliases"
    assert [line["model"] for line in logs] == ["m"]
    assert store.resolve("m", "1") == store.resolve("m", None) == "1"
    with pytest.raises(VersionNotFound):
        store.resolve("m", "9")
    assert path.read_bytes() == content
    path.write_bytes(whole)
    assert store.resolve("m", "champion") == "1"


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_place_whose_config_is_broken_is_not_taken(store: ModelStore, content: bytes) -> None:
    publish(store)
    (store.root / "m" / "1" / "config.json").write_bytes(content)
    stage(store, "other")
    with pytest.raises(Conflict):
        store.publish("other", "m", "1")


def test_a_newer_format_is_refused_in_a_sentence(store: ModelStore) -> None:
    publish(store, format_version=FORMAT_VERSION + 1)
    with pytest.raises(CorruptVersion, match="upgrade") as caught:
        store.get("m", "1")
    assert caught.value.code == "newer_format"


@pytest.mark.parametrize("found", [None, "1", 1.0, True, [1], {}, 0, -1])
def test_a_format_that_no_release_wrote_is_corrupt(store: ModelStore, found: Any) -> None:
    publish(store, format_version=found)
    with pytest.raises(CorruptVersion, match="version 1 of model 'm' has no whole number as its format_version"):
        store.get("m", "1")


@pytest.mark.parametrize("text", ["9223372036854775807", "18446744073709551615", "1e3", "99999999999999999999999"])
def test_a_huge_format_is_refused(store: ModelStore, text: str) -> None:
    publish(store)
    config = store.root / "m" / "1" / "config.json"
    found = config.read_text()
    assert f'"format_version": {FORMAT_VERSION}' in found
    config.write_text(found.replace(f'"format_version": {FORMAT_VERSION}', f'"format_version": {text}'))
    with pytest.raises(CorruptVersion, match="format"):
        store.get("m", "1")


@pytest.mark.parametrize(
    "config",
    [
        {"created_at": 1e300}, {"created_at": 10**18}, {"created_at": -1}, {"created_at": "now"}, {"created_at": True},
        {"num_parameters": "3"}, {"num_parameters": None}, {"signature": []}, {"spec": None}, {"job_id": 7},
        {"more": nested(300)}, {"spec": {"tags": nested(210)}},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_does_not_say_what_is_told_is_corrupt(store: ModelStore, config: Any) -> None:
    publish(store)
    path = store.root / "m" / "1" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(CorruptVersion, match=r"config\.json"):
        store.get("m", "1")


def test_no_format_at_all_is_corrupt(store: ModelStore) -> None:
    publish(store)
    config = store.root / "m" / "1" / "config.json"
    config.write_text(config.read_text().replace("format_version", "format_vers1on"))
    with pytest.raises(CorruptVersion, match="format_version"):
        store.get("m", "1")


@pytest.mark.parametrize("file", FILES)
def test_files_of_a_version(store: ModelStore, file: str) -> None:
    publish(store)
    store.set_alias("m", "champion", Alias(version="1"))
    with store.open("m", "champion", file) as opened:
        store.delete_alias("m", "champion")
        store.delete("m")
        store.empty_trash(set)
        assert opened.read()
    with pytest.raises(ModelNotFound):
        store.open("m", "1", file)


@pytest.mark.parametrize("file", ["other", "", ".", "..", "../../m/1/config.json", "/etc/passwd", "config.json\0"])
def test_no_other_file_is_ever_given(store: ModelStore, file: str) -> None:
    publish(store)
    with pytest.raises(FileNotInVersion, match=r"config\.json"):
        store.open("m", "1", file)


# ---- aliases


def test_aliases_point_to_versions(store: ModelStore) -> None:
    publish(store)
    publish(store)
    assert store.aliases("m") == {}
    store.set_alias("m", "champion", Alias(version="1"))
    store.set_alias("m", "canary", Alias(version="2"))
    assert store.resolve("m", "champion") == "1"
    store.set_alias("m", "champion", Alias(version="2"))
    assert store.aliases("m") == {"champion": Alias(version="2"), "canary": Alias(version="2")}
    store.delete_alias("m", "canary")
    assert store.aliases("m") == {"champion": Alias(version="2")}
    with pytest.raises(VersionNotFound):
        store.resolve("m", "canary")


def test_aliases_point_only_to_what_is_there(store: ModelStore) -> None:
    publish(store)
    with pytest.raises(VersionNotFound, match="'2'"):
        store.set_alias("m", "champion", Alias(version="2"))
    with pytest.raises(VersionNotFound):
        store.set_alias("m", "champion", Alias(version="champion"))
    with pytest.raises(ModelNotFound):
        store.set_alias("other", "champion", Alias(version="1"))
    with pytest.raises(VersionNotFound, match="'champion'") as caught:
        store.delete_alias("m", "champion")
    assert caught.value.code == "alias_not_found"
    with pytest.raises(ModelNotFound):
        store.delete_alias("other", "champion")


def test_an_alias_is_no_number(store: ModelStore) -> None:
    publish(store)
    with pytest.raises(InvalidInput, match="number"):
        store.set_alias("m", "2", Alias(version="1"))


def test_aliases_are_plain_in_their_file(store: ModelStore) -> None:
    for _ in range(3):
        publish(store)
    both = Alias(version="1", canary=Canary(version="2", percent=5.0), shadow=Shadow(version="3"))
    store.set_alias("m", "plain", Alias(version="1"))
    store.set_alias("m", "both", both)
    assert json.loads((store.root / "m" / "aliases.json").read_bytes()) == {
        "plain": "1",
        "both": {
            "version": "1",
            "canary": {"version": "2", "percent": 5.0},
            "shadow": {"version": "3", "percent": 100.0},
        },
    }
    assert ModelStore(store.root).get_alias("m", "both") == both
    for role, version in (("canary", "2"), ("shadow", "3")):
        with pytest.raises(Conflict, match=f"version {version} is the {role} of the alias 'both'"):
            store.delete("m", version)


def test_another_process_sees_what_has_changed(store: ModelStore) -> None:
    publish(store)
    publish(store)
    other = ModelStore(store.root)
    for version in ("1", "2", "1"):
        store.set_alias("m", "champion", Alias(version=version))
        assert other.resolve("m", "champion") == version


def is_waited_for(store: ModelStore, call: Future[None]) -> bool:
    """Whether somebody waits for the model's aliases, or has not waited."""
    place = f":{(store.root / 'm').stat().st_ino} "
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line and place in line]
    return bool(waiting) or call.done()


def test_no_version_goes_while_an_alias_is_pointed_at_it(store: ModelStore) -> None:
    publish(store)
    with ThreadPoolExecutor(1) as thread:
        with store._aliases.change("m") as aliases:
            call = thread.submit(ModelStore(store.root).delete, "m", "1")
            until(lambda: is_waited_for(store, call))
            aliases["champion"] = Alias(version="1")
        with pytest.raises(Conflict):
            call.result()
    assert store.resolve("m", "champion") == "1"


def test_no_alias_is_pointed_at_a_version_that_goes(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    publish(store)
    trash, calls = ModelStore._trash, list[Future[None]]()

    def trash_meanwhile(self: ModelStore, path: Path) -> None:
        calls.append(thread.submit(ModelStore(store.root).set_alias, "m", "champion", Alias(version="1")))
        until(lambda: is_waited_for(store, calls[0]))
        trash(self, path)

    monkeypatch.setattr(ModelStore, "_trash", trash_meanwhile)
    with ThreadPoolExecutor(1) as thread:
        store.delete("m", "1")
        with pytest.raises(VersionNotFound):
            calls[0].result()
    assert store.aliases("m") == {}


def test_no_change_is_lost_where_many_are_made_at_once(store: ModelStore) -> None:
    publish(store)
    names = [f"alias-{number}" for number in range(24)]
    stores = [ModelStore(store.root) for _ in names]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name, own: own.set_alias("m", name, Alias(version="1")), names, stores))
    assert sorted(store.aliases("m")) == sorted(names)


# ---- deleting


def test_a_version_with_an_alias_stays(store: ModelStore) -> None:
    publish(store)
    publish(store)
    store.set_alias("m", "champion", Alias(version="1"))
    for version in ("1", "champion", None):
        with pytest.raises(Conflict, match="'champion' points to version 1"):
            store.delete("m", version)
    store.delete("m", "2")
    assert store.versions("m") == ["1"]
    store.delete_alias("m", "champion")
    store.delete("m", "1")
    with pytest.raises(ModelNotFound):
        store.versions("m")


def test_a_deleted_version_is_gone_at_once_though_its_files_take_time(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    store.delete("m", "1")

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.storage.models.shutil.rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        store.empty_trash(set)
    monkeypatch.undo()
    assert store.names() == []
    assert len(list((store.root / ".trash").iterdir())) == 1
    store.empty_trash(set)
    assert not list((store.root / ".trash").iterdir())
    store.empty_trash(set)


def test_a_deleted_version_stays_while_it_is_in_use(store: ModelStore) -> None:
    for name, number in (("m", 1), ("m", 2), ("m-1", 1)):
        assert publish(store, name) == str(number)
        store.delete(name, str(number))
    store.empty_trash(lambda: {("m", "2"), ("m-1", "1")})
    assert store.deleted("m", "1") is None
    for name, version in (("m", "2"), ("m-1", "1")):
        found = store.deleted(name, version)
        assert found
        assert (found.model, found.version) == (name, version)
        found.load_tensors()
    store.empty_trash(set)
    assert store.deleted("m", "2") is None


def test_what_comes_into_use_while_the_trash_is_looked_at_stays(store: ModelStore) -> None:
    """A job that was submitted in time, and a deletion after it."""
    publish(store)
    publish(store)
    store.delete("m", "1")

    def then_another_is_deleted() -> set[tuple[str, str]]:
        store.delete("m", "2")
        return set()

    store.empty_trash(then_another_is_deleted)
    assert store.deleted("m", "2")


def test_nothing_is_deleted_that_a_job_is_just_about_to_begin_with(store: ModelStore) -> None:
    publish(store)
    with ThreadPoolExecutor() as pool:
        with store.undeleted("m", "1"):
            deletion = pool.submit(ModelStore(store.root).delete, "m", "1")
            until(lambda: is_waited_for(store, deletion))
            assert store.versions("m") == ["1"]
        deletion.result(10)
    with pytest.raises(ModelNotFound), store.undeleted("m", "1"):
        pass


def test_uploads_that_a_crash_cut_short_are_swept_and_no_others(store: ModelStore) -> None:
    abandoned, running, job = (store.staging(name) for name in ("upload-1", "upload-2", "job"))
    for folder in (abandoned, running, job):
        (folder / "archive").write_bytes(b"x")
        for path in (folder / "archive", folder):
            os.utime(path, (0, 0))
    os.utime(running / "archive")
    store.sweep(time.time() - 60)
    assert not abandoned.exists()
    assert running.exists()
    assert job.exists()


def test_what_a_crash_left_of_a_file_that_was_being_replaced_is_swept(store: ModelStore) -> None:
    publish(store)
    old, new = (store.root / "m" / f".aliases.json.{number}" for number in (1, 2))
    for file in (old, new):
        file.write_bytes(b"{")
    os.utime(old, (0, 0))
    store.sweep(time.time() - 60)
    assert not old.exists()
    assert new.exists()
    assert store.versions("m") == ["1"]


def test_a_file_that_is_just_being_replaced_holds_up_no_sweep(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    temporary = store.root / "m" / ".aliases.json.1"
    temporary.write_bytes(b"{}")

    def then_it_is_in_its_place(path: Path) -> bool:
        path.rename(store.root / "m" / "aliases.json")
        return True

    monkeypatch.setattr(models_module, "is_file", then_it_is_in_its_place)
    store.sweep(time.time() + 60)
    assert (store.root / "m" / "aliases.json").exists()


def test_deleting_what_is_not_there(store: ModelStore) -> None:
    publish(store)
    with pytest.raises(ModelNotFound):
        store.delete("other")
    with pytest.raises(VersionNotFound):
        store.delete("m", "2")


def test_someone_else_may_be_quicker(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    publish(store)
    versions = ModelStore.versions

    def then_another_deletes_one(found: ModelStore, name: str) -> list[str]:
        monkeypatch.undo()
        listed = versions(found, name)
        ModelStore(store.root).delete("m", "1")
        return listed

    monkeypatch.setattr(ModelStore, "versions", then_another_deletes_one)
    store.delete("m")
    assert store.names() == []


def test_a_version_says_what_is_in_it(store: ModelStore) -> None:
    publish(store)
    config = orjson.loads((store.root / "m" / "1" / "config.json").read_bytes())
    assert set(config["digests"]) == set(FILES) - {"config.json"}
    assert all(digest.startswith("sha256:") for digest in config["digests"].values())


# ---- what is planted


def test_what_a_link_leads_to_is_no_model_version_or_file(store: ModelStore, tmp_path: Path) -> None:
    publish(store)
    publish(store, "other")
    outside = tmp_path / "outside"
    shutil.copytree(store.root / "m", outside)
    (store.root / "linked").symlink_to(outside)
    (store.root / "m" / "7").symlink_to(outside / "1")
    assert store.names() == ["m", "other"]
    assert store.versions("m") == ["1"]
    for ask in (store.versions, lambda name: store.get(name, "1"), lambda name: store.delete(name)):
        with pytest.raises(ModelNotFound):
            ask("linked")
    stage(store, "job")
    with pytest.raises(NotADirectoryError, match="is a link"):
        store.publish("job", "linked", "2")
    assert {path.name for path in outside.iterdir()} == {"1", "last_version"}
    assert {path.name for path in (outside / "1").iterdir()} == set(FILES)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("plant", ["link", "pipe", "folder"])
def test_a_version_s_files_are_plain_files(store: ModelStore, tmp_path: Path, file: str, plant: str) -> None:
    publish(store)
    path = store.root / "m" / "1" / file
    path.rename(tmp_path / file)
    if plant == "link":
        path.symlink_to(tmp_path / file)
    elif plant == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(CorruptVersion if file != "config.json" else ModelNotFound):
        store.get("m", "1").load_tensors()
    with pytest.raises(FileNotInVersion if file != "config.json" else ModelNotFound):
        store.open("m", "1", file)


def test_a_config_that_tells_of_other_files_is_corrupt(store: ModelStore, tmp_path: Path) -> None:
    publish(store)
    path = store.root / "m" / "1" / "config.json"
    config = orjson.loads(path.read_bytes())
    config["digests"]["../../../secret"] = "sha256:0"
    path.write_bytes(orjson.dumps(config))
    with pytest.raises(CorruptVersion, match="has no digests"):
        store.get("m", "1")


def test_versions_that_come_and_go_are_seen_at_once_by_those_who_have_looked_before(store: ModelStore) -> None:
    other = ModelStore(store.root)
    for number in range(1, 30):
        publish(store)
        assert other.resolve("m", None) == str(number)
    later = time.time_ns() + 10**10
    os.utime(store.root / "m", ns=(later, later))  # a time that is not over tells nothing
    assert other.resolve("m", None) == "29"
    publish(store)
    os.utime(store.root / "m", ns=(later, later))
    assert other.resolve("m", None) == "30"
    store.delete("m", "30")
    os.utime(store.root / "m", (1, 1))  # from now on, a look at the folder's time is enough
    assert other.resolve("m", None) == "29"
    store.delete("m", "29")
    assert other.resolve("m", None) == "28"
    with pytest.raises(VersionNotFound):
        other.resolve("m", "29")
    store.delete("m")
    with pytest.raises(ModelNotFound):
        other.resolve("m", None)
