"""A version: the files of its folder, what they say, and the digests that tell whether they are what was published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError

from app.errors import CorruptVersion, StorageFailed
from app.storage.files import digest_of, digest_of_bytes, is_file, sync_folder, write_synced
from app.storage.json_depth import can_be_written
from app.storage.tensors import read_tensors

FILES = ("model.safetensors", "config.json", "metrics.json", "history.jsonl")
FORMAT_VERSION = 2  # the newest that `app.learning.model` reads
CONFIG_DIGEST = "config_digest"
_TOLD = {"job_id": (str,), "created_at": (int, float), "num_parameters": (int,), "signature": (dict,), "spec": (dict,)}
_END_OF_TIME = 2**36  # seconds since 1970: the year 4147


@dataclass(frozen=True)
class Version:
    """A published version: where it is and what its `config.json` and `metrics.json` say."""

    model: str
    version: str
    path: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    num_bytes: int
    """Of the weights."""

    def load_tensors(self) -> dict[str, Any]:
        """All tensors, mapped from the file rather than read, after the digests of all files were verified.

        Raises:
            CorruptVersion: a file is not the one that was published, or the weights are no weights.
        """
        try:
            for file, digest in self.config["digests"].items():
                if not is_file(self.path / file) or digest_of(self.path / file) != digest:
                    raise self._is_not_what_was_published(file)
            return read_tensors(self.path / "model.safetensors")[0]
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and not (isinstance(error, FileNotFoundError) or StorageFailed.of(error)):
                raise
            raise CorruptVersion(f"version {self.version} of model {self.model!r} can't be read: {error}") from error

    def check_small_files(self, metrics: bytes) -> None:
        """`config.json` against the digest that it has of itself (those of old have none), and the metrics.

        Raises:
            CorruptVersion: a file is not the one that was published.
        """
        if self.config.get(CONFIG_DIGEST, digest_of_config(self.config)) != digest_of_config(self.config):
            raise self._is_not_what_was_published("config.json")
        digests = self.config["digests"]
        if digests.get("metrics.json", digest_of_bytes(metrics)) != digest_of_bytes(metrics):
            raise self._is_not_what_was_published("metrics.json")

    def _is_not_what_was_published(self, file: str) -> CorruptVersion:
        return CorruptVersion(f"{file} of version {self.version} of model {self.model!r} is not what was published")


def write_version(path: Path, config: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Complete a staged folder that holds `model.safetensors` and `history.jsonl`; all of it is on disk then."""
    write_synced(path / "metrics.json", orjson.dumps(metrics, option=orjson.OPT_INDENT_2))
    digests = {file: digest_of(path / file) for file in FILES if file != "config.json"}
    said = orjson.loads(orjson.dumps({**config, "digests": digests}))  # as whoever reads it will find it
    whole = said | {CONFIG_DIGEST: digest_of_config(said)}
    write_synced(path / "config.json", orjson.dumps(whole, option=orjson.OPT_INDENT_2))
    sync_folder(path)


def read_version(path: Path, model: str, version: str) -> Version:
    """The version in a folder.

    Raises:
        CorruptVersion
    """
    what = f"version {version} of model {model!r}"
    if other := [file for file in FILES if (path / file).exists() and not is_file(path / file)]:
        raise CorruptVersion(f"{other[0]} of {what} is a link or no file at all")
    try:
        config = orjson.loads((path / "config.json").read_bytes())
        metrics_text = (path / "metrics.json").read_bytes()
        metrics = orjson.loads(metrics_text)
        num_bytes = (path / "model.safetensors").stat().st_size
    except (OSError, orjson.JSONDecodeError) as error:
        raise CorruptVersion(f"{what} can't be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(metrics, dict) or not _has_digests(config):
        raise CorruptVersion(f"config.json of {what} has no digests of its files")
    check_config(config, metrics, what)
    found = Version(model, version, path, config, metrics, num_bytes)
    found.check_small_files(metrics_text)
    return found


def check_config(config: dict[str, Any], metrics: dict[str, Any], what: str) -> None:
    """Raise CorruptVersion where a `config.json` is of a later release, or lacks what is told of every version."""
    if not can_be_written([config, metrics]):
        raise CorruptVersion(f"config.json or metrics.json of {what} is nested too deeply")
    version = config.get("format_version")
    if type(version) is not int or version < 1:
        raise CorruptVersion(
            f"config.json of {what} has no whole number as its format_version, as all releases write it"
        )
    if version > FORMAT_VERSION:
        raise CorruptVersion(
            f"{what} has format {version}; this service reads formats up to {FORMAT_VERSION}: upgrade it",
            code="newer_format",
        )
    if wrong := [name for name, types in _TOLD.items() if type(config.get(name)) not in types]:
        raise CorruptVersion(f"config.json of {what} has no {wrong[0]}, or one that is none")
    if not 0 <= config["created_at"] < _END_OF_TIME:
        raise CorruptVersion(f"config.json of {what} has a time created_at that is none")


def _has_digests(config: dict[str, Any]) -> bool:
    digests = config.get("digests")
    return isinstance(digests, dict) and "model.safetensors" in digests and digests.keys() <= set(FILES)


def digest_of_config(config: dict[str, Any]) -> str:
    """Of what `config.json` says, whatever the order in which it does, but for this digest itself."""
    said = {key: value for key, value in config.items() if key != CONFIG_DIGEST}
    return digest_of_bytes(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))
