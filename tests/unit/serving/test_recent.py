"""Which version answered a moment ago is forgotten in time."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.serving import recent
from app.serving.recent import Recent
from app.serving.served_model import ServedModel
from app.specs.alias import Alias
from app.storage.models import ModelStore
from tests.published import numbers_model, publish


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path)
    for _ in range(3):
        publish(tmp_path, "m", numbers_model())
    return store


def served() -> ServedModel:
    return ServedModel("m", "3", numbers_model(), 0)


def publish_one_more(store: ModelStore) -> None:
    shutil.copytree(store.root / "m" / "3", store.staging("job"), dirs_exist_ok=True)
    store.publish("job", "m", "4")


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.delete("m", "3"),
        lambda store: store.mark_unloaded("m", True),
        lambda store: store.set_alias("m", "live", store.get_alias("m", "old")),
        lambda store: store.delete_alias("m", "old"),
        publish_one_more,
    ],
    ids=["deleted", "unloaded", "alias", "no alias", "published"],
)
def test_a_change_by_this_process_is_seen_at_once(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[ModelStore], None]
) -> None:
    monkeypatch.setattr(recent, "SECONDS", 1000.0)
    store.set_alias("m", "old", Alias(version="1"))
    known, model = Recent(store), served()
    assert known.get(("m", None)) is None
    known.add(("m", None), model)
    assert known.get(("m", None)) is model
    change(store)
    assert known.get(("m", None)) is None


def test_what_others_may_have_changed_is_looked_at_again_soon(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "SECONDS", -1.0)
    known, model = Recent(store), served()
    known.get(("m", None))
    known.add(("m", None), model)
    assert known.get(("m", None)) is None


def test_what_nobody_else_keeps_leaves_the_memory(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "SECONDS", 1000.0)
    known = Recent(store)
    known.get(("m", None))
    known.add(("m", None), served())
    gc.collect()
    assert known.get(("m", None)) is None
