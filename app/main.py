"""The application: settings in, an ASGI app out. The one place that knows everybody."""

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import structlog
import torch
from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from app import __version__, logs
from app.api import (
    connections,
    datasets,
    evaluate,
    export,
    invocations,
    jobs,
    metrics,
    middleware,
    models,
    openapi,
    operations,
    pages,
    predict,
    problems,
    tabular,
    tracing,
    train,
    v2,
    v2_extensions,
    v2_infer,
    v2_repository,
    versions,
)
from app.api.auth import Keys
from app.api.guard import Guard
from app.api.hot_path import HotPath
from app.api.http_counts import HttpCounts
from app.api.rate_limit import RateLimit
from app.api.services import Services
from app.errors import GradserveError
from app.jobs.feed import EventFeed, ended_by_signals
from app.jobs.queue import JobQueue
from app.jobs.reconciler import Rules
from app.jobs.retention import Keep, Retention
from app.jobs.supervisor import ELECTION_SECONDS, Supervisor
from app.learning.allocator import keep_heap
from app.learning.devices import resolve_device, usable_cores
from app.serving.batcher import Limits
from app.serving.cache import ModelCache
from app.serving.predictor import Predictor
from app.serving.statistics import Statistics
from app.settings import Settings, listed
from app.storage.clock import Clock
from app.storage.counters import Counters
from app.storage.database import Database
from app.storage.datasets import DatasetStore
from app.storage.keys import KeyFile
from app.storage.migrations import migrate
from app.storage.models import ModelStore

REFRESH_SECONDS = 0.5
PROTOCOLS = (v2, v2_repository, v2_infer, v2_extensions, invocations)  # of others
ROOMS = {
    "datasets": "Tables that stay, under names",
    "train": "From a table to a job",
    "jobs": "What became of a run, and what may be asked of it",
    "models": "Published versions, their files and aliases",
    "predict": "From rows to predictions, and measured on test data",
}

log = structlog.get_logger()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service. Nothing is opened, read or started before its lifespan begins."""
    settings = settings or Settings()
    app: FastAPI = FastAPIOffline(
        title="Gradserve",
        version=__version__,
        description="POST a table, get a trained neural net; POST rows, get predictions.",
        lifespan=lifespan,
        max_body_size=settings.max_body_bytes,
        openapi_tags=[{"name": name, "description": text} for name, text in ROOMS.items()],
        docs_url=None,  # they are among our own pages
        redoc_url=None,
        redirect_slashes=False,  # curl shows nothing of a redirection; a problem names the path
        telemetry=dict.fromkeys(("tracing", "metrics", "logs"), False),  # app.api.tracing has it, off costs nothing
    )
    app.state.settings = settings
    app.state.keys = Keys(settings.api_keys.get_secret_value())
    middleware.install(app, partial(_guard, settings, app.state.keys))
    tracing.install(app)
    problems.install(app)
    openapi.install(app)
    tabular.install(app, settings.max_dataset_bytes)
    app.include_router(datasets.router, max_body_size=settings.max_dataset_bytes)
    app.include_router(versions.router, max_body_size=versions.max_archive_bytes(settings.max_parameters))
    app.include_router(jobs.router)
    for room in (train, models, predict, evaluate, *PROTOCOLS, export, operations, metrics):
        app.include_router(room.router)
    pages.install(app)
    return app


def _guard(settings: Settings, keys: Keys, inner: ASGIApp) -> Guard:
    return Guard(
        inner,
        keys,
        allowed_hosts=listed(settings.allowed_hosts),
        allowed_origins=listed(settings.allowed_origins),
        limit=RateLimit(settings.max_requests_per_second),
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the stores, start the supervisor; at the end let running jobs write a checkpoint."""
    settings: Settings = app.state.settings
    logs.configure(settings.log_format, settings.log_level)
    app.state.keys.watch(KeyFile(settings.key_file))
    database = Database(settings.database)
    counters = Counters(settings.data_dir / "counters")
    traces: tracing.Tracing | None = app.state.tracing
    statistics = Statistics(counters, traces.record if traces else None)
    services = await to_thread.run_sync(build_services, settings, database, statistics)
    app.state.services, app.state.ledger.counts = services, HttpCounts(counters)
    end_with_parent()
    supervisor = Supervisor(services.jobs, services.models, _rules(settings), counters)
    supervisor.start()
    gc.freeze()  # what is here by now stays: no collection looks at it again
    with ended_by_signals(services.feed):
        log.info("ready", version=__version__, models_dir=str(settings.models_dir), data_dir=str(settings.data_dir))
        retention = Retention(database, _keep(settings))
        housekeeping = asyncio.create_task(keep_house(services, retention, supervisor))
        refreshing = asyncio.create_task(keep_memory(services.predictor.cache))
        hot_path = HotPath(app.state.keys, app.state.guard, app.state.ledger, services)
        yield {"connection_limits": _connection_limits(settings), "hot_path": hot_path}
        retention.stop()
        housekeeping.cancel()
        refreshing.cancel()
    services.feed.close()
    app.state.ledger.flush()
    statistics.settle()
    await to_thread.run_sync(supervisor.stop)
    services.predictor.close()
    database.close()
    if traces:
        await to_thread.run_sync(traces.close)


