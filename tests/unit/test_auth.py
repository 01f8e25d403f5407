"""Keys, and who needs none."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from app.api.auth import ANYONE, Caller, Keys, authorize, caller_of, is_loopback
from app.errors import Forbidden, InvalidInput, Unauthenticated
from app.storage.keys import KeyFile, StoredKey
from tests.waiting import until

LOOPBACK, NETWORK = ("127.0.0.1", 8000), ("192.168.1.5", 8000)


def request(key: str | None = None, server: tuple[str, int] | None = LOOPBACK) -> dict[str, Any]:
    """An ASGI request with this key, which came in on this address."""
    return {"headers": [(b"authorization", f"Bearer {key}".encode())] if key else [], "server": server}


def test_keys_have_their_scopes() -> None:
    keys = Keys(" one:read+predict , two:admin,with:colon:train ,")
    assert keys.find(b"one") == Caller("setting-1", frozenset({"read", "predict"}))
    assert keys.find(b"two") == Caller("setting-2", frozenset({"admin"}))
    assert keys.find(b"with:colon") == Caller("setting-3", frozenset({"train"}))
    assert keys.find(b"three") is None
    assert keys.find(b"") is None
    assert keys
    assert not Keys("")
    assert not Keys(" , ")


def test_keys_are_kept_as_hashes() -> None:
    assert "secret" not in repr(vars(Keys("secret:read")))


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `hmac.compare_digest`, of hashes, and all of them whichever fits."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    keys = Keys("one:read,two:read,three:read")
    monkeypatch.setattr("app.api.auth.hmac.compare_digest", compare)
    for key in (b"one", b"three", b"nobody's"):
        compared.clear()
        keys.find(key)
        assert len(compared) == 3
        assert all(len(part) == 32 for pair in compared for part in pair)


def test_keys_of_a_file_come_and_go_while_it_is_watched(tmp_path: Path) -> None:
    file, keys = KeyFile(tmp_path / "keys.json"), Keys("given:admin")
    keys.watch(file)
    made, text = file.create("ci", ["read"])
    assert until(lambda: keys.find(text.encode())) == Caller(made.id, frozenset({"read"}))
    assert keys.find(text.encode()[:-1]) is None
    assert keys.find(b"gs_" + made.id.encode() + b"_") is None
    other, other_text = file.create("ci", ["admin"])
    assert until(lambda: keys.find(other_text.encode())) == Caller(other.id, frozenset({"admin"}))
    assert keys.find(text.replace(made.id, other.id).encode()) is None
    file.revoke(made.id)
    until(lambda: keys.find(text.encode()) is None)
    assert keys.find(other_text.encode())
    assert keys.find(b"given")


def test_to_revoke_the_last_key_lets_nobody_in(tmp_path: Path) -> None:
    file, keys = KeyFile(tmp_path / "keys.json"), Keys("")
    keys.watch(file)
    assert authorize(request(), keys, "admin") is ANYONE
    made, text = file.create("me", ["admin"])
    until(lambda: bool(keys))
    file.revoke(made.id)
    until(lambda: keys.find(text.encode()) is None)
    with pytest.raises(Unauthenticated):
        authorize(request(), keys, "read")


def test_a_file_of_keys_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not let a service start; one that runs goes on with the keys that it knows."""
    file, keys, log = KeyFile(tmp_path / "keys.json"), Keys(""), CapturingLogger()
    monkeypatch.setattr("app.api.auth.log", log)
    _, text = file.create("me", ["read"])
    keys.watch(file)
    file.path.write_text('{"keys": [{"id": 1}]}')
    until(lambda: keys.find(text.encode()) and log.calls)
    assert "those of before hold on" in log.calls[0].args[0]
    assert keys.find(text.encode())
    with pytest.raises(InvalidInput, match=r"keys\.json is no file of keys"):
        Keys("").watch(file)


def test_a_file_of_keys_that_could_not_be_read_once_is_read_again(tmp_path: Path) -> None:
    """Though it looks as it did: what was revoked must not stay known because of a moment without free descriptors."""
    file, keys = KeyFile(tmp_path / "keys.json"), Keys("")
    made, text = file.create("me", ["read"])
    faults = [OSError("too many open files")]

    class Failing(KeyFile):
        def read(self) -> list[StoredKey]:
            if made not in super().read() and faults:
                raise faults.pop()
            return super().read()

    keys.watch(Failing(file.path))
    generation = keys.generation()
    file.revoke(made.id)
    until(lambda: keys.find(text.encode()) is None)
    assert not faults
    assert keys.generation() > generation


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
    authorize(request(), Keys(""), "admin")
    authorize(request(server=None), Keys(""), "admin")
    with pytest.raises(Unauthenticated, match="gradserve keys create"):
        authorize(request(server=NETWORK), Keys(""), "read")
    with pytest.raises(Unauthenticated):
        authorize(request("any-key", NETWORK), Keys(""), "read")


def test_with_keys_this_machine_needs_one_too() -> None:
    keys = Keys("one:read,boss:admin")
    authorize(request("one", NETWORK), keys, "read")
    authorize(request("boss", NETWORK), keys, "train")
    for key in (None, "two", "ONE"):
        with pytest.raises(Unauthenticated):
            authorize(request(key), keys, "read")
    with pytest.raises(Forbidden, match="read; train is needed"):
        authorize(request("one"), keys, "train")


def test_who_asks_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, asked = Keys("one:read"), request("one")
    caller = caller_of(asked, keys)
    monkeypatch.setattr(keys, "find", None)
    assert caller_of(asked, keys) is caller
