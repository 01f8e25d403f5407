"""A file in models/ that is torn or has another bit: refused, named in the log, and everything else serves on."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from scripts.service import Service
from tests.published import numbers_model, publish
from tests.waiting import until

FILES = ("model.safetensors", "config.json", "metrics.json", "history.jsonl")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("broken")) as service:
        yield service


def flipped(content: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def predict(service: Service, model: str, version: str | None = None) -> httpx.Response:
    body = {"model": model, "inputs": [[1, 2]]} | ({"version": version} if version else {})
    return httpx.post(f"{service.url}/predict", json=body, timeout=60)


def refused(answer: httpx.Response, file: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "corrupt_version"), answer.text
    assert file in answer.json()["detail"] or "can't be read" in answer.json()["detail"]


@pytest.mark.parametrize("damage", [flipped, torn])
@pytest.mark.parametrize("file", FILES)
def test_a_broken_version_is_refused_and_the_one_before_it_serves(
    rig: Service, file: str, damage: Callable[[bytes], bytes]
) -> None:
    model = f"{file.partition('.')[0]}-{damage.__name__}"
    for _ in range(2):
        publish(rig.root / "models", model, numbers_model(init={"weight": "normal"}))
    path = rig.root / "models" / model / "2" / file
    if not path.stat().st_size:
        path.write_bytes(b"{}")  # one that has too much is no better than one that has too little
    else:
        path.write_bytes(damage(path.read_bytes()))
    for _ in range(3):
        refused(predict(rig, model, "2"), file)
        assert predict(rig, model).json()["version"] == "1"
    assert predict(rig, model, "1").status_code == 200
    assert httpx.get(f"{rig.url}/readyz").status_code == 200
    told = [line for line in rig.log.read_text().splitlines() if "can't be loaded" in line and f'"{model}"' in line]
    assert len(told) == 1, "once, however often it is asked for"
    assert '"version": "2"' in told[0]
    assert f'gradserve_load_failures_total{{model="{model}",version="2"}}' in httpx.get(f"{rig.url}/metrics").text


@pytest.mark.parametrize("file", FILES)
def test_a_version_that_lacks_a_file(rig: Service, file: str) -> None:
    model = f"lacks-{file.partition('.')[0]}"
    for _ in range(2):
        publish(rig.root / "models", model, numbers_model(init={"weight": "normal"}))
    (rig.root / "models" / model / "2" / file).unlink()
    status, code = (404, "version_not_found") if file == "config.json" else (503, "corrupt_version")
    for answer in (
        predict(rig, model, "2"),
        httpx.get(f"{rig.url}/models/{model}/versions/2/archive"),
        httpx.get(f"{rig.url}/models/{model}/versions/2/export", timeout=60),
    ):
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert predict(rig, model).json()["version"] == "1"
    for path in (f"/models/{model}", "/models", f"/models/{model}/versions", f"/v2/models/{model}"):
        assert httpx.get(f"{rig.url}{path}").status_code == 200, path
    assert httpx.get(f"{rig.url}/models/{model}/versions/2").status_code in (200, status)


def test_what_breaks_while_it_is_served_is_served_on(rig: Service) -> None:
    """From memory; a restart refuses it."""
    publish(rig.root / "models", "served", numbers_model())
    before = predict(rig, "served").json()
    path = rig.root / "models" / "served" / "1" / "config.json"
    path.write_bytes(torn(path.read_bytes()))
    assert predict(rig, "served").json() == before
    assert httpx.get(f"{rig.url}/models").status_code == 200


def test_broken_aliases_take_no_version_along(rig: Service) -> None:
    publish(rig.root / "models", "named", numbers_model())
    champion = f"{rig.url}/models/named/aliases/champion"
    assert httpx.put(champion, json={"version": "1"}).status_code == 200
    path = rig.root / "models" / "named" / "aliases.json"
    whole = path.read_bytes()
    path.write_bytes(torn(whole))
    for answer in (predict(rig, "named", "champion"), httpx.put(champion, json={"version": "1"})):
        assert (answer.status_code, answer.json()["code"]) == (503, "corrupt_aliases"), answer.text
    assert predict(rig, "named").json()["version"] == predict(rig, "named", "1").json()["version"] == "1"
    for path_ in ("/models", "/models/named", "/models/named/versions/1"):
        assert httpx.get(f"{rig.url}{path_}").status_code == 200
    assert any("aliases can't be read" in line and '"named"' in line for line in rig.log.read_text().splitlines())
    path.write_bytes(whole)
    assert predict(rig, "named", "champion").status_code == 200


def test_a_broken_marker_holds_up_no_job(rig: Service) -> None:
    body = {"model": "marked", "data": {"inputs": [[1], [2]], "targets": [1, 2]}, "stop": {"max_epochs": 2}}
    marker = rig.root / "models" / "marked" / "last_version"
    for version in ("1", "2"):
        job = httpx.post(f"{rig.url}/train", json=body, timeout=60).json()["id"]
        found = until(lambda job=job: (at := httpx.get(f"{rig.url}/jobs/{job}").json())["terminal"] and at, 60)  # type: ignore[misc]
        assert (found["state"], found["version"]) == ("succeeded", version)
        assert marker.read_text() == version
        marker.write_bytes(b"")
    assert str(marker.relative_to(rig.root)) in rig.log.read_text()