def end_with_parent() -> None:
    """Where uvicorn runs several processes and is killed, they end, too, and leave the port to its successor."""
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_after, args=(parent,), name="parent", daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


async def keep_memory(cache: ModelCache) -> None:
    """Let go of versions that were deleted or unloaded, whichever process was told."""
    while True:
        try:
            await to_thread.run_sync(cache.refresh)
        except OSError:
            log.exception("it can't be seen which versions are to leave the memory; that is tried again")
        await asyncio.sleep(REFRESH_SECONDS)


async def keep_house(services: Services, retention: Retention, supervisor: Supervisor) -> None:
    """From time to time, in the process that supervises, remove what nobody names any more and what is not kept."""
    clock, interval = Clock(services.settings.data_dir / "clock"), services.settings.housekeeping_interval_seconds
    while True:
        leading = supervisor.leading
        try:
            if leading:
                await to_thread.run_sync(_sweep, services, retention, clock)
        except (OSError, GradserveError):
            log.exception("housekeeping failed and is tried again later")
        await asyncio.sleep(interval if leading else min(interval, ELECTION_SECONDS))


def _sweep(services: Services, retention: Retention, clock: Clock) -> None:
    now = clock.now()
    retention.run(now)
    deadline = now - services.settings.keep_orphans_seconds
    services.models.sweep(deadline)
    services.models.empty_trash(services.jobs.versions_in_use)
    services.datasets.sweep(services.jobs.digests_in_use(), deadline)


def build_services(settings: Settings, database: Database, statistics: Statistics) -> Services:
    """Make the folders, bring the database up to date, open the stores."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    migrate(database)
    models = ModelStore(settings.models_dir)
    torch.set_num_threads(max(1, usable_cores() // 2))  # the other half is for training
    keep_heap()
    cache = ModelCache(
        models, statistics.counters, max_bytes=settings.cache_bytes, device=resolve_device(settings.device)
    )
    queue = JobQueue(
        database, max_queued_jobs=settings.max_queued_jobs, max_queued_jobs_per_key=settings.max_queued_jobs_per_key
    )
    return Services(
        settings=settings,
        jobs=queue,
        feed=EventFeed(queue),
        datasets=DatasetStore(
            settings.data_dir / "datasets", database, settings.max_dataset_bytes, settings.max_columns
        ),
        models=models,
        predictor=Predictor(
            cache,
            statistics,
            limits=Limits(settings.max_batch_rows, settings.max_queued_rows, settings.max_queued_bytes),
        ),
    )


def _connection_limits(settings: Settings) -> connections.Limits:
    return connections.Limits(
        header_seconds=settings.max_header_seconds,
        stall_seconds=settings.max_stall_seconds,
        min_bytes_per_second=settings.min_bytes_per_second,
        max_connections=connections.max_connections(settings.max_connections),
    )


def _keep(settings: Settings) -> Keep:
    return Keep(
        jobs_days=settings.keep_jobs_days,
        num_jobs=settings.max_finished_jobs,
        events_days=settings.keep_events_days,
        events_per_job=settings.max_events_per_job,
    )


def _rules(settings: Settings) -> Rules:
    return Rules(
        data_dir=settings.data_dir,
        models_dir=settings.models_dir,
        max_running_jobs=settings.max_running_jobs,
        checkpoint_interval_seconds=settings.checkpoint_interval_seconds,
        worker_timeout_seconds=settings.worker_timeout_seconds,
        max_rows_bytes=settings.max_rows_bytes,
    )


app = create_app()
