"""A version's folder as one file: packed into a tar, and unpacked from a tar, tar.gz or zip of whoever sends it.

What is unpacked is bounded in the number and size of its entries before any of them is written, and holds nothing but
the files of a version, whatever their paths say.
"""

import errno
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any

import orjson

from app.errors import CorruptVersion, InvalidInput, TooLarge, Unparseable
from app.storage.files import digest_of, sync_folder
from app.storage.formats import gunzip
from app.storage.version import CONFIG_DIGEST, FILES, Version, check_config, digest_of_config

MAX_ENTRIES = 16
MAX_GULP_BYTES = 2**20  # the most that an entry's header may make us read at once
MAX_GROWTH = 200
MAX_VALUES = 2**22  # of a JSON file: the least of them takes three bytes of it, and a hundred of memory
BLOCK_BYTES = 2**20
SIZES = {"model.safetensors": 2**63, "config.json": 2**28, "metrics.json": 2**24, "history.jsonl": 2**30}

_TAR_BLOCK = 512
_ZIP_END = struct.Struct("<4s4H2LH")


# ---- packing


def pack_version(version: Version) -> tuple[int, Iterator[bytes]]:
    """The number of bytes of a tar of a version's files, and the bytes. Raises CorruptVersion."""
    try:
        return pack_folder(version.path, f"{version.model}-{version.version}", version.config["created_at"])
    except FileNotFoundError as error:
        what = f"version {version.version} of model {version.model!r}"
        raise CorruptVersion(f"{Path(error.filename).name} of {what} is not there") from error


def pack_folder(folder: Path, name: str, modified_at: float) -> tuple[int, Iterator[bytes]]:
    """The same for a version's files in any folder, which is called `name` in the tar.

    They are open from here on, and whole though they be deleted. Raises FileNotFoundError.
    """
    with ExitStack() as stack:
        files = [stack.enter_context((folder / file).open("rb")) for file in FILES]
        entries = [_entry(file, name, modified_at) for file in files]
        size = sum(_TAR_BLOCK + _padded(entry.size) for entry in entries) + 2 * _TAR_BLOCK
        return size, _pack(entries, files, stack.pop_all())


def _entry(file: IO[bytes], name: str, modified_at: float) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"{name}/{Path(file.name).name}")
    info.size, info.mtime = os.fstat(file.fileno()).st_size, int(modified_at)
    return info


def _pack(entries: list[tarfile.TarInfo], files: Sequence[IO[bytes]], until_packed: ExitStack) -> Iterator[bytes]:
    with until_packed:
        for entry, file in zip(entries, files, strict=True):
            yield entry.tobuf(tarfile.GNU_FORMAT)
            yield from iter(lambda file=file: file.read(BLOCK_BYTES), b"")  # type: ignore[misc]
            yield bytes(_padded(entry.size) - entry.size)
        yield bytes(2 * _TAR_BLOCK)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _TAR_BLOCK) * _TAR_BLOCK


# ---- unpacking


