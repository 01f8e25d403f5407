"""What all specs share: frozen, strict, no unknown fields, no NaN or infinity."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints

T = TypeVar("T")

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A model's, dataset's or alias's name."""

Items = Annotated[tuple[T, ...], Strict(False)]
"""A JSON array as a tuple, so that a spec stays immutable."""

PositiveInt = Annotated[int, Field(ge=1, le=2**53)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**53)]
MAX_FLOAT = 1e38  # what torch computes with is float32, and refuses what is none
PositiveFloat = Annotated[float, Field(gt=0, le=MAX_FLOAT)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=MAX_FLOAT)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
