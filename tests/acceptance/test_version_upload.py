"""A version goes from one running service to another, and only whole."""

import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from app.storage.files import digest_of
from scripts.service import Service
from tests.published import COLUMNS, FEATURES, columns_model, publish

ROWS = COLUMNS.select(FEATURES).to_dicts()


@pytest.fixture(scope="module", autouse=True)
def published(service: Service) -> None:
    publish(service.root / "models", "moving", columns_model())


def predicted(service: Service, model: str, version: str | None = None) -> Any:
    answer = httpx.post(f"{service.url}/predict", json={"model": model, "version": version, "inputs": ROWS})
    assert answer.status_code == 200, answer.text
    return answer.json()["probabilities"]


def files_of(service: Service) -> dict[str, bytes]:
    folder = service.root / "models" / "moving" / "1"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def zipped(files: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"moving-1/{name}", content)
    return body.getvalue()


def upload(service: Service, body: bytes, name: str = "moved") -> httpx.Response:
    return httpx.post(f"{service.url}/models/{name}/versions", content=body)


def test_round_trip(service: Service, start_service: Callable[..., Service]) -> None:
    """As the documentation has it: one curl's output is the other's input."""
    other = start_service()
    source, target = f"{service.url}/models/moving/versions/1/archive", f"{other.url}/models/moved/versions"
    for number in ("1", "2"):
        piped = f"curl -sSf {source} | curl -sSf --data-binary @- -H 'Content-Type: application/x-tar' {target}"
        answer = subprocess.run(["bash", "-o", "pipefail", "-c", piped], capture_output=True, check=True, timeout=60)
        said = json.loads(answer.stdout)
        assert (said["model"], said["version"]) == ("moved", number)
        assert predicted(other, "moved", number) == predicted(service, "moving")
    assert httpx.get(f"{other.url}/models/moved").json()["versions"] == ["1", "2"]
    assert not list((other.root / "models" / ".staging").iterdir())


def test_a_tar_of_the_folder_itself(service: Service) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        archive.add(service.root / "models" / "moving" / "1", arcname="1")
    answer = upload(service, body.getvalue(), "from-tar")
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == "/models/from-tar/versions/1"
    assert httpx.get(f"{service.url}{answer.headers['location']}").json() == answer.json()
    assert predicted(service, "from-tar") == predicted(service, "moving")


def with_digests(files: dict[str, bytes], folder: Any) -> dict[str, bytes]:
    """The files, with digests in config.json that fit them."""
    config = json.loads(files["config.json"])
    del config["config_digest"]
    for name in config["digests"]:
        (folder / name).write_bytes(files[name])
        config["digests"][name] = digest_of(folder / name)
    return files | {"config.json": json.dumps(config).encode()}


def test_what_does_not_load_is_not_published(service: Service, tmp_path: Any) -> None:
    files = files_of(service)
    tensors = load_file(service.root / "models/moving/1/model.safetensors")
    name = next(name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2)
    save_file({**tensors, name: tensors[name][:, 1:].contiguous()}, tmp_path / "narrow.safetensors")
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "missing.safetensors")
    config = json.loads(files["config.json"])
    bad_config = {**config, "features": {**config["features"], "columns": 5}}
    for spoiled in (
        {"model.safetensors": (tmp_path / "narrow.safetensors").read_bytes()},
        {"model.safetensors": (tmp_path / "missing.safetensors").read_bytes()},
        {"model.safetensors": b"\xff" * 100},
        {"model.safetensors": b"\x80\x04\x95pickle"},
        {"model.safetensors": files["model.safetensors"][:-8]},
        {"config.json": json.dumps(bad_config).encode()},
        {"config.json": json.dumps({**config, "signature": {}}).encode()},
        {"config.json": json.dumps({**config, "spec": {"model": "m"}}).encode()},
    ):
        answer = upload(service, zipped(with_digests({**files, **spoiled}, tmp_path)), "spoiled")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_version"), answer.text
    assert httpx.get(f"{service.url}/models/spoiled").status_code == 404


def test_what_was_changed_on_the_way_is_refused(service: Service) -> None:
    files = files_of(service)
    changed = files["model.safetensors"][:-1] + bytes([files["model.safetensors"][-1] ^ 1])
    answer = upload(service, zipped({**files, "model.safetensors": changed}))
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert upload(service, b"no archive").status_code == 400
    assert upload(service, zipped({**files, "../evil": b""})).status_code == 422
    assert not list((service.root / "models" / ".staging").iterdir())
