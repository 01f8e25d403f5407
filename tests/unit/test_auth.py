"""Keys, and who needs none."""

import pytest

from app.api.auth import Keys, authorize, is_loopback
from app.errors import Forbidden, Unauthenticated


def test_keys_have_their_scopes() -> None:
    keys = Keys(" one:read+predict , two:admin,with:colon:train ,")
    assert keys.scopes_of("one") == {"read", "predict"}
    assert keys.scopes_of("two") == {"admin"}
    assert keys.scopes_of("with:colon") == {"train"}
    assert keys.scopes_of("three") is None
    assert keys.scopes_of("") is None
    assert keys
    assert not Keys("")
    assert not Keys(" , ")


def test_keys_are_kept_as_hashes() -> None:
    assert "secret" not in repr(vars(Keys("secret:read")))


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), (None, True),
        ("::ffff:127.0.0.1", True), ("192.168.1.5", False), ("0.0.0.0", False), ("::", False), ("8.8.8.8", False),
        ("example.org", False), ("", False),
    ],
)  # fmt: skip
def test_which_addresses_are_this_machines_own(host: str | None, own: bool) -> None:
    assert is_loopback(host) is own


def test_without_keys_only_this_machine_is_let_in() -> None:
    authorize(Keys(""), "admin", None, ("127.0.0.1", 8000))
    authorize(Keys(""), "admin", None, None)
    with pytest.raises(Unauthenticated, match="GRADSERVE_API_KEYS"):
        authorize(Keys(""), "read", None, ("192.168.1.5", 8000))
    with pytest.raises(Unauthenticated):
        authorize(Keys(""), "read", "any-key", ("192.168.1.5", 8000))


def test_with_keys_this_machine_needs_one_too() -> None:
    keys = Keys("one:read,boss:admin")
    authorize(keys, "read", "one", ("192.168.1.5", 8000))
    authorize(keys, "train", "boss", ("192.168.1.5", 8000))
    for key in (None, "two", "ONE"):
        with pytest.raises(Unauthenticated):
            authorize(keys, "read", key, ("127.0.0.1", 8000))
    with pytest.raises(Forbidden, match="read; train is needed"):
        authorize(keys, "train", "one", ("127.0.0.1", 8000))
