"""How many connections a process may have."""

import resource

import pytest

from app.api.connections import RESERVED_FILES, max_connections


@pytest.mark.parametrize(("files", "wanted", "allowed"), [(1024, 10_000, 768), (20_000, 10_000, 10_000), (100, 5, 1)])
def test_connections_leave_files_for_everything_else(
    monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, allowed: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert max_connections(wanted) == allowed
    assert files > RESERVED_FILES or allowed == 1
