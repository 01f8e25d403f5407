"""Targets: what the loss sees, and labels and units that come back as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from app.errors import BadData
from app.learning.targets import Labels, Targets, class_chances, class_weights, values_of
from app.specs.losses import CrossEntropyLoss
from app.specs.resolve import signature_of
from app.specs.table import Signature
from app.storage.tensors import read_tensors, write_tensors
from tests.samples import resolved, table_of

NUM_ROWS = 40


def frame_of(y: list[Any], **more: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"x": [float(i) for i in range(len(y))], "y": y, **more})


def fit(frame: pl.DataFrame, target: str | list[str] = "y", train: pl.DataFrame | None = None, **spec: Any) -> Targets:
    resolved_spec = resolved(frame, target, {"features": ["x"]}, **spec)
    signature = signature_of(resolved_spec, table_of(frame))
    train = frame if train is None else train
    if signature.task not in ("binary", "multiclass"):
        return Targets.fit(signature, resolved_spec, values_of(signature, train), None)
    labels = Labels()
    classes, codes = labels.settle([labels.add(part[target]) for part in frame.iter_slices(3)])
    return Targets.fit(signature, resolved_spec, codes[: len(train)], classes)


LABELS: list[tuple[list[Any], dict[str, Any]]] = [
    (["no", "yes"], {}),
    (["c", "a", "b"], {}),
    ([True, False], {}),
    ([0, 1], {}),
    ([7, 3, 5], {"task": "multiclass"}),
    ([0.5, 1.5, -1.0], {"task": "multiclass"}),
    ([2.5, 7.25], {"task": "binary"}),
]


@pytest.mark.parametrize("loss", ["auto", "cross_entropy"])
@pytest.mark.parametrize(("labels", "spec"), LABELS)
def test_labels_keep_their_type(labels: list[Any], spec: dict[str, Any], loss: str) -> None:
    frame = frame_of((labels * NUM_ROWS)[:NUM_ROWS])
    targets = fit(frame, loss={"type": loss}, **spec)
    assert list(targets.classes) == sorted(labels)
    assert [type(label) for label in targets.classes] == [type(labels[0])] * len(labels)
    codes = targets.codes(frame)
    assert [targets.classes[code] for code in codes.tolist()] == frame["y"].to_list()
    again = Signature.model_validate(targets.signature.model_dump(mode="json"))
    assert again == targets.signature
    assert [type(label) for label in again.classes or ()] == [type(labels[0])] * len(labels)


def test_what_the_loss_sees_of_classes() -> None:
    frame = frame_of(["b", "a", "b", "a"])
    assert fit(frame).transform(frame).tolist() == [[1.0], [0.0], [1.0], [0.0]]
    assert fit(frame).num_outputs == 1
    assert fit(frame, loss={"type": "cross_entropy"}).transform(frame).tolist() == [1, 0, 1, 0]
    assert fit(frame, loss={"type": "cross_entropy"}).num_outputs == 2


def test_probabilities_of_two_classes() -> None:
    frame = frame_of(["b", "a"])
    found = fit(frame).activate(torch.tensor([[0.0], [2.0]]))
    sigmoid = 1 / (1 + np.exp(-2.0))
    assert found.tolist() == [pytest.approx([0.5, 0.5]), pytest.approx([1 - sigmoid, sigmoid])]
    found = fit(frame, loss={"type": "cross_entropy"}).activate(torch.tensor([[1.0, 3.0]]))
    assert found.tolist() == [pytest.approx([1 - sigmoid, sigmoid])]


def test_unknown_labels_are_refused() -> None:
    targets = fit(frame_of(["a", "b"]))
    with pytest.raises(BadData, match="label 'zz' is none of the 2 classes that the model knows: 'a', 'b'"):
        targets.transform(frame_of(["a", "zz"]))


@pytest.mark.parametrize("given", [[1, 2], [1.5, 0.0], [True, False]])
def test_labels_of_another_type_are_refused(given: list[Any]) -> None:
    with pytest.raises(BadData):
        fit(frame_of(["a", "b"])).transform(frame_of(given))


@pytest.mark.parametrize(
    ("labels", "given"),
    [([0, 1], ["0", "1"]), (["0", "1"], [0, 1]), ([0, 1], [0.0, 1.0]), ([True, False], ["true", "false"])],
)
def test_labels_that_read_alike_are_the_same(labels: list[Any], given: list[Any]) -> None:
    targets = fit(frame_of(labels * 20))
    assert torch.equal(targets.codes(frame_of(given)), targets.codes(frame_of(labels)))


def test_no_rows_have_no_codes() -> None:
    assert fit(frame_of(["a", "b"])).codes(frame_of(["a"])[:0]).tolist() == []


def test_classes_are_known_though_no_training_row_has_them() -> None:
    frame = frame_of(["a", "b", "c"])
    assert fit(frame, train=frame[:2]).classes == ("a", "b", "c")


# ---- regression


def test_regression_is_standardized_inside_and_given_back_in_its_units() -> None:
    frame = frame_of([10.0, 20.5, 60.0], z=[1.0, 1.5, 1.0])
    targets = fit(frame, ["y", "z"], task="regression")
    seen = targets.transform(frame)
    torch.testing.assert_close(seen.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(2))
    np.testing.assert_allclose(targets.activate(seen).numpy(), frame.select("y", "z").to_numpy(), rtol=1e-6)
    assert targets.truth(frame).tolist() == frame.select("y", "z").to_numpy().tolist()


def test_units_are_those_of_the_training_rows() -> None:
    frame = frame_of([0.0, 2.5, 100.0])
    targets = fit(frame, train=frame[:2])
    assert targets.transform(frame).flatten().tolist() == pytest.approx([-1.0, 1.0, 79.0])


@pytest.mark.parametrize("spec", [{"features": None}, {"features": {"standardize": False}}])
def test_targets_can_stay_as_they_are(spec: dict[str, Any]) -> None:
    frame = frame_of([10.0, 20.5, 60.0])
    assert fit(frame, **spec).transform(frame).flatten().tolist() == [10.0, 20.5, 60.0]


def test_a_constant_target_is_its_own_mean() -> None:
    frame = frame_of([3.0, 3.0, 3.0])
    targets = fit(frame, task="regression")
    assert targets.transform(frame).abs().sum() == 0
    assert targets.activate(torch.zeros(1, 1)).item() == 3.0


@pytest.mark.parametrize("unit", [1e-14, 1e30])
def test_the_unit_of_a_quantity_makes_no_difference(unit: float) -> None:
    frame = frame_of([value * unit for value in (1.5, 2.5, 9.0)])
    torch.testing.assert_close(
        fit(frame).transform(frame), fit(frame_of([1.5, 2.5, 9.0])).transform(frame_of([1.5, 2.5, 9.0]))
    )


@pytest.mark.parametrize("largest", [1e200, 1.7976931348623157e308])
def test_quantities_without_a_deviation_in_float64_are_refused(largest: float) -> None:
    with pytest.raises(BadData, match="float64"):
        fit(frame_of([largest, largest, -1.5]))


def test_rates_are_exponentials() -> None:
    frame = frame_of([0, 3, 5])
    targets = fit(frame, loss={"type": "poisson_nll"})
    mean = 8 / 3
    assert targets.transform(frame).flatten().tolist() == pytest.approx([0.0, 3 / mean, 5 / mean])
    assert targets.activate(torch.tensor([[2.0]])).item() == pytest.approx(np.exp(2.0) * mean)
    as_they_are = fit(frame, loss={"type": "poisson_nll"}, features=None)
    assert as_they_are.transform(frame).flatten().tolist() == [0.0, 3.0, 5.0]
    assert fit(frame_of([0, 0]), loss={"type": "poisson_nll"}).activate(torch.zeros(1, 1)).item() == 1.0
    with pytest.raises(BadData, match="negative"):
        targets.transform(frame_of([0, -1, 2]))


# ---- multilabel


def test_multilabel() -> None:
    frame = frame_of([True, False, True, False], z=[0, 1, 1, 0])
    targets = fit(frame, ["y", "z"])
    assert targets.classes == ("y", "z")
    assert targets.transform(frame).tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert targets.activate(torch.zeros(1, 2)).tolist() == [[0.5, 0.5]]
    assert targets.num_outputs == 2


# ---- weights of classes


def test_balanced_classes_weigh_the_same() -> None:
    codes = np.array([0, 0, 0, 1, 2, 2])
    found = class_weights(CrossEntropyLoss(class_weight="balanced"), codes, ("a", "b", "c"))
    assert found.tolist() == pytest.approx([6 / 9] * 3 + [2.0] + [1.0] * 2)
    assert [found[codes == code].sum().item() for code in range(3)] == pytest.approx([2.0, 2.0, 2.0])


def test_a_class_without_rows_has_no_say() -> None:
    found = class_weights(CrossEntropyLoss(class_weight="balanced"), np.array([0, 0]), ("a", "b"))
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("classes", "weights"),
    [(("a", "b"), {"b": 3.0}), ((False, True), {"true": 3.0}), ((1, 2), {"2": 3.0}), ((0.5, 1.5), {"1.5": 3.0})],
)
def test_weights_by_label(classes: tuple[Any, ...], weights: dict[str, float]) -> None:
    spec = CrossEntropyLoss(class_weight=weights)
    assert class_weights(spec, np.array([0, 1, 1]), classes).tolist() == [1.0, 3.0, 3.0]


def test_a_weight_for_no_class_is_refused() -> None:
    with pytest.raises(BadData, match=r"'z'.*a, b"):
        class_weights(CrossEntropyLoss(class_weight={"z": 1.0}), np.array([0]), ("a", "b"))


def test_balanced_draws_make_classes_as_likely() -> None:
    chances = class_chances(torch.tensor([0, 0, 0, 2, 2]))
    assert chances.tolist() == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)


# ---- on disk


@pytest.mark.parametrize("y", [[1.5, 2.5, 9.0], ["a", "b", "c"]])
def test_targets_come_back_from_disk(y: list[Any], tmp_path: Path) -> None:
    frame = frame_of(y)
    targets = fit(frame)
    tensors, config = targets.export()
    write_tensors(tmp_path / "targets", tensors)
    loaded = Targets.load(read_tensors(tmp_path / "targets")[0], config, targets.signature)
    assert torch.equal(loaded.transform(frame), targets.transform(frame))
    outputs = torch.randn(4, targets.num_outputs)
    assert torch.equal(loaded.activate(outputs), targets.activate(outputs))
