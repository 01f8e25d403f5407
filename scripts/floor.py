"""The floor of prediction: a bare ASGI app that parses rows and answers as many numbers, with no model behind it.

`uvicorn scripts.floor:app` is as fast as Python answers over HTTP; `scripts/bench serving` measures against it.
"""

from typing import Any

import orjson


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    rows = orjson.loads(body)["inputs"] if body else []
    answer = orjson.dumps({"predictions": [0.12345678] * len(rows)})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
