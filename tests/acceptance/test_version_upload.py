"""A version goes from one running service to another, and only whole."""

import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
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
    answer = httpx.post(f"{service.url}/predict", json={"model": model, "version": version, "inputs": ROWS}, timeout=60)
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
    return httpx.post(f"{service.url}/models/{name}/versions", content=body, timeout=60)


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


Header = dict[str, Any]


def reheaded(content: bytes, header: bytes | Header) -> bytes:
    """A safetensors file with another header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + int.from_bytes(content[:8], "little") :]


def lying_weights(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What a header can say that is not so."""
    length = int.from_bytes(content[:8], "little")
    header: Header = json.loads(content[8 : 8 + length])
    name = next(iter(header))
    begin, end = header[name]["data_offsets"]

    def first(**changes: Any) -> bytes:
        return reheaded(content, header | {name: header[name] | changes})

    for size in (0, length - 8, length + 8, 10**9, 2**63, 2**64 - 1):
        yield f"a header of {size} bytes", size.to_bytes(8, "little") + content[8:]
    yield "nothing", b""
    yield "half a length", content[:5]
    yield "a header of 101 MB", reheaded(content, {"__metadata__": {"a": "x" * (101 * 10**6)}} | header)
    yield "a header that is nested", reheaded(content, b'{"a":' * 5000 + b"1" + b"}" * 5000)
    yield "a header of nothing", reheaded(content, {})
    yield "a negative shape", first(shape=[-1])
    yield "a huge shape", first(shape=[2**62, 2**62])
    yield "another type", first(dtype="F64")
    yield "no type", first(dtype="OBJECT")
    yield "an end before its begin", first(data_offsets=[end, begin])
    yield "an end beyond the file", first(data_offsets=[begin, 10**12])
    yield "a negative begin", first(data_offsets=[-8, end])
    yield "tensors that overlap", reheaded(content, header | {"other": header[name]})
    yield "bytes of nobody", content + bytes(8)


def test_weights_that_lie_are_not_published(service: Service, tmp_path: Any) -> None:
    files = files_of(service)
    for name, content in lying_weights(files["model.safetensors"]):
        answer = upload(service, zipped(with_digests({**files, "model.safetensors": content}, tmp_path)), "lying")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_version"), (name, answer.text)
    assert httpx.get(f"{service.url}/models/lying").status_code == 404
    assert predicted(service, "moving")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"created_at": 1e300}),
        ("config.json", {"created_at": 10**18}),
        ("config.json", {"num_parameters": "many"}),
        ("config.json", {"num_parameters": None}),
        ("config.json", {"more": json.loads("[" * 900 + "]" * 900)}),
        ("config.json", {"format_version": 99}),
        ("metrics.json", {"loss": json.loads("[" * 900 + "]" * 900)}),
        ("metrics.json", {"loss": json.loads("[" * 240 + "]" * 240)}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_version_that_could_not_be_told_of_is_not_published(
    service: Service, tmp_path: Any, file: str, changes: Any
) -> None:
    """Whoever lists models would get nothing but an error from then on."""
    files = files_of(service)
    files[file] = json.dumps(json.loads(files[file]) | changes).encode()
    answer = upload(service, zipped(with_digests(files, tmp_path)), "untold")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), answer.text
    assert httpx.get(f"{service.url}/models/untold").status_code == 404
    assert httpx.get(f"{service.url}/models").status_code == 200


def test_what_was_changed_on_the_way_is_refused(service: Service) -> None:
    files = files_of(service)
    changed = files["model.safetensors"][:-1] + bytes([files["model.safetensors"][-1] ^ 1])
    answer = upload(service, zipped({**files, "model.safetensors": changed}))
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert upload(service, b"no archive").status_code == 400
    assert upload(service, zipped({**files, "../evil": b""})).status_code == 422
    assert not list((service.root / "models" / ".staging").iterdir())
