"""Several processes are one service: they count together, and share weights, which they give back when unwanted."""

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from scripts.service import Service
from tests.published import numbers_model, publish
from tests.waiting import until

WIDTH = 4000  # 64 MB of weights
ROW = {"inputs": [[1, 2]]}


def metric(service: Service, name: str, **labels: str) -> list[float]:
    """The values of all processes."""
    families = text_string_to_metric_families(httpx.get(f"{service.url}/metrics", verify=False).text)
    (family,) = (found for found in families if found.name == name)
    return [found.value for found in family.samples if labels.items() <= found.labels.items()]


def ask(service: Service, model: str) -> str:
    """The version that answers, on a connection of its own, which any process may take; it needs no TLS."""
    answer = httpx.post(f"{service.url}/predict", json={"model": model, **ROW}, timeout=60, verify=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["version"])


def held(service: Service, model: str, version: str = "1") -> list[float]:
    return metric(service, "gradserve_model_memory_bytes", model=model, version=version)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two processes, both of which have answered before."""
    with Service(tmp_path_factory.mktemp("memory"), workers=2) as service:
        publish_small(service, "first")
        yield service


def publish_small(service: Service, model: str) -> None:
    """A first version, which both processes have in memory."""
    publish(service.root / "models", model, numbers_model())
    until(lambda: ask(service, model) and len(held(service, model)) == 2, 60)


def test_processes_share_weights_and_give_them_back(service: Service) -> None:
    def proportional() -> float:
        return sum(metric(service, "gradserve_proportional_memory_bytes"))

    before = proportional()
    publish(service.root / "models", "large", numbers_model(network={"hidden_features": [WIDTH, WIDTH]}))
    until(lambda: ask(service, "large") and len(held(service, "large")) == 2, 60)
    (weights, _) = held(service, "large")
    assert weights > 4 * WIDTH**2
    assert 0.9 * weights < proportional() - before < 1.5 * weights
    assert httpx.post(f"{service.url}/v2/repository/models/large/unload").status_code == 200
    until(lambda: not held(service, "large"))
    until(lambda: proportional() - before < 0.5 * weights)
    assert ask(service, "large") == "1"


def test_all_processes_see_a_new_version_at_once(service: Service) -> None:
    publish_small(service, "renewed")
    publish(service.root / "models", "renewed", numbers_model())
    assert {ask(service, "renewed") for _ in range(20)} == {"2"}
    until(lambda: ask(service, "renewed") and len(held(service, "renewed", "2")) == 2)


def test_a_new_version_that_can_not_be_loaded_leaves_the_old_one_serving(service: Service) -> None:
    publish_small(service, "broken")
    publish(service.root / "models", "broken", numbers_model())
    (service.root / "models" / "broken" / "2" / "model.safetensors").write_bytes(b"\0" * 1000)
    assert {ask(service, "broken") for _ in range(20)} == {"1"}
    answer = httpx.post(f"{service.url}/predict", json={"model": "broken", "version": "2", **ROW})
    assert (answer.status_code, answer.json()["code"]) == (503, "corrupt_version")


def test_whichever_process_answers_tells_of_all(service: Service) -> None:
    def counted() -> list[float]:
        return metric(service, "gradserve_inference_count", model="counted", version="1")

    publish(service.root / "models", "counted", numbers_model())
    assert metric(service, "gradserve_processes") == [2]
    for _ in range(20):
        assert ask(service, "counted") == "1"
    until(lambda: counted() == [20])  # each process counts a moment after it has answered
    for _ in range(10):
        assert counted() == [20]
        stats = httpx.get(f"{service.url}/v2/models/counted/stats", verify=False).json()
        assert [found["inference_count"] for found in stats["model_stats"]] == [20]
