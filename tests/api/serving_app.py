"""The routes that serve models, over real stores, without the jobs that train them."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI

from app.api import problems
from app.api.auth import Keys
from app.serving.cache import ModelCache
from app.serving.predictor import Predictor
from app.serving.statistics import Statistics
from app.settings import Settings
from app.storage.counters import Counters
from app.storage.models import ModelStore
from tests.waiting import until


def serving_app(root: Path, *routers: APIRouter, keys: str = "", **settings: Any) -> FastAPI:
    models = ModelStore(root / "models")
    chosen = Settings(models_dir=models.root, data_dir=root / "data", **settings)
    chosen.data_dir.mkdir(exist_ok=True)
    app = FastAPI(max_body_size=chosen.max_body_bytes)
    problems.install(app)
    for router in routers:
        app.include_router(router)
    app.state.keys = Keys(keys)
    statistics = Statistics(Counters(root / "counters"))
    predictor = Predictor(ModelCache(models, statistics.counters, max_bytes=2**30, device="cpu"), statistics)
    app.state.services = SimpleNamespace(settings=chosen, models=models, predictor=predictor)
    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the app, which is served by a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
            app.state.services.predictor.close()
