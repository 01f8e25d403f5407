"""Archives of versions, good and hostile."""

import gzip
import io
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from app.errors import GradserveError, InvalidInput, TooLarge, Unparseable
from app.storage.files import digest_of
from app.storage.models import ModelStore
from app.storage.version import FILES, write_version
from app.storage.version_archive import MAX_VALUES, pack_version, read_unpacked, unpack_version

GOOD = {file: f"content of {file}".encode() for file in FILES}
LIMIT = 2**20
TOLD = {
    "format_version": 1, "job_id": "j", "created_at": 1.5, "num_parameters": 3, "signature": {}, "spec": {}
}  # fmt: skip
"""What every version's config.json says."""


def tar_of(
    entries: dict[str, bytes], form: int = tarfile.PAX_FORMAT, change: Callable[[tarfile.TarInfo], object] = id
) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=form) as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), time.time()  # type: ignore[assignment]
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return body.getvalue()


def zip_of(entries: dict[str, bytes], change: Callable[[zipfile.ZipInfo], object] = id) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, content)
    return body.getvalue()


def unpack(folder: Path, body: bytes, limit: int = LIMIT) -> dict[str, bytes]:
    (folder / "archive").write_bytes(body)
    target = folder / "unpacked"
    target.mkdir()
    try:
        unpack_version(folder / "archive", target, limit)
    finally:
        found = {path.name for path in folder.iterdir()}
        assert found <= {"archive", "archive.tar", "unpacked"}, "nothing lands elsewhere"
    return {path.name: path.read_bytes() for path in target.iterdir()}


@pytest.mark.parametrize(
    "body",
    [
        tar_of(GOOD),
        tar_of(GOOD, tarfile.GNU_FORMAT),
        gzip.compress(tar_of({f"./{name}": content for name, content in GOOD.items()})),
        tar_of({f"model-3/{name}": content for name, content in GOOD.items()}),
        zip_of(GOOD),
        zip_of({f"model-3/{name}": content for name, content in GOOD.items()}),
    ],
)
def test_archives_as_tools_write_them(tmp_path: Path, body: bytes) -> None:
    assert unpack(tmp_path, body) == GOOD


def link(info: tarfile.TarInfo) -> None:
    if info.name == "config.json":
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def hard_link(info: tarfile.TarInfo) -> None:
    if info.name == "config.json":
        info.type, info.linkname, info.size = tarfile.LNKTYPE, "model.safetensors", 0


def device(info: tarfile.TarInfo) -> None:
    if info.name == "config.json":
        info.type, info.size = tarfile.CHRTYPE, 0


