"""What passes before any route sees it: to whom it was sent, by which page, how often."""

import pytest

from app.api.auth import Keys
from app.api.guard import Guard
from app.api.rate_limit import RateLimit
from app.errors import Forbidden, Overloaded


async def nothing(*_: object) -> None:
    raise AssertionError("only checks are asked for")


def check(
    method: str = "POST",
    path: str = "/predict",
    *,
    keys: str = "",
    hosts: str = "",
    origins: str = "",
    limit: RateLimit | None = None,
    **headers: str,
) -> str:
    """The code of what is said against a request, or nothing."""
    guard = Guard(
        nothing,
        Keys(keys),
        allowed_hosts=hosts.split(),
        allowed_origins=origins.split(),
        limit=limit or RateLimit(0),
    )
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    scope = {"method": method, "path": path, "headers": list(given.items()), "server": ("127.0.0.1", 8000)}
    try:
        guard.check(scope, given)
    except (Forbidden, Overloaded) as error:
        return error.code
    return ""


# ---- to whom

STRANGERS = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil", "[evil]:8000",
    "testserver", "127.0.0.1@evil.example:80",
]  # fmt: skip


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "192.168.1.5",
                                  "app.localhost:9000", ""])  # fmt: skip
def test_this_machine_s_own_names_are_always_good(host: str) -> None:
    assert check(host=host) == ""
    assert check(host=host, hosts="gradserve.example") == ""


@pytest.mark.parametrize("host", STRANGERS)
def test_a_name_that_was_bound_to_this_address_gets_no_answer(host: str) -> None:
    for method, path in [("POST", "/predict"), ("GET", "/docs"), ("GET", "/healthz"), ("OPTIONS", "/train")]:
        assert check(method, path, host=host) == "host_not_allowed"


def test_with_keys_every_name_is_good_unless_names_are_given() -> None:
    assert check(host="gradserve.example", keys="k:read") == ""
    assert check(host="gradserve.example", keys="k:read", hosts="other.example") == "host_not_allowed"


@pytest.mark.parametrize(
    ("host", "refused"),
    [("one.example:80", False), ("ONE.example", False), ("a.two.example", False), ("two.example", True),
     ("a.b.two.example", True), ("three.example", True)],
)  # fmt: skip
def test_names_that_are_given(host: str, refused: bool) -> None:
    assert check(host=host, hosts="one.example *.two.example") == ("host_not_allowed" if refused else "")
    assert check(host=host, hosts="*") == ""


# ---- by which page

PAGE = {"origin": "https://evil.example", "sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"}


@pytest.mark.parametrize(
    "headers",
    [
        PAGE,
        PAGE | {"sec_fetch_site": "same-site", "origin": "http://localhost:3000"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"},
        {"origin": "https://evil.example"},  # a browser of before Fetch Metadata
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": "localhost:8000"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("keys", ["", "k:admin"])
def test_another_site_s_page_is_refused(method: str, keys: str, headers: dict[str, str]) -> None:
    assert check(method, host="localhost:8000", keys=keys, **headers) == "cross_site"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_form_of_another_site_is_refused(method: str) -> None:
    form = {"origin": "https://evil.example", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert check(method, host="localhost:8000", sec_fetch_site="cross-site", **form) == "cross_site"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors", "origin": "http://localhost:8000"},
        {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"},
        {"origin": "http://localhost:8000"},
        {"origin": "https://localhost:8000"},
    ],
)
def test_programs_and_our_own_pages_pass(headers: dict[str, str]) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert check(method, host="localhost:8000", **headers) == ""


def test_a_link_from_anywhere_leads_here() -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert check("GET", "/docs", host="localhost:8000", **link) == ""


def test_pages_of_allowed_origins_pass() -> None:
    refused_origins = {"http://app.example", "https://app.example:444", "https://app.example.evil"}
    for origin in {"https://app.example", "HTTPS://APP.EXAMPLE", *refused_origins}:
        refused = origin in refused_origins
        headers = PAGE | {"origin": origin}
        assert check(host="localhost", origins="https://app.example", **headers) == ("cross_site" if refused else "")
        assert check(host="localhost", origins="*", **headers) == ""


# ---- how often


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_has_bursts_and_gives_back_what_time_brings() -> None:
    clock = Clock()
    limit = RateLimit(2, clock=clock)
    assert [limit.take("a") for _ in range(6)] == [0, 0, 0, 0, 1, 1]
    assert limit.take("b") == 0
    clock.now += 0.5
    assert [limit.take("a") for _ in range(2)] == [0, 1]
    clock.now += 1000
    assert [limit.take("a") for _ in range(5)] == [0, 0, 0, 0, 1]


def test_a_slow_rate_says_how_long_to_wait() -> None:
    clock = Clock()
    limit = RateLimit(0.1, clock=clock)
    assert [limit.take("a") for _ in range(2)] == [0, 10]
    clock.now += 9
    assert limit.take("a") == 1
    clock.now += 1
    assert limit.take("a") == 0


def test_one_key_s_rate_is_not_another_s() -> None:
    limit = RateLimit(0.5, clock=Clock())
    asked = [check(keys="a:read,b:read", limit=limit, authorization=f"Bearer {key}") for key in ("a", "a", "b")]
    assert asked == ["", "rate_limited", ""]


def test_who_has_no_key_takes_nothing_from_a_rate_and_health_is_free() -> None:
    limit = RateLimit(0.5, clock=Clock())
    for _ in range(3):
        assert check(keys="a:read", limit=limit, authorization="Bearer wrong") == ""
        assert check("GET", "/healthz", keys="a:read", limit=limit, authorization="Bearer a") == ""
    assert check(keys="a:read", limit=limit, authorization="Bearer a") == ""
