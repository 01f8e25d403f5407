"""Which versions are in memory: loaded once, bounded in bytes, never one that is not what was published."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import polars as pl
import pytest
import torch

from app.errors import CorruptVersion, ModelNotFound, VersionNotFound
from app.learning.model import Model
from app.serving.cache import MEMORY, ModelCache
from app.serving.served_model import ServedModel
from app.specs.alias import Alias
from app.storage.counters import Counters
from app.storage.models import ModelStore
from app.storage.version import Version
from tests.logs import logged_by
from tests.samples import publish, untrained

FRAME = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.5, 1.5, 2.75]})
MODEL = untrained(FRAME, network={"hidden_features": [8]}, init={"weight": "normal"})


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def cache_of(store: ModelStore, max_models: float = 100) -> ModelCache:
    publish(store, MODEL, "measure")
    num_bytes = ServedModel.load(store.get("measure", "1"), "cpu").held_bytes
    counters = Counters(store.root.parent / "counters")
    return ModelCache(store, counters, max_bytes=int(num_bytes * max_models), device="cpu")


def memory_of(store: ModelStore) -> dict[str, float]:
    """What all processes say that they hold, by the model's name."""
    gauges = Counters(store.root.parent / "counters").read().gauges
    return {key[1]: value for found in gauges.values() for key, value in found.items() if key[0] == MEMORY}


def tamper(store: ModelStore, name: str, version: str) -> None:
    path = store.root / name / version / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_version_is_loaded_on_first_use_and_stays(store: ModelStore) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    assert cache.peek("m", None) is None
    found = cache.get("m", None)
    assert (found.name, found.version) == ("m", "1")
    assert cache.peek("m", "1") is found
    assert cache.get("m", "1") is found
    encoded = MODEL.features.transform(FRAME)
    assert torch.equal(found.model.predict(encoded), MODEL.predict(encoded))


def test_names_of_versions_are_resolved_anew_each_time(store: ModelStore) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    store.set_alias("m", "champion", Alias(version="1"))
    first = cache.get("m", None)
    assert cache.get("m", "champion") is first
    publish(store, MODEL)
    assert cache.get("m", None).version == "2"
    assert cache.get("m", "champion") is first
    store.set_alias("m", "champion", Alias(version="2"))
    assert cache.get("m", "champion").version == "2"


def test_what_is_not_there_is_not_found(store: ModelStore) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    for call in (cache.get, cache.peek):
        with pytest.raises(ModelNotFound):
            call("other", None)
        with pytest.raises(VersionNotFound):
            call("m", "2")


def test_a_deleted_version_is_served_no_more(store: ModelStore) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    cache.get("m", "1")
    store.delete("m", "1")
    with pytest.raises(ModelNotFound):
        cache.get("m", "1")


def test_the_least_recently_used_leave_when_the_bytes_run_out(store: ModelStore) -> None:
    cache = cache_of(store, max_models=2.5)
    for name in "abc":
        publish(store, MODEL, name)
    a, _ = cache.get("a", None), cache.get("b", None)
    assert cache.get("a", None) is a
    cache.get("c", None)
    assert cache.peek("b", None) is None
    assert cache.peek("a", None) is a
    assert cache.peek("c", None) is not None


def test_a_model_larger_than_the_cache_is_served_alone(store: ModelStore) -> None:
    cache = cache_of(store, max_models=0.5)
    publish(store, MODEL, "a")
    publish(store, MODEL, "b")
    cache.get("a", None)
    assert cache.peek("a", None) is not None
    cache.get("b", None)
    assert cache.peek("a", None) is None
    assert cache.peek("b", None) is not None


def test_unloading_is_seen_by_all_processes(store: ModelStore) -> None:
    cache, other = cache_of(store), cache_of(store)
    for _ in range(2):
        publish(store, MODEL)
    kept = [each.get("m", version) for each in (cache, other) for version in ("1", "2")]
    stays = other.get("measure", "1")
    cache.unload("m")
    assert store.is_unloaded("m")
    other.refresh()
    for each in (cache, other):
        assert [each.peek("m", version) for version in ("1", "2")] == [None] * 2
    assert other.peek("measure", "1") is stays
    assert cache.get("m", "1") not in kept
    assert not store.is_unloaded("m")


def test_what_was_deleted_leaves_the_memory(store: ModelStore) -> None:
    publish(store, MODEL, "stays")
    publish(store, MODEL, "goes")
    cache = cache_of(store)
    for name in ("stays", "goes"):
        cache.get(name, None)
    assert {name for name, num_bytes in memory_of(store).items() if num_bytes} == {"stays", "goes"}
    store.delete("goes")
    cache.refresh()
    assert {name for name, num_bytes in memory_of(store).items() if num_bytes} == {"stays"}


