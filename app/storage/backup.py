"""A copy of all that a service keeps, taken while it runs, and a service's folders out of one.

The database comes first, as SQLite's online backup gives it: one state, whatever is written meanwhile. Stored tables
and published versions never change, and those that this state names outlive it, so they are copied afterwards.
Checkpoints stay behind: a job that was running starts again, and ends with the same weights; one whose engine was
chosen by a measurement is measured anew. Keys stay behind, too, which are secrets. The list of all files and their
digests is written last; without it, it is no backup.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from app.errors import Conflict, CorruptVersion, GradserveError
from app.storage.aliases import FILE as ALIASES
from app.storage.aliases import Aliases
from app.storage.files import digest_of, sync_folder, write_synced
from app.storage.models import VERSION, deleted_folders

FORMAT_VERSION = 1
MANIFEST = "backup.json"
_UNFINISHED = "FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')"
UNFINISHED = f"SELECT id {_UNFINISHED}"
BEGIN_ANEW = "UPDATE jobs SET version = NULL, metrics = NULL, stop_reason = NULL WHERE id = ?"
STARTS = (
    "SELECT DISTINCT json_extract(spec, '$.warm_start.model'), json_extract(spec, '$.warm_start.version') "
    + _UNFINISHED
)


class Places(NamedTuple):
    """Where a service keeps what it keeps."""

    database: Path
    datasets: Path
    models: Path


def places_of(data_dir: Path, models_dir: Path, database_url: str) -> Places:
    """Raises GradserveError for a database that is no file."""
    if not database_url.startswith("sqlite:///"):
        raise GradserveError("only SQLite is backed up here; use the database's own tools, such as pg_dump")
    return Places(Path(database_url.removeprefix("sqlite:///")), data_dir / "datasets", models_dir)


def back_up(places: Places, target: Path) -> int:
    """Copy everything into a new folder; returns the number of files.

    Raises:
        Conflict: there is something at the target.
        GradserveError: there is no service's database.
    """
    if target.exists() and any(target.iterdir()):
        raise Conflict(f"{target} is not empty; a backup takes a folder of its own")
    if not places.database.is_file():
        raise GradserveError(f"there is no database at {places.database}", code="no_database")
    copy = Places(target / "gradserve.db", target / "datasets", target / "models")
    copy.datasets.mkdir(parents=True)
    copy.models.mkdir()
    try:
        unfinished, starts = _copy_database(places.database, copy.database)
    except sqlite3.DatabaseError as error:
        raise GradserveError(
            f"the database at {places.database} can't be copied: {error}", code="no_database"
        ) from error
    _copy_folders(places.datasets, copy.datasets)
    for model in _folders(places.models):
        _copy_model(model, copy.models / model.name, unfinished)
    for folder in (folder for start in starts for folder in deleted_folders(places.models, *start)):
        shutil.copytree(folder, copy.models / folder.relative_to(places.models))
    files = {path.relative_to(target).as_posix(): digest_of(path) for path in _files(target)}
    manifest = {"format_version": FORMAT_VERSION, "files": files}
    os.sync()  # what the list vouches for is on disk before it
    write_synced(target / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    sync_folder(target)
    return len(files)


def _copy_database(source: Path, target: Path) -> tuple[set[str], list[Any]]:
    """The ids of jobs that begin anew in the copy, and what jobs go on from."""
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as database:
        original.backup(database)
        database.execute("PRAGMA journal_mode=DELETE")  # one file
        unfinished = {row[0] for row in database.execute(UNFINISHED)}
        starts = database.execute(STARTS).fetchall()
        database.executemany(BEGIN_ANEW, [(job_id,) for job_id in unfinished])  # also where a version was to come out
        database.commit()
    return unfinished, starts


def restore(source: Path, places: Places) -> int:
    """Put a backup into the places of a service that has nothing yet; returns the number of files.

    Raises:
        Conflict: there is something in one of the places.
        GradserveError: it is no backup, a newer one, or one whose files are not those that were backed up.
    """
    files = _verified(source)
    for place in places:
        if place.exists() and (place.is_file() or any(entry.name != ".gitkeep" for entry in place.iterdir())):
            raise Conflict(f"{place} is there already; a backup is restored into empty folders only")
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "datasets", places.datasets, dirs_exist_ok=True)
    shutil.copytree(source / "models", places.models, dirs_exist_ok=True)
    shutil.copyfile(source / "gradserve.db", places.database)  # last: without it, nothing was restored
    os.sync()
    return len(files)


def _verified(source: Path) -> dict[str, str]:
    """The files of a backup with their digests, each of which has been compared."""
    try:
        manifest = orjson.loads((source / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise GradserveError(f"{source} is no whole backup: {error}", code="no_backup") from error
    version, files = (manifest.get(key) if isinstance(manifest, dict) else None for key in ("format_version", "files"))
    if type(version) is not int or not isinstance(files, dict):
        raise GradserveError(f"{source} is no whole backup: {MANIFEST} does not list its files", code="no_backup")
    if version > FORMAT_VERSION:
        raise GradserveError(
            f"the backup has format {version}; this Gradserve reads up to {FORMAT_VERSION}", code="newer_format"
        )
    found = {path.relative_to(source).as_posix() for path in _files(source)} - {MANIFEST}
    for name in sorted(found | files.keys()):
        if name not in found or name not in files or digest_of(source / name) != files[name]:
            raise GradserveError(f"{name} in the backup is not what was backed up", code="digest_mismatch")
    return files


def _copy_model(model: Path, target: Path, unfinished: set[str]) -> None:
    """A model, again where what an alias named was deleted meanwhile, and the alias moved."""
    aliases = _content(model / ALIASES)
    _copy_versions(model, target, unfinished)
    while (now := _content(model / ALIASES)) != aliases and _lacks_named(target):
        aliases = now
        shutil.rmtree(target)
        _copy_versions(model, target, unfinished)


def _lacks_named(model: Path) -> bool:
    """Whether an alias names a version that is not there."""
    try:
        aliases = Aliases(model.parent).of(model.name).values()
    except CorruptVersion:  # copied as it is
        return False
    named = {alias.version for alias in aliases} | {other for alias in aliases for _, other in alias.others()}
    return not all((model / version).is_dir() for version in named)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _copy_versions(model: Path, target: Path, unfinished: set[str]) -> None:
    """A model with the versions that the jobs of this state of the database have published; the numbers of those that
    are left out are free again.
    """
    target.mkdir()
    for entry in sorted(model.iterdir()):
        if entry.is_file() and not entry.name.startswith("."):
            shutil.copyfile(entry, target / entry.name)
    if left_out := _numbers(_copy_folders(model, target, unfinished)):
        last = max([min(left_out) - 1, *_numbers(folder.name for folder in _folders(target))])
        (target / "last_version").write_text(str(last))


def _numbers(names: Iterable[str]) -> list[int]:
    return [int(name) for name in names if VERSION.fullmatch(name)]


def _copy_folders(source: Path, target: Path, unfinished: set[str] | None = None) -> list[str]:
    """Folders that never change; one that is deleted meanwhile is left out. Returns those of unfinished jobs, which
    are left out as well.
    """
    left_out = []
    for folder in _folders(source):
        try:
            if unfinished and _job_of(folder) in unfinished:
                left_out.append(folder.name)
                continue
            shutil.copytree(folder, target / folder.name)
        except (FileNotFoundError, shutil.Error):
            if folder.exists():
                raise
            shutil.rmtree(target / folder.name, ignore_errors=True)
    return left_out


def _job_of(version: Path) -> str | None:
    """Whose version it is; None where that can't be read: what is broken is copied as it is, and hides no other."""
    try:
        config = orjson.loads((version / "config.json").read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return config.get("job_id") if isinstance(config, dict) else None


def _folders(folder: Path) -> Iterator[Path]:
    """Those that are published; names of what is not yet, or no longer, begin with a dot."""
    if folder.is_dir():
        yield from (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