def zip_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def stored(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_STORED


def compressed(method: int) -> Callable[[zipfile.ZipInfo], object]:
    return lambda info: setattr(info, "compress_type", method)


def elsewhere(body: bytes) -> bytes:
    """A zip whose list of entries is said to begin far beyond its end."""
    return body[:-6] + b"\xff\xff\xff\xff" + body[-2:]


def lying_size(body: bytes) -> bytes:
    """The first entry of a tar says that it is longer than the archive."""
    header = bytearray(body[:512])
    header[124:136] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + body[512:]


def many_headers(kind: bytes, count: int, size: int = 0) -> bytes:
    """A tar of nothing but headers that tell of the next one."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    header = info.tobuf(tarfile.GNU_FORMAT)
    return header * count + bytes(1024)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (tar_of({**GOOD, "../config.json": b""}), InvalidInput),
        (tar_of({**GOOD, "/etc/cron.d/config.json": b""}), InvalidInput),
        (tar_of({**GOOD, "..\\config.json": b""}), InvalidInput),
        (tar_of({**GOOD, "a/b/config.json": b""}), InvalidInput),
        (tar_of({**GOOD, "weights.pkl": b""}), InvalidInput),
        (tar_of({**GOOD, "again/config.json": b""}), InvalidInput),
        (tar_of({name: GOOD[name] for name in FILES[:3]}), InvalidInput),
        (tar_of({}), Unparseable),
        (tar_of(GOOD, change=link), InvalidInput),
        (tar_of(GOOD, change=hard_link), InvalidInput),
        (tar_of(GOOD, change=device), InvalidInput),
        (tar_of({f"{number}/": b"" for number in range(100)}), InvalidInput),
        (tar_of(GOOD)[:700], Unparseable),
        (lying_size(tar_of(GOOD, tarfile.USTAR_FORMAT)), TooLarge),
        (many_headers(b"x", 5000), Unparseable),
        (many_headers(b"L", 1, 2**33 - 1), Unparseable),
        (tar_of({"config.json": bytes(2 * LIMIT)}), TooLarge),
        (gzip.compress(tar_of({"config.json": bytes(2 * LIMIT)})), TooLarge),
        (gzip.compress(tar_of(GOOD))[:-20], Unparseable),
        (zip_of({**GOOD, "../config.json": b""}), InvalidInput),
        (zip_of({**GOOD, "weights.pkl": b""}), InvalidInput),
        (zip_of(GOOD, zip_link), InvalidInput),
        (zip_of({f"{number}/": b"" for number in range(100)}), InvalidInput),
        (zip_of({"config.json": bytes(2 * LIMIT)}), TooLarge),
        (zip_of(GOOD)[:-30], Unparseable),
        (zip_of(GOOD, stored).replace(b"content", b"tnetnoc"), Unparseable),
        (b"PK\x03\x04" + bytes(100), Unparseable),
        (elsewhere(zip_of(GOOD)), Unparseable),
        (zip_of(GOOD, compressed(zipfile.ZIP_LZMA)), Unparseable),
        (zip_of(GOOD, compressed(zipfile.ZIP_BZIP2)), Unparseable),
        (b"", Unparseable),
        (b"\x80\x04\x95", Unparseable),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, body: bytes, error: type[GradserveError]) -> None:
    with pytest.raises(error):
        unpack(tmp_path, body)


def test_a_zip_that_lies_about_a_size(tmp_path: Path) -> None:
    """The list of entries says ten bytes; what is packed goes on for longer."""
    body = bytearray(zip_of({"config.json": bytes(10**5)}))
    place = body.rfind(b"PK\x01\x02")
    struct.pack_into("<I", body, place + 24, 10)
    with pytest.raises(Unparseable):
        unpack(tmp_path, bytes(body))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "history.jsonl").write_bytes(b"{}\n")
    write_version(folder, TOLD, {"loss": 0.5})
    return folder


def change(folder: Path, **changes: object) -> None:
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({**config, **changes}))


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    staged = store.staging("j")
    (staged / "model.safetensors").write_bytes(b"weights" * 1000)
    (staged / "history.jsonl").write_bytes(b"")
    write_version(staged, TOLD, {})
    store.publish("j", "m", "1")
    num_bytes, blocks = pack_version(store.get("m", "1"))
    packed = b"".join(blocks)
    assert len(packed) == num_bytes
    assert unpack(tmp_path / "models" / ".staging", packed) == {
        path.name: path.read_bytes() for path in (tmp_path / "models/m/1").iterdir()
    }


def test_a_version_in_order(folder: Path) -> None:
    assert read_unpacked(folder, "m").metrics == {"loss": 0.5}


@pytest.mark.parametrize("file", ["config.json", "metrics.json"])
@pytest.mark.parametrize("value", [b"[],", b"{},", b"1,"])
def test_what_would_grow_in_memory_is_not_read(folder: Path, file: str, value: bytes) -> None:
    (folder / file).write_bytes(b'{"a":[' + value * MAX_VALUES + b"[]]}")
    with pytest.raises(TooLarge, match=file):
        read_unpacked(folder, "m")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"other"), "digest_mismatch"),
        (lambda folder: (folder / "metrics.json").write_bytes(b'{"loss": 0}'), "digest_mismatch"),
        (lambda folder: change(folder, digests={}), "invalid_input"),
        (lambda folder: change(folder, digests={"../x": digest_of(folder / "config.json")}), "invalid_input"),
        (lambda folder: change(folder, digests=None), "invalid_input"),
        (lambda folder: change(folder, format_version=99), "invalid_input"),
        (lambda folder: change(folder, format_version="1"), "invalid_input"),
        (lambda folder: change(folder, format_version=1.5), "invalid_input"),
        (lambda folder: change(folder, format_version=None), "invalid_input"),
        (lambda folder: change(folder, job_id=5), "invalid_input"),
        (lambda folder: change(folder, created_at="now"), "invalid_input"),
        (lambda folder: change(folder, created_at=1e300), "invalid_input"),
        (lambda folder: change(folder, num_parameters="3"), "invalid_input"),
        (lambda folder: change(folder, signature=None), "invalid_input"),
        (lambda folder: change(folder, note="added"), "digest_mismatch"),
        (lambda folder: (folder / "config.json").write_bytes(b"[]"), "invalid_input"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "invalid_input"),
    ],
)
def test_a_version_out_of_order(folder: Path, spoil: Callable[[Path], object], code: str) -> None:
    spoil(folder)
    with pytest.raises(InvalidInput) as caught:
        read_unpacked(folder, "m")
    assert caught.value.code == code
