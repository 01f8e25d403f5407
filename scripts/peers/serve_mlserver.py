"""`python serve_mlserver.py PORT`: MLServer as it is without options, one worker."""

import json
import os
import sys
from pathlib import Path

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from network import network


class Served(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        rows = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output("predictions", network(rows).numpy())]
        return InferenceResponse(model_name=self.name, outputs=outputs)


if __name__ == "__main__":
    port = int(sys.argv[1])
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    Path("settings.json").write_text(json.dumps({"host": "127.0.0.1", **ports}))
    Path("model-settings.json").write_text(json.dumps({"name": "mlp", "implementation": "serve_mlserver.Served"}))
    os.execv(Path(sys.executable).with_name("mlserver"), ["mlserver", "start", "."])