def unpack_version(archive: Path, folder: Path, max_bytes: int) -> None:
    """Write the files of an archive into an empty folder; all four of a version's files, and no others, are there then.

    Raises:
        Unparseable: it is no archive, or a broken one.
        InvalidInput: an entry that no version has, or one that is missing.
        TooLarge: it grows beyond `max_bytes`, or as only a bomb does.
    """
    with archive.open("rb") as file:
        head = file.read(262 + 5)
    limit = min(max_bytes, max(2**30, MAX_GROWTH * archive.stat().st_size))
    try:
        if head.startswith(b"PK\x03\x04"):
            _unzip(archive, folder, limit)
        elif head.startswith(b"\x1f\x8b"):
            plain = archive.with_suffix(".tar")
            gunzip(archive, plain, limit)
            _untar(plain, folder, limit)
        elif head[257:262] == b"ustar":
            _untar(archive, folder, limit)
        else:
            raise Unparseable("the body is no zip, tar or tar.gz; send one of a version's folder")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        raise Unparseable(f"the archive is broken: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # else it is the disk
            raise
        raise Unparseable("the archive is broken: something in it should be before its beginning") from error
    except (RecursionError, UnicodeError, ValueError, RuntimeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise Unparseable(f"the archive cannot be read: {error}") from error
    if missing := [file for file in FILES if not (folder / file).exists()]:
        raise InvalidInput(f"the archive has no {', '.join(missing)}; a version is {', '.join(FILES)}")


class _Sips(io.BufferedReader):
    """A file of which no header can make us read more than a little at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_GULP_BYTES:
            raise Unparseable("an entry's header in the tar is too large")
        return super().read(size)


def _untar(path: Path, folder: Path, limit: int) -> None:
    with _Sips(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for number, entry in enumerate(archive):
            _check_count(number)
            if entry.isdir():
                continue
            if not entry.isreg() or entry.sparse is not None:
                raise InvalidInput(f"{entry.name!r} in the archive is a link or a special file; a version has none")
            opened = archive.extractfile(entry)
            assert opened is not None
            limit -= _write(opened, folder, entry.name, entry.size, limit)


def _unzip(path: Path, folder: Path, limit: int) -> None:
    _check_directory(path)
    with zipfile.ZipFile(path) as archive:
        for number, entry in enumerate(archive.infolist()):
            _check_count(number)
            if entry.is_dir():
                continue
            if entry.external_attr >> 28 not in (0, 8):  # of a Unix mode's file types, 8 is a plain file
                raise InvalidInput(f"{entry.filename!r} in the archive is a link or a special file; a version has none")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others take memory as they say
                raise Unparseable(f"{entry.filename!r} in the zip is compressed in a way that is not known here")
            with archive.open(entry) as opened:
                limit -= _write(opened, folder, entry.filename, entry.file_size, limit)


def _check_directory(path: Path) -> None:
    """Raise for a zip whose list of entries is longer than a version's can be, before it is read as a whole."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, num_bytes - 2**16 - _ZIP_END.size))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < _ZIP_END.size:
        raise Unparseable("the zip is cut off: it has no end")
    num_entries, directory_bytes = _ZIP_END.unpack_from(tail, place)[4:6]
    if num_entries > MAX_ENTRIES or directory_bytes > 2**16:
        raise InvalidInput(f"the archive has more than {MAX_ENTRIES} entries; a version is {', '.join(FILES)}")


def _check_count(number: int) -> None:
    if number >= MAX_ENTRIES:
        raise InvalidInput(f"the archive has more than {MAX_ENTRIES} entries; a version is {', '.join(FILES)}")


def _write(source: IO[bytes], folder: Path, name: str, size: int, limit: int) -> int:
    """Write an entry under its own name, whatever folder it is in; returns its size."""
    target = folder / _file_name(name)
    if size > min(limit, SIZES[target.name]):
        raise TooLarge(f"{name!r} in the archive has {size} bytes, which is too large")
    if target.exists():
        raise InvalidInput(f"the archive has two files {target.name}")
    with target.open("xb") as file:
        for block in iter(lambda: source.read(BLOCK_BYTES), b""):
            if file.tell() + len(block) > size:
                raise Unparseable(f"{name!r} in the archive is longer than it says")
            file.write(block)
        if file.tell() != size:
            raise Unparseable(f"{name!r} in the archive is shorter than it says")
        file.flush()
        os.fsync(file.fileno())
    return size


def _file_name(name: str) -> str:
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    if name.startswith("/") or ".." in parts or "\\" in name:
        raise InvalidInput(f"{name!r} in the archive points outside of it")
    if not 1 <= len(parts) <= 2 or parts[-1] not in FILES:
        raise InvalidInput(f"{name!r} in the archive is no file of a version; those are {', '.join(FILES)}")
    return parts[-1]


# ---- what was unpacked


def read_unpacked(folder: Path, model: str) -> Version:
    """The version in a folder, once its files are those that its `config.json` tells of.

    Raises:
        InvalidInput
        TooLarge: it would take far more memory than it has bytes.
    """
    config, metrics = (_read_object(folder / file) for file in ("config.json", "metrics.json"))
    known = {file for file in FILES if file != "config.json"}
    digests = config.get("digests")
    if not isinstance(digests, dict) or digests.keys() != known:
        raise InvalidInput(f"config.json must have the digests of {', '.join(sorted(known))}")
    for file in sorted(known):
        if digest_of(folder / file) != digests[file]:
            raise InvalidInput(f"{file} is not the one whose digest config.json has", code="digest_mismatch")
    try:
        check_config(config, metrics, "the version")
    except CorruptVersion as error:
        raise InvalidInput(error.detail) from error
    if config.get(CONFIG_DIGEST, digest_of_config(config)) != digest_of_config(config):
        raise InvalidInput(
            f"config.json does not say what its {CONFIG_DIGEST} is of; whoever changes it leaves that out",
            code="digest_mismatch",
        )
    sync_folder(folder)
    return Version(model, "uploaded", folder, config, metrics, (folder / "model.safetensors").stat().st_size)


def _read_object(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise TooLarge(f"{path.name} in the archive holds more than {MAX_VALUES} values")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{path.name} in the archive is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path.name} in the archive is no JSON object")
    return found
