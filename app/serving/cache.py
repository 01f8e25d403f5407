"""Which versions are in memory: loaded on first use, the least recently used leave when the bytes run out."""

import threading
from collections import OrderedDict

from app.serving.served_model import ServedModel
from app.storage.models import ModelStore

Key = tuple[str, str]


class ModelCache:
    """Safe to share between threads; a version is loaded by one of them while the others wait for it."""

    def __init__(self, store: ModelStore, *, max_bytes: int, device: str) -> None:
        self.store, self._max_bytes, self._device = store, max_bytes, device
        self._loaded: OrderedDict[Key, ServedModel] = OrderedDict()
        self._locks: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()

    def peek(self, name: str, version: str | None) -> ServedModel | None:
        """The version that `get` would give, if it is in memory; costs a few stats of the file system."""
        return self._touch((name, self.store.resolve(name, version)))

    def get(self, name: str, version: str | None) -> ServedModel:
        """A version by number, alias, or None for the newest; loads it if need be.

        Raises:
            ModelNotFound, VersionNotFound, CorruptVersion
        """
        key = (name, self.store.resolve(name, version))
        if found := self._touch(key):
            return found
        with self._lock:
            loading = self._locks.setdefault(key, threading.Lock())
        with loading:
            if found := self._touch(key):
                return found
            loaded = ServedModel.load(self.store.get(*key), self._device)
            with self._lock:
                self._loaded[key] = loaded
                self._locks.pop(key, None)
                self._evict()
            return loaded

    def unload(self, name: str, version: str | None = None) -> None:
        """Forget a version, or all of a model's; requests in flight keep theirs until they are answered."""
        with self._lock:
            for key in [key for key in self._loaded if key[0] == name and version in (None, key[1])]:
                del self._loaded[key]

    def _touch(self, key: Key) -> ServedModel | None:
        with self._lock:
            if found := self._loaded.get(key):
                self._loaded.move_to_end(key)
            return found

    def _evict(self) -> None:
        while len(self._loaded) > 1 and sum(model.num_bytes for model in self._loaded.values()) > self._max_bytes:
            self._loaded.popitem(last=False)
