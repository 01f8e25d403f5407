"""How deeply JSON is nested: what can be read (orjson takes 1024 levels) can't always be written again (254)."""

from typing import Any

import orjson

_ROOM = 50  # levels that an answer may have around a value


def can_be_written(value: Any) -> bool:
    """Whether a value out of JSON can be a part of an answer in JSON."""
    for _ in range(_ROOM):
        value = [value]
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True
