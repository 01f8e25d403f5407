"""An alias: a name for a version, and what else happens to the requests that use it."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from app.specs.base import Spec

VersionNumber = Annotated[str, Field(min_length=1, max_length=19, examples=["2"])]
Percent = Annotated[float, Field(ge=0, le=100)]


class Canary(Spec):
    """A second version that answers a share of the requests."""

    version: VersionNumber
    percent: Percent


class Shadow(Spec):
    """A version that is asked as well, after the answer and for a share of the requests, and only compared."""

    version: VersionNumber
    percent: Percent = 100.0


class Alias(Spec):
    version: VersionNumber
    canary: Canary | None = None
    shadow: Shadow | None = None

    @model_validator(mode="after")
    def _are_different(self) -> "Alias":
        for role, version in self.others():
            if version == self.version:
                raise ValueError(f"the {role} must be another version than the one that it is measured against")
        return self

    def others(self) -> Iterator[tuple[str, str]]:
        """The role and the version of each that is named beside the one that the alias points to."""
        if self.canary:
            yield "canary", self.canary.version
        if self.shadow:
            yield "shadow", self.shadow.version
