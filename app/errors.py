"""What can go wrong on a user's behalf. Knows no HTTP: `app.api.problems` gives each its status.

GradserveError
├── InvalidInput          well-formed, but wrong; carries one fault per place
│   ├── ShapeMismatch     rows or layers that do not fit together
│   └── UnknownColumn     a column that the table or the model does not have
├── Unparseable           not JSON, not CSV, not Parquet … at all
├── UnsupportedMedia      a format that is not spoken here
├── TooLarge              over a limit that the settings state
├── NotFound
│   ├── ModelNotFound
│   ├── VersionNotFound
│   ├── DatasetNotFound
│   ├── JobNotFound
│   └── FileNotInVersion
├── Conflict              the state of the thing does not allow it
├── Overloaded            full for now; try again later
├── ClientGone            nobody waits for the answer any more
├── Unavailable           a part of the service that is not there yet, or any more
│   └── StorageFailed     the disk or the database does not take or give what it should
│       └── StorageFull
├── Unauthenticated       no valid key
├── Forbidden             a valid key without the scope
├── CorruptVersion        a published version whose files are not what was published
└── TrainingFailed        a run that ended without a model
    ├── Diverged          the loss or the weights stopped being finite numbers
    ├── OutOfMemory
    ├── EngineFailed      the compiled engine broke off where no other could go on
    └── BadData           something in the table that only a full read shows
"""

import errno
from collections.abc import Iterable
from typing import NamedTuple

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FAILED = (errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # of the host, of a card, of its libraries


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # as of a file that can't be mapped
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


class Fault(NamedTuple):
    """One wrong place: `pointer` is a JSON pointer (RFC 6901) into the request's body."""

    pointer: str
    detail: str


class GradserveError(Exception):
    """Base of all errors that a user can read. `code` is a stable word, `detail` a sentence that helps."""

    code = "error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code


class InvalidInput(GradserveError, ValueError):
    code = "invalid_input"

    def __init__(self, detail: str, faults: Iterable[Fault] = (), *, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.faults = tuple(faults)

    @classmethod
    def at(cls, pointer: str, detail: str) -> "InvalidInput":
        """The error of a single fault."""
        return cls(detail, [Fault(pointer, detail)])


class ShapeMismatch(InvalidInput):
    code = "shape_mismatch"


class UnknownColumn(InvalidInput):
    code = "unknown_column"


class Unparseable(GradserveError):
    code = "unparseable"


class UnsupportedMedia(GradserveError):
    code = "unsupported_media_type"


class TooLarge(GradserveError):
    code = "too_large"


class NotFound(GradserveError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class VersionNotFound(NotFound):
    code = "version_not_found"


class DatasetNotFound(NotFound):
    code = "dataset_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class FileNotInVersion(NotFound):
    code = "file_not_found"


class Conflict(GradserveError):
    code = "conflict"


class Overloaded(GradserveError):
    code = "overloaded"

    def __init__(self, detail: str, *, retry_after_seconds: int = 1, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after_seconds = retry_after_seconds


class ClientGone(GradserveError):
    code = "client_gone"


class Unavailable(GradserveError):
    code = "unavailable"


class StorageFailed(Unavailable):
    code = "storage_failed"

    @staticmethod
    def of(error: OSError) -> "StorageFailed | None":
        """What an error of the operating system means to a user, where the disk is to blame."""
        if error.errno in DISK_FULL:
            return StorageFull(f"the disk is full ({error.strerror}); this works again once there is space")
        if error.errno in DISK_FAILED:
            return StorageFailed(f"the disk can't be used: {error.strerror}")
        return None


class StorageFull(StorageFailed):
    code = "storage_full"


class Unauthenticated(GradserveError):
    code = "unauthenticated"


class Forbidden(GradserveError):
    code = "forbidden"


class CorruptVersion(GradserveError):
    code = "corrupt_version"


class TrainingFailed(GradserveError):
    code = "training_failed"


class Diverged(TrainingFailed):
    code = "diverged"


class OutOfMemory(TrainingFailed):
    code = "out_of_memory"


class EngineFailed(TrainingFailed):
    code = "engine_failed"


class BadData(TrainingFailed):
    code = "bad_data"
