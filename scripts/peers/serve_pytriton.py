"""`python serve_pytriton.py PORT`: Triton, which asks this process; requests that wait are batched."""

import os
import sys
import sysconfig

import numpy as np
import torch
from network import network
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def infer(inputs):
    return {"predictions": network(torch.from_numpy(inputs)).numpy()}


if __name__ == "__main__":
    port = int(sys.argv[1])
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")  # else Triton embeds another Python's library
    config = TritonConfig(
        http_address="127.0.0.1", http_port=port, grpc_address="127.0.0.1", grpc_port=port + 1, metrics_port=port + 2
    )
    with Triton(config=config, workspace="workspace") as triton:
        triton.bind(
            model_name="mlp",
            infer_func=infer,
            inputs=[Tensor(name="inputs", dtype=np.float32, shape=(32,))],
            outputs=[Tensor(name="predictions", dtype=np.float32, shape=(1,))],
            config=ModelConfig(max_batch_size=10_000),
        )
        triton.serve()
