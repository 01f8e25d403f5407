"""What a process counts, where all processes of the service can read it: a mapped file of named numbers for each.

A process holds a lock on its file for as long as it lives. Counts outlive the process as long as another one is there:
the next one to start takes them over, so that sums never shrink. Gauges die with their process.
"""

import fcntl
import mmap
import os
import re
import struct
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import orjson
import structlog

RECORD_BYTES = 256  # a number, and its key as JSON, ended by zeros
NUMBERS_PER_RECORD = RECORD_BYTES // 8
MAX_CELLS = 2**17  # the file is sparse: what is not used takes no room
NOWHERE = MAX_CELLS - 1  # the record of which nobody reads
CHUNK_CELLS = 512  # whose room is taken at once, so that what is first seen on a full disk is counted, too
RECORD = struct.Struct(f"=d{RECORD_BYTES - 8}s")
FILE_NAME = re.compile(r"\d+-[0-9a-f]{8}")  # of others there may be, such as a file manager's

log = structlog.get_logger("gradserve.counters")

Key = tuple[str, ...]
"""A metric's name and the values of its labels."""


class Snapshot(NamedTuple):
    """`counts`: of all processes together; `gauges`: by process id, of those that live."""

    counts: dict[Key, float]
    gauges: dict[int, dict[Key, float]]


class Counters:
    """`values[cell]` may be added to by one thread alone; everything else is safe to share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cells: dict[Key, int] = {}
        self._num_cells = self._num_with_room = 0
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            others = list(self._files())
            self._create()
            for path, lives in others:
                if not lives:
                    if any(lives for _, lives in others):
                        self._take_over(path)
                    path.unlink()

    def _create(self) -> None:
        self._path = self._folder / f"{os.getpid()}-{os.urandom(4).hex()}"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.truncate(self._file, MAX_CELLS * RECORD_BYTES)
        os.pwrite(self._file, bytes(RECORD_BYTES), NOWHERE * RECORD_BYTES)
        self._map = mmap.mmap(self._file, MAX_CELLS * RECORD_BYTES)
        self.values = memoryview(self._map).cast("d")
        self._take_room()

    def cell(self, *key: str, gauge: bool = False) -> int:
        """Where in `values` a number is: one that is added to, or a gauge, which is set. It begins as 0.

        Where there is no room for more, it is a place of which nobody reads.
        """
        cell = self._cells.get(key)
        if cell is None:
            with self._lock:
                number = self._cells[key] // NUMBERS_PER_RECORD if key in self._cells else self._write_key(key, gauge)
                cell = number * NUMBERS_PER_RECORD
                if number != NOWHERE:
                    self._cells[key] = cell
        return cell

    def _write_key(self, key: Key, gauge: bool) -> int:
        """The number of the record, whose first byte is written last: it shows that all is there."""
        text, number = (b"=" if gauge else b"+") + orjson.dumps(key), self._num_cells
        if number + CHUNK_CELLS // 2 >= self._num_with_room:
            self._take_room()
        if len(text) >= RECORD_BYTES - 8 or number >= self._num_with_room:
            return NOWHERE
        start = number * RECORD_BYTES + 8
        self._map[start + 1 : start + len(text)] = text[1:]
        self._map[start] = text[0]
        self._num_cells += 1
        return number

    def _take_room(self) -> None:
        """Have the disk hold the next records: to write to a page of a mapped file that it can't hold kills us."""
        wanted = min(CHUNK_CELLS, NOWHERE - self._num_with_room) * RECORD_BYTES
        try:
            written = os.pwrite(self._file, bytes(wanted), self._num_with_room * RECORD_BYTES)
        except OSError as error:
            written = 0
            log.warning("there may be no room for what is to be counted", error=str(error))
        self._num_with_room += written // RECORD_BYTES

    def _take_over(self, path: Path) -> None:
        for key, gauge, value in _read(path):
            if not gauge:
                self.values[self.cell(*key)] += value

    # ---- reading

    def read(self) -> Snapshot:
        """What all processes have counted up to now."""
        counts: defaultdict[Key, float] = defaultdict(float)
        gauges: dict[int, dict[Key, float]] = {}
        with _alone(self._folder):
            for path, lives in self._files():
                found = gauges.setdefault(int(path.name.partition("-")[0]), {}) if lives else {}
                for key, gauge, value in _read(path):
                    if gauge:
                        found[key] = value
                    else:
                        counts[key] += value
        return Snapshot(counts, gauges)

    def _files(self) -> Iterator[tuple[Path, bool]]:
        """All processes' files, and whether the process lives."""
        for path in sorted(path for path in self._folder.iterdir() if FILE_NAME.fullmatch(path.name)):
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield path, True
                else:
                    yield path, False

    def close(self) -> None:
        """Let go of the file; what was counted stays for the others."""
        self.values.release()
        self._map.close()
        os.close(self._file)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While nobody else looks which processes live."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> Iterator[tuple[Key, bool, float]]:
    with path.open("rb") as file:
        while record := file.read(RECORD_BYTES):
            value, text = RECORD.unpack(record)
            if not text[0]:
                return
            text = text.rstrip(b"\0")
            yield tuple(orjson.loads(text[1:])), text[:1] == b"=", value


BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Histogram:
    """How many durations were of which size, and their sum: a cell for each bucket, labelled by its upper bound."""

    def __init__(self, counters: Counters, *key: str) -> None:
        self._values = counters.values
        self._buckets = [counters.cell(*key, bound) for bound in (*map(str, BOUNDS), "+Inf")]
        self._sum = counters.cell(*key, "sum")

    def observe(self, *seconds: float) -> None:
        for one in seconds:
            self._values[self._buckets[bisect_left(BOUNDS, one)]] += 1
        self._values[self._sum] += sum(seconds)
