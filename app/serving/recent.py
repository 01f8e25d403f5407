"""Which version answers, found out a moment ago: beside a small prediction, a look at a model's folder takes long."""

import time
import weakref

from app.serving.served_model import ServedModel
from app.storage.models import ModelStore

SECONDS = 0.001

Key = tuple[str, str | None]


class Recent:
    """What this process changes in the store is seen at once, what others do after `SECONDS`. Keeps nothing in memory.

    Used on the event loop.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._found: dict[Key, weakref.ref[ServedModel]] = {}
        self._num_changes = 0
        self._until = 0.0

    def get(self, key: Key) -> ServedModel | None:
        if self._num_changes != self._store.num_changes or time.monotonic() > self._until:
            self._found.clear()
            self._num_changes = self._store.num_changes  # as it is before anybody looks
            self._until = time.monotonic() + SECONDS
        found = self._found.get(key)
        return None if found is None else found()

    def add(self, key: Key, found: ServedModel) -> None:
        """What came of a look after `get` knew nothing."""
        self._found[key] = weakref.ref(found)
