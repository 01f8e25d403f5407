"""Lists on the wire."""

from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=200)]


class Page(BaseModel, Generic[T]):
    """Part of a list; `next` is the `after` of the next page, null at the end."""

    data: list[T]
    next: str | None = None


def page_of(data: list[T], *, more: bool, cursor: Callable[[T], str]) -> Page[T]:
    return Page(data=data, next=cursor(data[-1]) if data and more else None)
