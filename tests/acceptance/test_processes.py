"""Several processes count as one service."""

from collections.abc import Callable

import httpx

from scripts.service import Service
from tests.published import numbers_model, publish
from tests.waiting import until


def test_whichever_process_answers_tells_of_all(start_service: Callable[..., Service]) -> None:
    service = start_service(workers=2)
    publish(service.root / "models", "m", numbers_model())
    until(lambda: "gradserve_processes 2" in httpx.get(f"{service.url}/metrics").text)
    for _ in range(20):  # each on a connection of its own, which either process may take
        answer = httpx.post(f"{service.url}/predict", json={"model": "m", "inputs": [[1, 2]]})
        assert answer.status_code == 200
    for _ in range(10):
        assert 'gradserve_inference_count{model="m",version="1"} 20' in httpx.get(f"{service.url}/metrics").text
        (found,) = httpx.get(f"{service.url}/v2/models/m/stats").json()["model_stats"]
        assert found["inference_count"] == 20
