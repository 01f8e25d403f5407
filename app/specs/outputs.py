"""The outputs of a run that goes on from a version: those of the version, or of an output layer that is a new one."""

from typing import NamedTuple

from app.specs.layers import Linear
from app.specs.network import LayeredNetwork
from app.specs.table import Signature, StoredData
from app.specs.training import TrainingSpec, ValidationDataset, ValidationFraction


class Learnt(NamedTuple):
    """What a version is of: the spec of its run, what it takes and gives, and the loss that settles on which scale."""

    spec: TrainingSpec
    signature: Signature
    loss: str

    @property
    def network(self) -> LayeredNetwork:
        assert isinstance(self.spec.network, LayeredNetwork)
        return self.spec.network


def same_target(learnt: Learnt, spec: TrainingSpec) -> bool:
    """Whether a resolved spec learns what a version has learnt, on one scale; rates have another than other numbers."""
    assert isinstance(spec.data, StoredData)
    targets = tuple(column.name for column in learnt.signature.targets)
    is_rate = [loss == "poisson_nll" for loss in (learnt.loss, spec.loss.type)]
    return (learnt.signature.task, targets, is_rate[0]) == (spec.task, spec.data.targets, is_rate[1])


def with_outputs(network: LayeredNetwork, num_outputs: int) -> LayeredNetwork:
    """A resolved network with an output layer of that width, where it ends with a linear layer."""
    *layers, last = network.layers
    if not isinstance(last, Linear) or last.out_features == num_outputs:
        return network
    last = last.model_copy(update={"out_features": num_outputs})
    return network.model_copy(update={"layers": (*layers, last)})


def new_output_layer(learnt: Learnt, spec: TrainingSpec) -> str | None:
    """The part of the network that `spec` does not take from the version: `layers.4`, or None where it takes all."""
    network = spec.network
    assert isinstance(network, LayeredNetwork)
    if (same_target(learnt, spec) and learnt.network == network) or not isinstance(network.layers[-1], Linear):
        return None
    return f"layers.{len(network.layers) - 1}"


def has_seen_held_out(learnt: Learnt, spec: TrainingSpec) -> bool:
    """Whether a version has learnt from validation rows of `spec`, as far as its own table tells."""
    before, now = learnt.spec, spec
    if not isinstance(before.data, StoredData) or before.data.digest is None or now.validation is None:
        return False
    assert isinstance(now.data, StoredData)
    if isinstance(now.validation, ValidationDataset):
        return now.validation.digest == before.data.digest
    held_out_alike = (
        isinstance(before.validation, ValidationFraction)
        and (before.validation, before.seed) == (now.validation, now.seed)
        and before.data.sample_weight == now.data.sample_weight  # which, like the targets, some rows may lack
        and same_target(learnt, now)
    )
    return now.data.digest == before.data.digest and not held_out_alike
