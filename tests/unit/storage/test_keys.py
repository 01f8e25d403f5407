"""The file of keys: hashes in it, its owner's alone, whole whoever writes at the same time."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import NotFound
from app.storage.keys import KeyFile


def test_a_key_is_kept_as_a_hash(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "data" / "keys.json")
    made, text = file.create("ci", ["read", "predict"])
    assert file.read() == [made]
    assert (made.name, made.scopes) == ("ci", ("read", "predict"))
    assert text.startswith(f"gs_{made.id}_")
    secret = text.removeprefix(f"gs_{made.id}_")
    assert len(secret) == 43  # 32 bytes in base64
    assert secret not in file.path.read_text()
    assert made.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_no_two_keys_are_alike(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    made = [file.create("same", ["read"]) for _ in range(5)]
    assert len({text for _, text in made}) == len({key.id for key, _ in made}) == 5


def test_it_is_its_owner_s_alone(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    made, _ = file.create("ci", ["read"])
    file.revoke(made.id)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "keys.json": "0o600",
        "keys.lock": "0o600",
    }


def test_a_revoked_key_is_gone(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    one, other = (file.create(name, ["read"])[0] for name in ("one", "other"))
    stamp = file.stamp()
    assert file.revoke(one.id) == one
    assert file.read() == [other]
    assert file.stamp() != stamp
    with pytest.raises(NotFound, match="keys list"):
        file.revoke(one.id)


def test_without_a_file_there_are_no_keys(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    assert file.read() == []
    assert file.stamp() is None


def test_processes_that_make_keys_at_once_lose_none(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from app.storage.keys import KeyFile
for number in range(10):
    KeyFile(Path({str(tmp_path)!r}) / "keys.json").create("ci", ["read"])
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(KeyFile(tmp_path / "keys.json").read()) == 30
