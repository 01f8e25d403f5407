"""`python serve_torchserve.py PORT`: TorchServe with one worker. Needs Java."""

import os
import subprocess
import sys
from pathlib import Path


def handle(requests, _context):
    """What TorchServe's worker calls; it imports this file from the archive."""
    if requests is None:
        return None
    from network import predict

    return [{"predictions": predict(request["body"]["inputs"])} for request in requests]


if __name__ == "__main__":
    port, here = int(sys.argv[1]), Path(__file__).parent
    binaries = Path(sys.executable).parent
    os.environ["PATH"] = f"{binaries}:{os.environ['PATH']}"
    archive = [binaries / "torch-model-archiver", "--model-name", "mlp", "--version", "1", "--handler", Path(__file__)]
    files = f"{here / 'network.py'},{here / 'weights.npz'}"
    subprocess.run([*archive, "--extra-files", files, "--export-path", here, "--force"], check=True)
    (here / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:{port + 1}\n"
        f"metrics_address=http://127.0.0.1:{port + 2}\n"
        f"grpc_inference_port={port + 3}\ngrpc_management_port={port + 4}\n"
        "default_workers_per_model=1\ndisable_token_authorization=true\nmodel_store=.\nload_models=mlp.mar\n"
    )
    options = ["--start", "--foreground", "--ncs", "--ts-config", "config.properties", "--disable-token-auth"]
    os.execv(binaries / "torchserve", ["torchserve", *options])
