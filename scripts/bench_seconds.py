"""What an epoch takes, by a dry run's word and by the clock of the run itself, in a real service: on one thread and on
one per core, of which the service chooses.
"""

import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from app.client import Client
from app.learning.devices import usable_cores
from scripts.bench_run_memory import IMAGES, SENTENCES, SERIES, WORDS, Work, rows_of
from scripts.service import Service

DIGITS = [
    *({"type": "conv2d", "out_channels": 16, "padding": 1}, {"type": "batch_norm"}, {"type": "relu"}),
    *({"type": "max_pool2d"}, {"type": "conv2d", "out_channels": 32, "padding": 1}, {"type": "relu"}),
    {"type": "flatten"},
]
PLACES = [{"type": "gru", "hidden_features": 64}]
WORKS = [
    Work("MLP, 2 × 64, batch 16", 1_600, 4, {"hidden_features": [64, 64]}, 16),
    Work("MLP, 3 × 128, batch 256", 20_000, 10, {"hidden_features": [128] * 3}, 256),
    Work("MLP, 20 × 128, batch 256", 5_120, 32, {"hidden_features": [128] * 20}, 256),
    Work("MLP, 3 × 512, batch 256", 20_000, 100, {"hidden_features": [512] * 3}, 256),
    Work("MLP, 5 × 2048, batch 64", 1_280, 64, {"hidden_features": [2048] * 5}, 64),
    Work("MLP, 4 × 2048, batch 4096", 8_192, 64, {"hidden_features": [2048] * 4}, 4096),
    Work("convolutions on 1×8×8 images, batch 64", 1_792, 64, {"layers": DIGITS, "input_shape": [1, 8, 8]}, 64),
    Work("convolutions on 3×32×32 images, batch 64", 512, 3072, {"layers": IMAGES, "input_shape": [3, 32, 32]}, 64),
    Work(
        "embedding of 200 000 words, batch 512", 5_120, 32, {"layers": WORDS, "input_shape": [32]}, 512, whole=200_000
    ),
    Work("GRU, 64, 32 places, batch 64", 1_280, 32, {"layers": PLACES, "input_shape": [32, 1]}, 64),
    Work("LSTM, 2 × 256, 64 places, batch 256", 512, 1024, {"layers": SERIES, "input_shape": [64, 16]}, 256),
    Work("transformer, 128 places, batch 32", 320, 128, {"layers": SENTENCES, "input_shape": [128]}, 32, whole=5_000),
]
NUM_EPOCHS = 4


def table(repetitions: int) -> str:
    all_cores = usable_cores()
    lines = [
        f"| work | parameters (M) | predicted (s) | on one thread (s) | on {all_cores} (s) | threads chosen "
        "| **measured / predicted** | **chosen / faster** |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with TemporaryDirectory() as folder, Service(Path(folder)) as service, Client(service.url) as client:
        for work in WORKS:
            lines.append(measure(work, client, all_cores, repetitions))
            print(lines[-1], flush=True)
    return "\n".join(lines)


def measure(work: Work, client: Client, all_cores: int, repetitions: int) -> str:
    """A row of the table: medians over several jobs of each number of threads, by turns."""
    client.upload_dataset("rows", rows_of(work))
    spec = work.body | {"stop": {"max_epochs": NUM_EPOCHS}}
    foretold = client.dry_run(spec)
    chosen, predicted = foretold["spec"]["num_threads"], foretold["seconds_per_epoch"]
    seconds: dict[int, list[float]] = {num_threads: [] for num_threads in sorted({1, all_cores, chosen})}
    for _ in range(repetitions):
        for num_threads, found in seconds.items():
            found += epochs(client, spec | {"num_threads": num_threads})
    median = {num_threads: statistics.median(found) for num_threads, found in seconds.items()}
    return (
        f"| {work.name} | {foretold['num_parameters'] / 1e6:.2f} | {predicted:.3g} | {median[1]:.3g} "
        f"| {median[all_cores]:.3g} | {chosen} | **{median[chosen] / predicted:.2f}** "
        f"| **{median[chosen] / min(median.values()):.2f}** |"
    )


def epochs(client: Client, spec: dict[str, object]) -> Iterator[float]:
    """What each epoch of a job took, but for the first, in seconds."""
    ends = [epoch["elapsed_seconds"] for epoch in client.history(client.train(spec)["id"])]
    return (later - earlier for earlier, later in pairwise(ends))
