"""Keys, HTTPS and logs of real services, as whoever runs one has them."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.client import Client, Unauthorized
from scripts.service import Service, free_port
from tests.waiting import until

GRADSERVE = [sys.executable, "-m", "app.cli"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def gradserve(data: Path, *arguments: str) -> str:
    """What a command prints on standard output."""
    environment = os.environ | {"GRADSERVE_DATA_DIR": str(data)}
    done = subprocess.run([*GRADSERVE, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def serving(root: Path, *arguments: str, **settings: str) -> Iterator[str]:
    """The URL of a service that is started by hand, with what `Service` has no word for; its log is root/log."""
    port = free_port()
    environment = os.environ | {"GRADSERVE_DATA_DIR": str(root / "data"), "GRADSERVE_MODELS_DIR": str(root / "models")}
    command = [*GRADSERVE, "serve", "--port", str(port), *arguments]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, env=environment | settings, stdout=log, stderr=log)
        try:
            until(lambda: listens(port) or process.poll() is not None, 120)
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def test_keys_come_and_go_in_all_processes_of_a_running_service(tmp_path: Path, data: Path) -> None:
    first = gradserve(data, "keys", "create", "first", "--scope", "admin").strip()
    with serving(tmp_path, "--host", "0.0.0.0", "--workers", "2") as address:

        def statuses(key: str) -> set[int]:
            """Of connections enough to reach both processes."""
            headers = {"Authorization": f"Bearer {key}"}
            url = f"http://{address}/models"
            return {httpx.get(url, headers=headers, verify=False).status_code for _ in range(20)}

        until(lambda: (tmp_path / "log").read_text().count('"ready"') == 2, 120)
        assert statuses(first) == {200}
        second = gradserve(data, "keys", "create", "second", "--scope", "read").strip()
        until(lambda: statuses(second) == {200})
        gradserve(data, "keys", "revoke", second.split("_")[1])
        until(lambda: statuses(second) == {401})
        assert statuses(first) == {200}
    assert "it wants a key" not in (tmp_path / "log").read_text()
    listed = gradserve(data, "keys", "list")
    assert "first" in listed
    assert "second" not in listed
    assert first not in listed


def test_on_other_addresses_a_key_is_made_and_printed_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0") as address:
        log = (tmp_path / "log").read_text()
        (key,) = re.findall(r"^    (\S{32})$", log, re.MULTILINE)
        assert log.count(key) == 1
        with Client(f"http://{address}") as client, pytest.raises(Unauthorized):
            client.info()
        with Client(f"http://{address}", key) as client:
            assert client.info()["version"]


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that it has signed itself, and its key."""
    files = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-out", str(files[0]), "-keyout", str(files[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a service with HTTPS and keys, and its settings of TLS."""
    root = tmp_path_factory.mktemp("secured")
    chain, key = certificate(root)
    tls = {"GRADSERVE_TLS_CERTIFICATE": str(chain), "GRADSERVE_TLS_KEY": str(key)}
    others = {"GRADSERVE_API_KEYS": "secret:admin", "GRADSERVE_MAX_HEADER_SECONDS": "2"}
    with serving(root, "--host", "0.0.0.0", **tls, **others) as address:
        yield address, tls


def test_https(secured: tuple[str, dict[str, str]]) -> None:
    address, tls = secured
    chain = tls["GRADSERVE_TLS_CERTIFICATE"]

    def curl(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, check=False)

    asked = curl("--cacert", chain, f"https://{address}/readyz")
    assert json.loads(asked.stdout) == {"status": "ok"}, asked.stderr
    assert curl(f"https://{address}/readyz").returncode == 60  # nobody vouches for it
    assert curl(f"http://{address}/readyz").returncode != 0
    assert curl("--cacert", chain, "--tls-max", "1.1", f"https://{address}/readyz").returncode == 35
    host, port = address.split(":")
    trusting = ssl.create_default_context(cafile=chain)
    plain = socket.create_connection((host, int(port)), timeout=60)
    with trusting.wrap_socket(plain, server_hostname="localhost") as slow:
        slow.sendall(b"GET /readyz HTT")
        assert slow.recv(2**16).startswith(b"HTTP/1.1 408")


def health(port: int, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"GRADSERVE_PORT": str(port)} | settings
    return subprocess.run([*GRADSERVE, "health"], env=environment, capture_output=True, text=True, check=False)


def test_health_of_a_service_with_https_and_keys(secured: tuple[str, dict[str, str]]) -> None:
    address, tls = secured
    port = int(address.rpartition(":")[2])
    assert health(port, **tls, GRADSERVE_HOST="0.0.0.0").returncode == 0
    assert health(port, **tls).returncode == 0
    assert health(port).returncode != 0  # it speaks no HTTP
    assert health(free_port(), **tls).returncode == 1


def test_health_of_a_plain_service(service: Service) -> None:
    assert health(service.port).returncode == 0
    nobody = health(free_port())
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("Error: ")
    assert len(nobody.stderr.splitlines()) == 1


def test_tls_files_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    chain.write_text(chain.read_text().replace("A", "B"))
    for files in (
        {"CERTIFICATE": "nowhere.pem"},
        {"CERTIFICATE": str(chain), "KEY": str(key)},
        {"CERTIFICATE": str(key)},
    ):
        settings = {f"GRADSERVE_TLS_{name}": value for name, value in files.items()}
        done = subprocess.run(
            [*GRADSERVE, "serve", "--port", str(free_port())],
            env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("Error: no TLS with ")
        assert len(done.stderr.splitlines()) == 1


SECRET = "s3cr3t-of-nobody-else"


def test_no_secret_is_in_the_log(tmp_path: Path) -> None:
    stored = gradserve(tmp_path / "service" / "data", "keys", "create", "ci", "--scope", "admin").strip()
    wrong = "gs_00000000_this-key-is-not-known-here"
    settings = {"GRADSERVE_API_KEYS": f"{SECRET}:admin", "GRADSERVE_LOG_LEVEL": "debug"}
    with Service(tmp_path / "service", settings=settings) as service:
        for key in (SECRET, stored, wrong):
            headers = {"Authorization": f"Bearer {key}"}
            for path in ("/models", f"/models?key={key}&api_key={key}", "/nowhere", "/jobs?limit=x"):
                httpx.get(service.url + path, headers=headers)
            httpx.get(service.url + "/models", headers={"Authorization": key, "Cookie": key, "X-Api-Key": key})
            httpx.post(service.url + "/predict", json={"model": key, "inputs": [[1]]}, headers=headers)
            httpx.post(service.url + "/train", content=b"{", headers=headers)
    log = service.log.read_text()
    requests = [line for line in map(json.loads, log.splitlines()) if line["event"] == "request"]
    assert len(requests) >= 21
    for key in (SECRET, stored, wrong):
        assert key not in log
        assert key[-12:] not in log
    assert {"setting-1", stored.split("_")[1]} <= {line.get("key") for line in requests}
