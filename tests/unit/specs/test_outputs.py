"""What a run takes over from a version, told by the version's own signature."""

from typing import Any

import polars as pl
import pytest

from app.specs.outputs import Learnt, has_seen_held_out, new_output_layer, same_target, with_outputs
from app.specs.resolve import signature_of
from app.specs.training import TrainingSpec
from tests.samples import resolved, table_of

FRAME = pl.DataFrame(
    {"x": [i / 3 for i in range(60)], "y": [i / 7 for i in range(60)], "z": [i * 0.5 for i in range(60)]}
)


def spec(target: str = "y", **fields: Any) -> TrainingSpec:
    return resolved(FRAME, target, {"features": ["x"]}, **fields)


def learnt(target: str = "y", **fields: Any) -> Learnt:
    begun = spec(target, **fields)
    return Learnt(begun, signature_of(begun, table_of(FRAME)), begun.loss.type)


@pytest.mark.parametrize(
    ("before", "now", "is_same"),
    [
        ({}, {}, True),
        ({"target": "z"}, {}, False),
        ({"loss": {"type": "mae"}}, {"loss": {"type": "mse"}}, True),
        ({"loss": {"type": "poisson_nll"}}, {"loss": {"type": "mse"}}, False),
    ],
)
def test_a_target_is_the_same_by_name_task_and_scale(before: Any, now: Any, is_same: bool) -> None:
    begun = learnt(**before)
    assert same_target(begun, spec(**now)) is is_same
    assert new_output_layer(begun, spec(**now)) == (None if is_same else "layers.4")


def test_a_version_s_spec_may_be_of_lists() -> None:
    """As one that was put together elsewhere and uploaded may be."""
    begun = learnt()
    given = TrainingSpec.model_validate({"model": "m", "data": {"inputs": [[1]], "targets": [1]}, "task": "auto"})
    begun = begun._replace(spec=given.model_copy(update={"network": begun.network}))
    assert same_target(begun, spec())
    assert new_output_layer(begun, spec()) is None
    assert not has_seen_held_out(begun, spec(validation={"folds": 3}))


def test_an_output_layer_is_as_wide_as_it_must_be() -> None:
    network = learnt().network
    assert with_outputs(network, 1) == network
    wide = with_outputs(network, 3)
    assert (wide.layers[:-1], getattr(wide.layers[-1], "out_features", None)) == (network.layers[:-1], 3)
    open_ended = network.model_copy(update={"layers": network.layers[:-1]})
    assert with_outputs(open_ended, 3) == open_ended
