"""Parameters of the query: a misspelt one is told, where leaving it out would do something else than was asked."""

from fastapi import Request

from app.api.meant import instead
from app.errors import Fault, InvalidInput


async def known_parameters(request: Request) -> None:
    """A dependency that lets a request pass whose route has all of its parameters.

    Raises:
        InvalidInput
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    faults = [
        Fault(f"?{name}", f"there is no parameter {name!r}; {instead(name, known)}")
        for name in request.query_params
        if name not in known
    ]
    if faults:
        raise InvalidInput(faults[0].detail, faults)
