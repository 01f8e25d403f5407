"""Metrics against scikit-learn."""

from typing import get_args

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from app.learning import metrics
from app.learning.metrics import METRICS, measure
from app.specs.resolve_task import METRICS_OF_TASK
from app.specs.table import Task

rng = np.random.default_rng(0)


def probabilities(num_rows: int, num_classes: int) -> np.ndarray:
    raw = rng.random((num_rows, num_classes))
    return raw / raw.sum(1, keepdims=True)


def test_every_task_has_metrics() -> None:
    assert set(METRICS) == set(get_args(Task)) == set(METRICS_OF_TASK)


@pytest.mark.parametrize("num_targets", [1, 3])
def test_regression(num_targets: int) -> None:
    truth, values = rng.normal(5, 3, (50, num_targets)), rng.normal(5, 3, (50, num_targets))
    assert measure("regression", torch.tensor(values), torch.tensor(truth)) == pytest.approx(
        {
            "mae": sklearn.mean_absolute_error(truth, values),
            "rmse": sklearn.mean_squared_error(truth, values) ** 0.5,
            "r2": sklearn.r2_score(truth, values),
        }
    )


def test_regression_of_equal_targets_has_no_r2() -> None:
    found = measure("regression", torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [3.0]]))
    assert found == pytest.approx({"mae": 1.5, "rmse": 2.5**0.5})
    assert "r2" not in measure("regression", torch.zeros(7, 1), torch.full((7, 1), 0.1, dtype=torch.float64))
    small = torch.tensor([[1e-15], [3e-15]])
    assert measure("regression", small, small)["r2"] == 1.0


def test_binary() -> None:
    truth, predicted = rng.integers(0, 2, 60), probabilities(60, 2)
    assert measure("binary", torch.tensor(predicted), torch.tensor(truth)) == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(truth, predicted.argmax(1)),
            "f1_macro": sklearn.f1_score(truth, predicted.argmax(1), average="macro"),
            "roc_auc": sklearn.roc_auc_score(truth, predicted[:, 1]),
        },
        abs=1e-6,
    )


def test_binary_of_one_class_has_no_roc_auc() -> None:
    assert "roc_auc" not in measure("binary", torch.tensor(probabilities(5, 2)), torch.ones(5, dtype=torch.long))


def test_multiclass_counts_the_classes_that_occur() -> None:
    truth, predicted = rng.integers(0, 3, 60), probabilities(60, 3)
    with_an_unused_class = np.column_stack([predicted, np.zeros(60)])
    for given in (predicted, with_an_unused_class):
        assert measure("multiclass", torch.tensor(given), torch.tensor(truth)) == pytest.approx(
            {
                "accuracy": sklearn.accuracy_score(truth, predicted.argmax(1)),
                "f1_macro": sklearn.f1_score(truth, predicted.argmax(1), average="macro"),
            }
        )


def test_multilabel() -> None:
    truth, predicted = rng.integers(0, 2, (60, 3)), rng.random((60, 3))
    flags = (predicted >= 0.5).astype(int)
    assert measure("multilabel", torch.tensor(predicted), torch.tensor(truth, dtype=torch.float64)) == pytest.approx(
        {
            "accuracy": (flags == truth).mean(),
            "exact_match": sklearn.accuracy_score(truth, flags),
            "f1_macro": sklearn.f1_score(truth, flags, average="macro"),
        }
    )


def test_of_no_labels_at_all_there_is_no_f1() -> None:
    nothing, something = torch.zeros(4, 2), torch.tensor([[0.6, 0.0]] * 4)
    assert measure("multilabel", nothing, nothing) == {"accuracy": 1.0, "exact_match": 1.0}
    assert measure("multilabel", something, nothing)["f1_macro"] == 0.0


@pytest.mark.parametrize("task", get_args(Task))
def test_parts_measure_as_the_whole(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows come in parts, also where the first ones have one class or one value."""
    monkeypatch.setattr(metrics, "SCORES_AT_ONCE", 3)
    predicted = torch.tensor(rng.random((40, 1 if task == "regression" else 2))).round(decimals=1)
    truth = {"regression": torch.tensor(rng.normal(1e6, 1, (40, 1))), "multilabel": (predicted > 0.4).double()}
    whole = truth.get(task, torch.arange(40) // 20)
    for size in (1, 7, 20, 40):
        parts = METRICS[task]()
        for part, of_part in zip(predicted.split(size), whole.split(size), strict=True):
            parts.add(part, of_part)
        assert parts.values() == pytest.approx(measure(task, predicted, whole), rel=1e-9)


def test_equal_scores_count_half() -> None:
    truth, scores = rng.integers(0, 2, 300), rng.integers(0, 9, 300) / 8
    found = measure("binary", torch.tensor(np.column_stack([1 - scores, scores])), torch.tensor(truth))
    assert found["roc_auc"] == pytest.approx(sklearn.roc_auc_score(truth, scores), rel=1e-12)


def test_a_single_row_of_a_class_is_enough_for_a_curve() -> None:
    scores = torch.tensor([0.2, 0.5, 0.9, 0.1])
    predicted = torch.stack([1 - scores, scores], 1)
    assert measure("binary", predicted, torch.tensor([0, 1, 0, 0]))["roc_auc"] == pytest.approx(2 / 3)
    assert "roc_auc" not in measure("binary", predicted, torch.tensor([0, 0, 0, 0]))


def test_no_rows_have_no_metrics() -> None:
    assert measure("regression", torch.empty(0, 1), torch.empty(0, 1)) == {}


@pytest.mark.parametrize("task", get_args(Task))
def test_early_stopping_knows_every_metric(task: Task) -> None:
    truth = {"regression": torch.rand(9, 1), "multilabel": (torch.rand(9, 2) > 0.5).double()}
    found = measure(task, torch.rand(9, 2 if task != "regression" else 1), truth.get(task, torch.arange(9) % 2))
    assert set(found) - {"roc_auc"} == set(METRICS_OF_TASK[task]) - {"roc_auc"}
