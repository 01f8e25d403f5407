"""The same network and the same rows, served by others: each in a virtual environment that is then removed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx

from scripts.load import MODEL, NUM_ROWS, WIDTH, Measured, rows, wait_until, wrk
from scripts.service import free_port

NETWORK = """
import torch
torch.set_num_threads(1)
network = torch.nn.Sequential(
    torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
).eval().requires_grad_(False)
"""
LITSERVE = """
import sys, litserve, torch
from network import network
class Api(litserve.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return torch.tensor(request["inputs"])
    def predict(self, inputs): return network(inputs)
    def encode_response(self, outputs): return {"predictions": outputs.tolist()}
if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu").run(port=int(sys.argv[1]), log_level="warning")
"""
MLSERVER = """
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from network import network
class Served(MLModel):
    async def load(self): return True
    async def predict(self, payload):
        inputs = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output("predictions", network(inputs).numpy())]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


class Peer(NamedTuple):
    """`command`: run in the folder of the files, with a port; `as_v2`: bodies are of the Open Inference Protocol."""

    package: str
    code: str
    command: tuple[str, ...]
    path: str
    as_v2: bool = False


PEERS = [
    Peer("litserve", LITSERVE, ("bin/python", "served.py", "{port}"), "/predict"),
    Peer("mlserver", MLSERVER, ("bin/mlserver", "start", "."), f"/v2/models/{MODEL}/infer", as_v2=True),
]


def table() -> str:
    lines = [
        f"| server | 1 row, 32 connections | 1 row, 1 connection: p50 | {NUM_ROWS} rows of JSON, 4 connections |",
        "|---|---|---|---|",
    ]
    for peer in PEERS:
        with TemporaryDirectory() as folder, serving(peer, Path(folder)) as url:
            one, many = (write_body(peer, Path(folder), number) for number in (1, NUM_ROWS))
            together, alone, large = wrk(url, one, 32), wrk(url, one, 1), wrk(url, many, 4)
            version = installed(Path(folder), peer.package)
        lines.append(f"| {peer.package} {version} | {rate(together)} | {alone.p50_ms:.2f} ms | {rate(large)} |")
    return "\n".join(lines)


def rate(found: Measured) -> str:
    assert not found.refused + found.broken, found
    return f"{found.per_second:.{0 if found.per_second >= 100 else 1}f}/s"


@contextmanager
def serving(peer: Peer, folder: Path) -> Iterator[str]:
    """The URL to post to. Its packages come from wherever pip finds them."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    torch = next(line for line in Path("constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([folder / "bin/pip", "install", "-q", torch, "numpy", peer.package], check=True)
    port = free_port()
    (folder / "network.py").write_text(NETWORK)
    (folder / "served.py").write_text(peer.code)
    (folder / "model-settings.json").write_text(json.dumps({"name": MODEL, "implementation": "served.Served"}))
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", **ports}))
    command = [part.format(port=port) for part in peer.command]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    process = subprocess.Popen(
        [folder / command[0], *command[1:]], cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}{peer.path}"
        wait_until(lambda: httpx.post(url, content=write_body(peer, folder, 1).read_bytes()).is_success)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def write_body(peer: Peer, folder: Path, number: int) -> Path:
    path, table = folder / f"{number}.json", rows(number)
    flat = [value for row in table for value in row]
    tensor = {"name": "inputs", "shape": [number, WIDTH], "datatype": "FP32", "data": flat}
    path.write_text(json.dumps({"inputs": [tensor] if peer.as_v2 else table}))
    return path


def installed(folder: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([folder / "bin/python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
