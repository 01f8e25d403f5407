"""Peers are timed only where they answer as the service does; what stands in the way of one is said in its place."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts import peer
from scripts.bench_peers import Trained, figures_of, refusal, trained
from scripts.load import MODEL, Load, train
from scripts.peer import PEERS, NotMeasured, Peer, environment, serving
from scripts.processes import is_alive
from scripts.service import Service
from tests.waiting import until

LOADS = [Load("1 row", "one.json", 1, "per_second", "/s", ""), Load("alone", "one.json", 1, "p50_ms", " ms", "")]
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from network import predict

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        answer = json.dumps({"predictions": predict(rows)}).encode()
        self.send_response(200 if len(rows) == 1 else 413)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
OTHER = Peer("Other", ("other==1",), "serve.py", "/predict")


@pytest.fixture(scope="module")
def network(service: Service) -> Trained:
    train(service.url, MODEL, [64, 64], max_steps=50)
    return trained(service.url)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the programs of peers are taken from."""
    (tmp_path / "network.py").write_text((peer.FILES / "network.py").read_text())
    (tmp_path / "serve.py").write_text(SERVER)
    monkeypatch.setattr(peer, "FILES", tmp_path)
    return tmp_path


@contextmanager
def other(network: Trained) -> Iterator[tuple[str, Path]]:
    """A server of the same network in this environment."""
    with serving(OTHER, Path(sys.executable), network.weights) as served:
        yield served


@pytest.mark.usefixtures("files")
def test_a_peer_is_timed_only_where_it_predicts_as_the_service_does(network: Trained) -> None:
    assert network.predictions.std() > 1
    changed = network._replace(predictions=network.predictions + 0.01)
    with other(network) as (url, folder):
        assert refusal(OTHER, url, folder / "one.json", network) == ""
        assert refusal(OTHER, url, folder / "many.json", network).startswith("refused: 413 ")
        with pytest.raises(NotMeasured, match="it predicts"):
            refusal(OTHER, url, folder / "one.json", changed)


def test_a_peer_that_ends_as_it_starts_is_named_with_its_last_words(files: Path, network: Trained) -> None:
    (files / "serve.py").write_text("raise SystemExit('no such | device')")
    with pytest.raises(NotMeasured, match=r"it ended as it started: no such / device"), other(network):
        pass


def test_a_peer_is_stopped_with_all_that_it_started(files: Path, network: Trained) -> None:
    (files / "serve.py").write_text(
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"open('{files}/child', 'w').write(str(child.pid))\n"
        + SERVER.replace("from network import predict", "predict = str")
    )
    with other(network):
        child = int((files / "child").read_text())
        assert is_alive(child)
    until(lambda: not is_alive(child))


def test_a_program_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, network: Trained) -> None:
    (java,) = [one for one in PEERS if one.program == "java"]
    monkeypatch.setenv("PATH", "/nowhere")
    found = figures_of(java, network, LOADS, 1, 1)
    assert found == {LOADS[0]: "not measured: it needs the program `java`", LOADS[1]: "–"}


def test_a_package_that_cannot_be_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "ENVIRONMENTS", tmp_path)
    with pytest.raises(NotMeasured, match="it can't be installed: ERROR: Invalid requirement"):
        environment(OTHER._replace(requirements=("other==no version",)))