def test_a_version_is_warm_before_it_answers(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has gone through the network, and its weights are the file itself."""
    cache, passes = cache_of(store), []
    predict = Model.predict

    def watched(model: Model, inputs: torch.Tensor) -> torch.Tensor:
        passes.append(len(inputs))
        return predict(model, inputs)

    monkeypatch.setattr(Model, "predict", watched)
    publish(store, MODEL)
    found = cache.get("m", None)
    assert passes == [1]
    file = str(store.root / "m" / "1" / "model.safetensors")
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    for parameter in found.model.network.parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in ranges)


def test_memory_is_given_back(store: ModelStore) -> None:
    """Nobody holds on to a version that has left."""
    cache = cache_of(store)
    publish(store, MODEL)
    gone = weakref.ref(cache.get("m", None).model.network)
    cache.unload("m")
    gc.collect()
    assert gone() is None


def test_a_corrupt_version_is_refused_and_the_one_before_answers_for_the_newest(store: ModelStore) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    old = cache.get("m", None)
    publish(store, MODEL)
    tamper(store, "m", "2")
    for _ in range(2):
        with pytest.raises(CorruptVersion, match=r"model\.safetensors of version 2"):
            cache.get("m", "2")
        assert cache.get("m", None) is cache.peek("m", None) is old
    assert cache.peek("m", "2") is None
    assert cache.get("m", "1") is old


def failures(cache: ModelCache) -> dict[str, float]:
    """How often versions could not be loaded, by number."""
    counts = cache._counters.read().counts
    return {key[2]: count for key, count in counts.items() if key[0] == "gradserve_load_failures_total"}


def test_what_is_broken_is_read_and_told_of_once_while_it_looks_the_same(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(store)
    for _ in range(3):
        publish(store, MODEL)
    for version in "23":
        tamper(store, "m", version)
    with logged_by("app.serving.cache") as logs:
        for _ in range(5):
            assert cache.get("m", None).version == "1"
    assert [(line["log_level"], line["version"]) for line in logs] == [("error", "3"), ("error", "2")]
    assert all("model.safetensors" in line["detail"] for line in logs)
    assert failures(cache) == {"2": 1, "3": 1}
    monkeypatch.setattr("app.serving.cache.FAULT_SECONDS", -1.0)  # and is looked at again after a while, as disks err
    tamper(store, "m", "3")
    assert cache.get("m", None).version == "3"
    tamper(store, "m", "3")
    assert cache.get("m", "3").version == "3", "what is in memory serves on"


def test_the_error_is_that_of_the_newest_where_none_can_be_loaded(store: ModelStore) -> None:
    cache = cache_of(store)
    for version in "12":
        publish(store, MODEL)
        tamper(store, "m", version)
    with pytest.raises(CorruptVersion, match="version 2"):
        cache.get("m", None)
    assert cache.peek("m", None) is None


def test_a_version_that_is_deleted_while_it_is_loaded_is_not_found(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(store)
    for _ in range(2):
        publish(store, MODEL)
    load = Version.load_tensors

    def deleted_first(version: Version) -> dict[str, object]:
        if version.version == "2":
            store.delete("m", "2")
        return load(version)

    monkeypatch.setattr(Version, "load_tensors", deleted_first)
    assert cache.get("m", None).version == "1"
    with pytest.raises(VersionNotFound):
        cache.get("m", "2")
    assert failures(cache) == {}


@pytest.mark.parametrize("missing", ["signature", "features", "targets", "spec", "digests", "everything"])
def test_a_config_that_says_too_little_is_corrupt(store: ModelStore, missing: str) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    path = store.root / "m" / "1" / "config.json"
    config = orjson.loads(path.read_bytes())
    config.pop(missing, None)
    path.write_bytes(orjson.dumps([] if missing == "everything" else config))
    with pytest.raises(CorruptVersion, match="version 1 of model 'm'"):
        cache.get("m", None)


def test_a_config_of_another_network_is_corrupt(store: ModelStore) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    path = store.root / "m" / "1" / "config.json"
    config = orjson.loads(path.read_bytes())
    config["spec"]["network"]["layers"][0]["out_features"] = 9
    path.write_bytes(orjson.dumps(config))
    with pytest.raises(CorruptVersion, match="version 1 of model 'm'"):
        cache.get("m", None)


def test_what_was_repaired_is_loaded(store: ModelStore) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    tamper(store, "m", "1")
    with pytest.raises(CorruptVersion):
        cache.get("m", None)
    tamper(store, "m", "1")
    assert cache.get("m", None).version == "1"


def test_threads_that_want_the_same_version_load_it_once(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(store)
    publish(store, MODEL)
    loads, together = [], threading.Barrier(8)
    load = Version.load_tensors

    def counted(version: Version) -> dict[str, object]:
        loads.append(version.version)
        return load(version)

    def get(_: int) -> ServedModel:
        together.wait(20)
        return cache.get("m", None)

    monkeypatch.setattr(Version, "load_tensors", counted)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(get, range(8)))
    assert loads == ["1"]
    assert all(model is found[0] for model in found)
