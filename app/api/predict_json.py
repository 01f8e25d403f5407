"""`POST /predict` with a JSON body, as `app.api.ahead` answers it."""

from functools import partial

from fastapi import Response
from fastapi.routing import APIRoute

from app.api import predict
from app.api.ahead import SMALL_BYTES, Post, Shortcut
from app.api.json_route import parse_json, validated
from app.api.patience import unless_gone
from app.errors import Unparseable
from app.serving import json_rows
from app.serving.predictor import in_time

_JSON = b"application/json"


def is_json(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-type", b"").partition(b";")[0] == _JSON


async def _answer(post: Post) -> Response:
    key = post.headers.get("x-routing-key")
    if len(post.body) > SMALL_BYTES:
        content = await _answer_large(post, key)
    else:
        asked = validated(predict.PredictRequest, parse_json(post.body))
        content = await predict.answer(post.services, asked, key, post.receive)
    return Response(content, media_type="application/json")


async def _answer_large(post: Post, key: str | None) -> bytes:
    """By way of threads, and, where the rows are found without a parse of it all, a part of the body at a time."""
    services, predictor, body = post.services, post.services.predictor, post.body
    found = await predictor.in_thread(json_rows.cut, body)
    if found is None:
        asked = validated(predict.PredictRequest, await predictor.in_thread(parse_json, body))
        return await predict.answer(services, asked, key, post.receive)
    asked = validated(predict.PredictRequest, found.head | {"inputs": []})
    request = await predictor.request(asked.model, asked.version, key)
    model = request.model
    encode = partial(json_rows.encode_parts, rows=found.rows, max_rows=services.settings.max_rows)
    with predictor.statistics.measured(request):
        async with in_time(asked.timeout_seconds):
            with request.part("compute_input"):
                try:
                    encoded = await predictor.in_thread(encode, model)
                except Unparseable:  # or other brackets follow those of the rows: what is wrong, a full parse says
                    validated(predict.PredictRequest, await predictor.in_thread(parse_json, body))
                    raise
            values = await unless_gone(post.receive, predictor.predict_encoded(request, encoded, encode))
        with request.part("compute_output"):
            return await predictor.in_thread(lambda: json_rows.dump(model.answer(values)))


SHORTCUTS = [
    Shortcut(route, lambda _parts, headers: is_json(headers), _answer)
    for route in predict.router.routes
    if isinstance(route, APIRoute)
]
