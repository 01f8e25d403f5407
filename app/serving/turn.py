"""What holds for as long as one turn of the event loop takes."""

import asyncio
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ThisTurn(dict[K, V]):
    """Is empty again at the next turn: requests that came in together share what was found out for one of them."""

    def __setitem__(self, key: K, value: V) -> None:
        if not self:
            asyncio.get_running_loop().call_soon(self.clear)
        super().__setitem__(key, value)
