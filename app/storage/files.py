"""Files that are whole or not there, on disk when the call returns."""

import hashlib
import os
from pathlib import Path


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digest_of_bytes(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write_synced(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file, whose `mode` (less the umask) it has from the start."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace a file by one rename, so that a reader or a crash sees the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        write_synced(temporary, data, mode=mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def is_folder(path: Path) -> bool:
    """A folder itself, not a link to one, which could lead anywhere."""
    return path.is_dir() and not path.is_symlink()


def is_file(path: Path) -> bool:
    """A plain file itself: no link, and no pipe that would make whoever reads it wait forever."""
    return path.is_file() and not path.is_symlink()


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Another one whenever the file is another; None while there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def changed_at(folder: Path) -> float:
    """When the folder or a file in it was last changed, in seconds since 1970; 0 where it has gone meanwhile."""
    try:
        return max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
    except FileNotFoundError:
        return 0.0


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
