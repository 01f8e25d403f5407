"""Which versions are in memory: loaded on first use, the least recently used leave when the bytes run out.

Where no version is asked for, the newest that can be loaded answers: one whose files are broken hides no other.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import structlog

from app.errors import CorruptVersion, VersionNotFound
from app.learning.devices import free_cards
from app.serving.served_model import ServedModel
from app.storage.counters import Counters
from app.storage.files import stamp_of
from app.storage.models import ModelStore
from app.storage.version import FILES

MEMORY = "gradserve_model_memory_bytes"
FAULT_SECONDS = 10.0  # before a broken version whose files look the same is read again
Key = tuple[str, str]
Stamp = tuple[object, ...]

log = structlog.get_logger("gradserve.models")


class Fault(NamedTuple):
    """Why a version can't be loaded: found out at a great price, and remembered while its files look the same."""

    stamp: Stamp
    until: float
    code: str
    detail: str


class ModelCache:
    """Safe to share between threads; a version is loaded by one of them while the others wait for it."""

    def __init__(self, store: ModelStore, counters: Counters, *, max_bytes: int, device: str) -> None:
        self.store, self._counters, self._max_bytes, self._device = store, counters, max_bytes, device
        self._loaded: OrderedDict[Key, ServedModel] = OrderedDict()
        self._faults: dict[Key, Fault] = {}
        self._locks: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()
        self._left_a_card = False

    def peek(self, name: str, version: str | None) -> ServedModel | None:
        """The version that `get` would give, if it is in memory; costs a few stats of the file system."""
        for key in self._keys(name, version):
            if (found := self._touch(key)) or self._known_fault(key) is None:
                return found
        return None

    def get(self, name: str, version: str | None) -> ServedModel:
        """A version by number, alias, or None for the newest that can be loaded; loads it if need be.

        Raises:
            ModelNotFound, VersionNotFound, CorruptVersion
        """
        errors: list[CorruptVersion | VersionNotFound] = []
        for key in self._keys(name, version):
            try:
                return self._get(key)
            except (CorruptVersion, VersionNotFound) as error:  # not found: it was deleted just now
                errors.append(error)
        raise errors[0]

    def _keys(self, name: str, version: str | None) -> Iterator[Key]:
        """What answers a request: the first of these that can be loaded, which is nearly always the first of all."""
        if version is None:
            for number in reversed(self.store.versions(name)):
                yield name, number
        else:
            yield name, self.store.resolve(name, version)

    def _get(self, key: Key) -> ServedModel:
        if found := self._touch(key):
            return found
        with self._lock:
            loading = self._locks.setdefault(key, threading.Lock())
        with loading:
            if found := self._touch(key):
                return found
            loaded = self._load(key)
            with self._lock:
                self._loaded[key] = loaded
                self._tell(loaded, loaded.num_bytes)
                self._locks.pop(key, None)
                self._evict()
            self.store.mark_unloaded(key[0], False)
            return loaded

    def _load(self, key: Key) -> ServedModel:
        if fault := self._known_fault(key):
            raise CorruptVersion(fault.detail, code=fault.code)
        stamp = self._stamp(key)
        try:
            with self.store.reading(*key):
                loaded = ServedModel.load(self.store.get(*key), self._device)
        except CorruptVersion as error:
            self._remember(key, Fault(stamp, time.monotonic() + FAULT_SECONDS, error.code, error.detail))
            raise
        self._faults.pop(key, None)
        return loaded

    # ---- what can't be loaded

    def _known_fault(self, key: Key) -> Fault | None:
        fault = self._faults.get(key)
        if fault is None or time.monotonic() > fault.until or fault.stamp != self._stamp(key):
            return None
        return fault

    def _remember(self, key: Key, fault: Fault) -> None:
        before = self._faults.get(key)
        self._faults[key] = fault
        with self._lock:  # so that one thread at a time counts
            self._counters.values[self._counters.cell("gradserve_load_failures_total", *key)] += 1
        if before is None or before.stamp != fault.stamp:
            log.error("a version can't be loaded", model=key[0], version=key[1], code=fault.code, detail=fault.detail)

    def _stamp(self, key: Key) -> Stamp:
        """Another one where a file is another."""
        return tuple(stamp_of(self.store.root / key[0] / key[1] / file) for file in FILES)

    # ---- what leaves the memory; requests in flight keep theirs until they are answered

    def unload(self, name: str) -> None:
        """Forget a model's versions, in all processes."""
        self.store.mark_unloaded(name, True)
        self.refresh()

    def refresh(self) -> None:
        """Forget what was deleted, or unloaded by another process, and give back the memory of cards that this and
        evictions have left. Is called from time to time.
        """
        with self._lock:
            keys = list(self._loaded)
        unloaded = {name for name in {name for name, _ in keys} if self.store.is_unloaded(name)}
        self._forget(key for key in keys if key[0] in unloaded or not self.store.has(*key))
        if self._left_a_card:
            self._left_a_card = False
            free_cards()

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            with self._lock:
                if found := self._loaded.pop(key, None):
                    self._tell(found, 0)

    def _evict(self) -> None:
        while len(self._loaded) > 1 and sum(model.held_bytes for model in self._loaded.values()) > self._max_bytes:
            _, oldest = self._loaded.popitem(last=False)
            self._tell(oldest, 0)

    def _tell(self, model: ServedModel, num_bytes: int) -> None:
        self._left_a_card |= not num_bytes and model.device != "cpu"
        self._counters.values[self._counters.cell(MEMORY, model.name, model.version, model.device, gauge=True)] = (
            num_bytes
        )

    def _touch(self, key: Key) -> ServedModel | None:
        with self._lock:
            if found := self._loaded.get(key):
                self._loaded.move_to_end(key)
            return found
