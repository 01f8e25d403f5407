"""Which fields an object somewhere in a body may have, for whoever wrote one that there isn't."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

Model = type[BaseModel]


def fields_at(body_type: Any, path: Sequence[str | int]) -> list[str]:
    """Names of the fields of what a pydantic error's location leads to: fields, places in lists, tags of unions."""
    return list(dict.fromkeys(name for model in _models_at(body_type, path) for name in model.model_fields))


def fields_beside(body_type: Any, path: Sequence[str | int]) -> list[str]:
    """Names of the fields that may stand beside one, which the location leads to, in any form of their object."""
    *places, name = path
    forms = [model.model_fields for model in _models_at(body_type, places) if name in model.model_fields]
    return list(dict.fromkeys(other for fields in forms for other in fields if other != name))


def types_at(body_type: Any, path: Sequence[str | int]) -> list[str]:
    """What may be the `type` of an object there."""
    fields = [model.model_fields["type"] for model in _models_at(body_type, path) if "type" in model.model_fields]
    return list(dict.fromkeys(tag for field in fields for tag in get_args(field.annotation)))


def fields_below(body_type: Any) -> dict[str, list[str]]:
    """For each name of a field within a field of the body, where it is: `patience` is in `stop` and in `schedule`."""
    found: dict[str, list[str]] = {}
    for body in _models(body_type):
        for outer in body.model_fields:
            for inner in fields_at(body, [outer]):
                found.setdefault(inner, []).append(f"{outer}.{inner}")
    return found


def _models_at(body_type: Any, path: Sequence[str | int]) -> list[Model]:
    models = list(_models(body_type))
    for part in path:
        inner = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if any(map(_may_be_dict, inner)):
            return []  # its names are the user's own
        models = [model for kind in inner for model in _models(kind)] or _tagged(models, part)
    return models


def _may_be_dict(kind: Any) -> bool:
    return get_origin(kind) is dict or any(map(_may_be_dict, get_args(kind)))


def _models(kind: Any) -> Iterator[Model]:
    """The classes that an annotation names."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from _models(inner)


def _tagged(models: list[Model], tag: str | int) -> list[Model]:
    """Those whose `type` may be the tag; all where it is no such tag."""
    fields = {model: model.model_fields.get("type") for model in models}
    return [model for model, field in fields.items() if field and tag in get_args(field.annotation)] or models
