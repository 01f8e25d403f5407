"""Events as they happen, for any number of listeners: one reader per process, however many streams are open."""

import asyncio
import signal
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType

import structlog

from app.errors import JobNotFound
from app.jobs.queue import TERMINAL, JobQueue
from app.storage.jobs import Event, Job

log = structlog.get_logger("gradserve.jobs")

POLL_SECONDS = 0.075  # how late an event that another process has written may be seen
KEEP_ALIVE_SECONDS = 15.0
PAGE = 500
PAGE_OF_ONE = 100  # events that a stream reads at once where it has not kept up: each stream holds its own
BUFFER = 2000  # events held for a listener that does not keep up; beyond, it reads them from the database


class Listener:
    """Collects the events of one job.

    `behind`: not everything was collected, the database has the rest. `lost`: nothing will be collected any more.
    """

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.behind = True
        self.lost = False
        self._events: list[Event] = []

    def tell(self, event: Event) -> None:
        if len(self._events) < BUFFER:
            self._events.append(event)
        else:
            self.behind = True
        self.wake.set()

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        self.wake.clear()
        return events


class EventFeed:
    """Belongs to one event loop; only `close` may be called from elsewhere."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    async def follow(self, job_id: str, *, after: int = 0) -> AsyncGenerator[list[Event], None]:
        """A job's events above `after`, each once and in order, until its terminal `state` or the feed's end.

        Where some have been removed since, the oldest that are left come next; where `after` is above all that there
        are, because the database is an older one, those that are yet to come.
        An empty list comes every `KEEP_ALIVE_SECONDS` in which nothing happens.
        """
        async with self._listening(job_id) as listener:
            after = min(after, await asyncio.to_thread(self._queue.last_event_id)) if after else 0
            while not (self._closed or listener.lost):
                quiet = not listener.behind and not await _is_set(listener.wake, KEEP_ALIVE_SECONDS)
                if listener.behind or quiet:  # the job may have been deleted, with its last events
                    events = await self._catch_up(job_id, listener, after)
                    if events is None:
                        return
                else:
                    events = [event for event in listener.take() if event.id > after]
                    if not events:
                        continue
                after = events[-1].id if events else after
                yield events
                if any(event.type == "state" and event.data["state"] in TERMINAL for event in events):
                    return

    async def _catch_up(self, job_id: str, listener: Listener, after: int) -> list[Event] | None:
        """The next page from the database; None where nothing more will come."""
        listener.take()  # before reading: what is told from now on is kept
        listener.behind = False
        with suppress(JobNotFound):
            events = await asyncio.to_thread(self._queue.events, job_id, after=after, limit=PAGE_OF_ONE)
            listener.behind = listener.behind or len(events) == PAGE_OF_ONE
            if events or (await asyncio.to_thread(self._queue.get, job_id)).state not in TERMINAL:
                return events
        return None

    async def wait_for(self, job_id: str, seconds: float) -> Job:
        """The job once it has ended, or as it is when time is up. Raises JobNotFound."""
        async with self._listening(job_id) as listener:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while (await self._get(job_id)).state not in TERMINAL and not (self._closed or listener.lost):
                        await listener.wake.wait()
                        listener.take()
        return await self._get(job_id)

    async def _get(self, job_id: str) -> Job:
        return await asyncio.to_thread(self._queue.get, job_id)

    def close(self) -> None:
        """End every stream and every wait, now and from now on. From any thread, or a signal's handler."""
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lose_all)

    def _lose_all(self) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.lost = True
                listener.wake.set()

    @property
    def num_listeners(self) -> int:
        return sum(map(len, self._listeners.values()))

    # ---- the one reader

    @asynccontextmanager
    async def _listening(self, job_id: str) -> AsyncIterator[Listener]:
        listener = Listener()
        self._listeners[job_id].add(listener)
        try:
            await self._have_reader()
            yield listener
        finally:
            self._listeners[job_id].discard(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    async def _have_reader(self) -> None:
        """Return once the reader has noted where it starts, so that no event falls between it and a listener."""
        if self._reader is None or self._reader.done():
            self._loop = asyncio.get_running_loop()
            self._bell, self._started = asyncio.Event(), asyncio.Event()
            self._reader = asyncio.create_task(self._read())
        await self._started.wait()

    async def _read(self) -> None:
        """Hand events to listeners while there are any."""
        loop, bell = asyncio.get_running_loop(), self._bell

        def ring() -> None:
            loop.call_soon_threadsafe(bell.set)

        watch = self._queue.watch()
        self._queue.add_listener(ring)
        try:
            watch.changed()
            last = await asyncio.to_thread(self._queue.last_event_id)
            self._started.set()
            while self._listeners and not self._closed:
                await _is_set(bell, POLL_SECONDS)
                bell.clear()
                if watch.changed():
                    last = await self._hand_out(last)
        except Exception:
            log.exception("events can't be read; streams end, for their clients to reconnect")
            self._lose_all()
        finally:
            self._started.set()
            self._queue.remove_listener(ring)
            watch.close()

    async def _hand_out(self, last: int) -> int:
        while True:
            events = await asyncio.to_thread(self._queue.events_of_all, after=last, limit=PAGE)
            for event in events:
                for listener in self._listeners.get(event.job_id, ()):
                    listener.tell(event)
            last = events[-1].id if events else last
            if len(events) < PAGE:
                return last


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but not for ever."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


@contextmanager
def ended_by_signals(feed: EventFeed) -> Iterator[None]:
    """SIGINT and SIGTERM close the feed, too: a server that first waits for open streams would wait for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not this thread's business
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def close(number: int, frame: FrameType | None) -> None:
        feed.close()
        handler = former[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    ours = [number for number, handler in former.items() if callable(handler)]
    for number in ours:
        signal.signal(number, close)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is close:
                signal.signal(number, former[number])
