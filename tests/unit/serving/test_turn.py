"""What requests of one turn of the event loop share."""

import asyncio

from app.serving.turn import ThisTurn


def test_a_turn_forgets_what_the_one_before_has_found() -> None:
    async def main() -> list[dict[str, int]]:
        found = ThisTurn[str, int]()
        seen = []
        for value in (1, 2):
            found["a"] = found["b"] = value
            seen.append(dict(found))
            await asyncio.sleep(0)
            seen.append(dict(found))
        return seen

    assert asyncio.run(main()) == [{"a": 1, "b": 1}, {}, {"a": 2, "b": 2}, {}]
