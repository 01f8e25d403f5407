"""The network that the service serves, served by others: the same weights, rows and load, on the same machine.

A peer that can't be installed or started here, or predicts other numbers, stands in the table with the reason.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from app.client import Client
from scripts.load import KEY, MODEL, NUM_ROWS, Figures, Load, figure, rows, wrk
from scripts.peer import BODIES, PEERS, NotMeasured, Peer, Weights, environment, last_line, post, serving

TOLERANCE = 1e-4  # of the predictions' deviation


class Trained(NamedTuple):
    """A network by its weights, and what the service predicts with it for `NUM_ROWS` rows."""

    weights: Weights
    predictions: NDArray[np.float64]


def trained(url: str) -> Trained:
    with TemporaryDirectory() as folder, Client(url, KEY) as client:
        file = Path(folder) / "model.safetensors"
        client.download(MODEL, client.model(MODEL)["newest"]["version"], file.name, file)
        return Trained(_plain_weights(load_file(file)), client.predict(MODEL, np.array(rows(NUM_ROWS)))["predictions"])


def _plain_weights(stored: dict[str, NDArray[Any]]) -> Weights:
    """Those of a network that takes and gives numbers as they are: the scales of both become its outer layers'."""
    weights = {name.removeprefix("network.layers."): values.astype(np.float64) for name, values in stored.items()}
    weights["0.weight"] /= weights.pop("features.std")
    weights["0.bias"] -= weights["0.weight"] @ weights.pop("features.mean")
    scale = weights.pop("targets.std")
    weights["4.weight"] *= scale[:, None]
    weights["4.bias"] = weights["4.bias"] * scale + weights.pop("targets.mean")
    return {name: values.astype(np.float32) for name, values in weights.items()}


def table(network: Trained, floor: Figures, ours: Figures, repetitions: int, seconds: int) -> str:
    """The peers below the floor and the service, with how many times as good ours is beside each figure."""
    loads = [load for load in ours if load.body in BODIES]
    found: dict[str, Mapping[Load, float | str]] = {"the floor": floor, "Gradserve": ours}
    for peer in PEERS:
        found[f"{peer.title} {peer.requirements[0].partition('==')[2]}"] = figures_of(
            peer, network, loads, repetitions, seconds
        )
    lines = [f"| server | {' | '.join(load.title for load in loads)} |", "|---" * (len(loads) + 1) + "|"]
    lines += [
        f"| {title} | {' | '.join(_cell(load, figures[load], ours[load]) for load in loads)} |"
        for title, figures in found.items()
    ]
    return "\n".join(lines)


def _cell(load: Load, found: float | str, ours: float) -> str:
    if isinstance(found, str):
        return found
    times = ours / found if load.field == "per_second" else found / ours
    return figure(load, found) + (f", **{times:.{0 if times >= 10 else 1}f}** ×" if found != ours else "")


def figures_of(
    peer: Peer, network: Trained, loads: list[Load], repetitions: int, seconds: int
) -> dict[Load, float | str]:
    """The median of each load, or what stands in the way."""
    try:
        with serving(peer, environment(peer), network.weights) as (url, folder):
            found = {load: refusal(peer, url, folder / load.body, network) for load in loads}
            wrk(url, folder / "one.json", 32, seconds=1)  # what is compiled as it runs has been by then
            taken = [load for load in loads if not found[load]]
            times: dict[Load, list[float]] = {load: [] for load in taken}
            for load in taken * repetitions:
                outcome = wrk(url, folder / load.body, load.connections, seconds=seconds)
                times[load].append(getattr(outcome, load.field))
                if outcome.refused + outcome.broken or not outcome.per_second:
                    found[load] = f"{outcome.refused} answers were refusals and {outcome.broken} broken"
            return {load: found[load] or statistics.median(times[load]) for load in loads}
    except NotMeasured as reason:
        return {load: "–" if load != loads[0] else f"not measured: {reason}" for load in loads}


def refusal(peer: Peer, url: str, body: Path, network: Trained) -> str:
    """Empty where a peer predicts the rows of a body as the service does.

    Raises:
        NotMeasured: it predicts other numbers.
    """
    try:
        response = post(url, body)
    except httpx.TransportError as error:
        return f"no answer: {error or type(error).__name__}"
    if not response.is_success:
        return f"refused: {response.status_code} {last_line(response.text)}"
    answer = response.json()
    found = np.ravel(answer["outputs"][0]["data"] if peer.as_v2 else answer["predictions"])
    expected = network.predictions[: BODIES[body.name]]
    if found.shape != expected.shape or np.abs(found - expected).max() > TOLERANCE * network.predictions.std():
        raise NotMeasured(f"it predicts {found[:3]} …, the service {expected[:3]} …")
    return ""
