"""What is counted of HTTP requests; used on the event loop."""

from collections.abc import Collection

from app.storage.counters import Counters, Histogram

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class HttpCounts:
    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._seconds: dict[str, Histogram] = {}

    def add(self, method: str, route: str, status: int, seconds: Collection[float]) -> None:
        """Requests were answered; `seconds` of each, to the end of the answer."""
        counters = self._counters
        method = method if method in METHODS else "other"  # there are dozens
        counters.values[counters.cell("gradserve_http_requests_total", method, route, str(status))] += len(seconds)
        if route not in self._seconds:
            self._seconds[route] = Histogram(counters, "gradserve_http_request_seconds", route)
        self._seconds[route].observe(*seconds)
