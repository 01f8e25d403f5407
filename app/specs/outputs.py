"""The outputs of a run that goes on from a version: those of the version, or of an output layer that is a new one."""

from app.specs.layers import Linear
from app.specs.network import LayeredNetwork
from app.specs.table import StoredData
from app.specs.training import TrainingSpec


def same_target(one: TrainingSpec, other: TrainingSpec) -> bool:
    """Whether two resolved specs learn the same, on one scale; rates have another than other numbers."""
    assert isinstance(one.data, StoredData)
    assert isinstance(other.data, StoredData)
    is_rate = [spec.loss.type == "poisson_nll" for spec in (one, other)]
    return (one.task, one.data.targets, is_rate[0]) == (other.task, other.data.targets, is_rate[1])


def with_outputs(network: LayeredNetwork, num_outputs: int) -> LayeredNetwork:
    """A resolved network with an output layer of that width, where it ends with a linear layer."""
    *layers, last = network.layers
    if not isinstance(last, Linear) or last.out_features == num_outputs:
        return network
    last = last.model_copy(update={"out_features": num_outputs})
    return network.model_copy(update={"layers": (*layers, last)})


def new_output_layer(start: TrainingSpec, spec: TrainingSpec) -> str | None:
    """The part of the network that `spec` does not take from the version of `start`: `layers.4`, or None where it takes
    all.
    """
    network = spec.network
    assert isinstance(network, LayeredNetwork)
    if (same_target(start, spec) and start.network == network) or not isinstance(network.layers[-1], Linear):
        return None
    return f"layers.{len(network.layers) - 1}"
