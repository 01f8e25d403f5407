"""Published versions: `models/<name>/<version>/`, whole or not there. The folders are all there is; no database.

A version is written in `.staging` and renamed into place; it is deleted by a rename into `.trash`, from which it goes
once no unfinished job begins with it. Links are not followed: what one leads to is no model, no version and no file of
one.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

import orjson
import structlog

from app.errors import (
    Conflict,
    CorruptVersion,
    FileNotInVersion,
    InvalidInput,
    ModelNotFound,
    VersionNotFound,
)
from app.specs.alias import Alias
from app.specs.sentences import nearest
from app.storage.aliases import Aliases
from app.storage.files import changed_at, is_file, is_folder, sync_folder, write_atomically
from app.storage.version import FILES, Version, read_version

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,18}")
UNLOADED = "unloaded"
TRASH = ".trash"
UPLOAD = "upload-"  # how names of staged versions begin that no job has made
CLOCK_TICK_NS = 50_000_000  # changes that lie closer together may leave a folder with the same time

log = structlog.get_logger("gradserve.models")


class ModelStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._aliases = Aliases(root)
        self._folder = str(root)
        self._listings: dict[str, tuple[tuple[int, int], list[str]]] = {}
        self.num_changes = 0  # that were made by way of this object, counted as soon as each is done

    # ---- publishing

    def staging(self, job_id: str) -> Path:
        """The folder in which a job's version is written; empty."""
        path = self.root / ".staging" / job_id
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def discard(self, job_id: str) -> None:
        """Remove what a job that publishes nothing has written."""
        shutil.rmtree(self.root / ".staging" / job_id, ignore_errors=True)

    def next_version(self, name: str) -> str:
        """One more than the highest that was ever published here, or that anything else has for a name."""
        folder = self.root / name
        try:
            with os.scandir(folder) as entries:
                taken = [int(entry.name) for entry in entries if VERSION.fullmatch(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            taken = []
        return str(max([_number_in(folder / "last_version"), *taken]) + 1)

    def published(self, job_id: str, name: str, version: str) -> bool:
        """Whether this job's version is in place."""
        try:
            config = orjson.loads((self.root / name / version / "config.json").read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return False
        return isinstance(config, dict) and bool(config.get("job_id") == job_id)

    def publish(self, job_id: str, name: str, version: str) -> None:
        """Make the staged folder visible by one rename; nothing happens where that was done before.

        Raises:
            Conflict: another version has, or had, this number.
        """
        if self.published(job_id, name, version):
            return
        target = self.root / name / version
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(self.root)
        if not is_folder(target.parent):
            raise NotADirectoryError(f"models/{name} is a link, which is not followed")
        with self._aliases.unchanged(name):  # and no version is published or deleted meanwhile
            if int(version) < int(self.next_version(name)):
                raise Conflict(f"model {name!r} has, or had, a version {version} already")
            marker = target.parent / "last_version"
            last = _number_in(marker)
            write_atomically(marker, version.encode())
            try:
                (self.root / ".staging" / job_id).rename(target)
            except OSError:
                write_atomically(marker, str(last).encode())  # the number is still free
                raise
        self.num_changes += 1
        sync_folder(target.parent)

    # ---- reading

    def names(self) -> list[str]:
        """Models with at least one version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name for entry in self.root.iterdir() if NAME.fullmatch(entry.name) and self._versions(entry.name)
        )

    def all_versions(self) -> list[tuple[str, str]]:
        """Names and versions of all models, sorted."""
        return [(name, version) for name in self.names() for version in self._versions(name)]

    def versions(self, name: str) -> list[str]:
        """Published versions, oldest first.

        Raises:
            ModelNotFound: there are none.
        """
        versions = self._versions(name)
        if not versions:
            raise ModelNotFound(f"there is no model {name!r}{self._meant(name)}")
        return versions

    def _meant(self, name: str) -> str:
        """The end of a sentence about a model that is not there."""
        folders = self.root.iterdir() if self.root.is_dir() else ()
        near = nearest(name, [folder.name for folder in folders if NAME.fullmatch(folder.name)])
        return f"; did you mean {near!r}?" if near and self._versions(near) else ""

    def _versions(self, name: str) -> list[str]:
        """Published versions, oldest first, which the caller does not change; a stat while nothing has changed."""
        known = self._listings.get(name)
        if known is None and not NAME.fullmatch(name):
            return []
        try:
            status = os.lstat(f"{self._folder}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            self._listings.pop(name, None)
            return []
        if known and known[0] == (status.st_ino, status.st_mtime_ns):
            return known[1]
        found = self._list_versions(name)
        if found and time.time_ns() - status.st_mtime_ns > CLOCK_TICK_NS:
            self._listings[name] = ((status.st_ino, status.st_mtime_ns), found)
        return found

    def _list_versions(self, name: str) -> list[str]:
        folder = self.root / name
        if not is_folder(folder):
            return []
        found = [
            entry.name
            for entry in folder.iterdir()
            if VERSION.fullmatch(entry.name) and is_folder(entry) and self.has(name, entry.name)
        ]
        return sorted(found, key=int)

    def has(self, name: str, version: str) -> bool:
        return is_file(self.root / name / version / "config.json")

    def resolve(self, name: str, version: str | None) -> str:
        """A version number from a number, an alias or None for the newest.

        Raises:
            ModelNotFound, VersionNotFound
        """
        versions = self.versions(name)
        if version is None:
            return versions[-1]
        alias = None if VERSION.fullmatch(version) else self.aliases(name).get(version)
        found = alias.version if alias else version
        if found not in versions:
            raise VersionNotFound(
                f"model {name!r} has no version or alias {version!r}; its versions are {', '.join(versions[-10:])}"
            )
        return found

    def get(self, name: str, version: str) -> Version:
        """A published version.

        Raises:
            ModelNotFound, VersionNotFound, CorruptVersion
        """
        number = self.resolve(name, version)
        with self.reading(name, number):
            return read_version(self.root / name / number, name, number)

    @contextmanager
    def reading(self, name: str, version: str) -> Iterator[None]:
        """A version that can't be read in the block because it was deleted meanwhile is not broken, but not there.

        Raises:
            ModelNotFound, VersionNotFound
        """
        try:
            yield
        except CorruptVersion:
            self.resolve(name, version)
            raise

    def newest(self, name: str) -> Version:
        """The newest version that can be read.

        Raises:
            ModelNotFound
            CorruptVersion: none can.
        """
        found = next(self.readable(name, reversed(self.versions(name))), None)
        if found is None:
            raise CorruptVersion(f"no version of model {name!r} can be read")
        return found

    def readable(self, name: str, versions: Iterable[str]) -> Iterator[Version]:
        """Those of a model's versions that can be read; the log has the others."""
        for version in versions:
            try:
                yield self.get(name, version)
            except CorruptVersion as error:
                log.warning("a version can't be read", model=name, version=version, detail=error.detail)
            except VersionNotFound:
                continue  # it was just deleted

    def open(self, name: str, version: str, file: str) -> BufferedReader:
        """One of a version's files, which may be deleted while it is read.

        Raises:
            ModelNotFound, VersionNotFound, FileNotInVersion
        """
        path = self.root / name / self.resolve(name, version) / file
        if file in FILES and is_file(path):
            with suppress(FileNotFoundError):
                return path.open("rb")
        raise FileNotInVersion(f"a version has the files {', '.join(FILES)}; there is no {file!r}")

    # ---- what is wanted out of memory

    def mark_unloaded(self, name: str, unloaded: bool) -> None:
        """Let all processes know that a model is to leave their memory, or is in use again."""
        mark = self.root / name / UNLOADED
        if unloaded:
            mark.touch()
        elif mark.exists():
            mark.unlink(missing_ok=True)
        self.num_changes += 1

    def is_unloaded(self, name: str) -> bool:
        return (self.root / name / UNLOADED).exists()

    # ---- aliases

    def aliases(self, name: str) -> dict[str, Alias]:
        return self._aliases.of(name)

    def set_alias(self, name: str, alias: str, to: Alias) -> None:
        """Point an alias at a version, perhaps with others beside it.

        Raises:
            ModelNotFound, VersionNotFound
            InvalidInput: the alias reads as a version's number.
        """
        if VERSION.fullmatch(alias):
            raise InvalidInput(f"an alias must not be a number, as versions are; {alias!r} is one")
        self.versions(name)
        with self._aliases.change(name) as aliases:  # and no version is deleted meanwhile
            versions = self.versions(name)
            for version in (to.version, *(version for _, version in to.others())):
                if version not in versions:
                    raise VersionNotFound(f"model {name!r} has no version {version!r}, so no alias can point to it")
            aliases[alias] = to
        self.num_changes += 1

    def get_alias(self, name: str, alias: str) -> Alias:
        """Raises ModelNotFound, VersionNotFound."""
        self.versions(name)
        return _named(self.aliases(name), name, alias)

    def delete_alias(self, name: str, alias: str) -> None:
        self.versions(name)
        with self._aliases.change(name) as aliases:
            _named(aliases, name, alias)
            del aliases[alias]
        self.num_changes += 1

    # ---- deleting

    @contextmanager
    def undeleted(self, name: str, version: str) -> Iterator[None]:
        """Nobody deletes the version before the end of the block.

        Raises:
            ModelNotFound, VersionNotFound
        """
        self.versions(name)
        with self._aliases.unchanged(name):
            self.resolve(name, version)
            yield

    def delete(self, name: str, version: str | None = None) -> None:
        """A version, or the whole model; the files stay until `empty_trash`.

        Raises:
            Conflict: an alias points to it, or names it as its canary or its shadow.
        """
        versions = [self.resolve(name, version)] if version is not None else self.versions(name)
        with self._aliases.unchanged(name):
            self._check_unnamed(name, versions)
            for number in versions:
                self._trash(self.root / name / number)
        if version is None:
            self.mark_unloaded(name, False)

    def _check_unnamed(self, name: str, versions: list[str]) -> None:
        """Raise Conflict where an alias has one of these versions."""
        for name_of_alias, alias in self.aliases(name).items():
            if alias.version in versions:
                raise Conflict(
                    f"the alias {name_of_alias!r} points to version {alias.version}; delete or move it first"
                )
            for role, other in alias.others():
                if other in versions:
                    raise Conflict(f"version {other} is the {role} of the alias {name_of_alias!r}; end that first")

    def _trash(self, path: Path) -> None:
        trash = self.root / TRASH / f"{path.parent.name}@{path.name}@{os.urandom(8).hex()}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(trash)
        except FileNotFoundError:
            return  # someone else was quicker
        self.num_changes += 1

    def deleted(self, name: str, version: str) -> Version | None:
        """A version that was deleted, while its files are there.

        Raises:
            CorruptVersion
        """
        path = next(deleted_folders(self.root, name, version), None)
        return None if path is None else read_version(path, name, version)

    def empty_trash(self, in_use: Callable[[], AbstractSet[tuple[str, str]]]) -> None:
        """Remove what was deleted, but for the names and versions that `in_use` tells of.

        It is asked last: of what is in the trash, no more comes into use.
        """
        found = list((self.root / TRASH).glob("*"))
        kept = in_use() if found else set()
        for path in found:
            if tuple(path.name.split("@")[:2]) not in kept:
                shutil.rmtree(path, ignore_errors=True)  # what is left, as where two do so at once, goes the next time

    def sweep(self, deadline: float) -> None:
        """Remove uploads at which nobody has written since, and what a crash left of files that were being replaced."""
        for folder in (self.root / ".staging").glob(f"{UPLOAD}*"):
            if changed_at(folder) < deadline:
                shutil.rmtree(folder, ignore_errors=True)
        for file in self.root.glob("[!.]*/.*"):
            with suppress(FileNotFoundError):  # it is in its place by now
                if is_file(file) and file.stat().st_mtime < deadline:
                    file.unlink()


def deleted_folders(root: Path, name: str, version: str) -> Iterator[Path]:
    """Folders of a version that was deleted, which are still there."""
    return (root / TRASH).glob(f"{name}@{version}@*")


def _number_in(marker: Path) -> int:
    """The number of the last version, 0 where there is none. A broken marker is written anew with the next version."""
    try:
        return int(marker.read_bytes())
    except FileNotFoundError:
        return 0
    except ValueError:
        log.warning("a marker is broken; the next version follows the highest that is there", file=str(marker))
        return 0


def _named(aliases: dict[str, Alias], name: str, alias: str) -> Alias:
    if alias not in aliases:
        raise VersionNotFound(f"model {name!r} has no alias {alias!r}", code="alias_not_found")
    return aliases[alias]
