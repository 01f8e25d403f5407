"""What a person asks of a model, by task: counted part by part, so that no more than a part need be in memory.

The area under the ROC curve alone needs all rows: of each, a float32 and a flag are kept until the end.
Shape suffixes: N rows of a part, T targets, L classes or labels.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.learning.features import ROUNDING
from app.specs.table import Task

MIN_ROWS_FOR_R2 = 2
MIN_JUDGED, MIN_OTHERS = 20, 3  # rows, and those of other classes: fewer may be missed by chance
SCORES_AT_ONCE = 2**18


class Metrics(Protocol):
    """A task's metrics of rows that come in parts."""

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Values `[N, T]` in the target's units or probabilities `[N, L]`, and what they should have been."""

    def values(self) -> dict[str, float]:
        """Of all rows so far, of which there is one at least."""


class RegressionMetrics:
    def __init__(self) -> None:
        self.num_rows = 0
        self.absolute = self.squared_T = self.mean_T = self.spread_T = torch.zeros(())

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        truth_NT = truth.double()
        errors_NT = predicted.double() - truth_NT
        self.squared_T = self.squared_T + errors_NT.square().sum(0)
        self.absolute = self.absolute + errors_NT.abs_().sum()
        num_rows, mean_T = len(truth_NT), truth_NT.mean(0)  # merged as in Chan et al. 1983
        total, shift_T = self.num_rows + num_rows, mean_T - self.mean_T
        self.spread_T = (
            self.spread_T + (truth_NT - mean_T).square_().sum(0) + shift_T.square() * (self.num_rows * num_rows / total)
        )
        self.mean_T, self.num_rows = self.mean_T + shift_T * (num_rows / total), total

    def values(self) -> dict[str, float]:
        num_values = self.num_rows * len(self.squared_T)
        found = {
            "mae": self.absolute.item() / num_values,
            "rmse": (self.squared_T.sum() / num_values).sqrt().item(),
        }
        varies_T = (self.spread_T / self.num_rows).sqrt() > ROUNDING * self.mean_T.abs()
        if self.num_rows >= MIN_ROWS_FOR_R2 and bool(varies_T.all()):
            found["r2"] = (1 - self.squared_T / self.spread_T).mean().item()
        return found


class ClassMetrics:
    def __init__(self) -> None:
        self.num_rows = 0
        self.right_L = self.said_L = self.true_L = torch.zeros((), dtype=torch.int64)
        self.scores: list[NDArray[np.float32]] = []
        self.positive: list[NDArray[np.bool_]] = []

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        best, codes, num_classes = predicted.argmax(1), truth.long(), predicted.shape[1]
        self.num_rows += len(codes)
        self.right_L = self.right_L + codes[best == codes].bincount(minlength=num_classes)
        self.said_L = self.said_L + best.bincount(minlength=num_classes)
        self.true_L = self.true_L + codes.bincount(minlength=num_classes)
        if num_classes == 2:
            self.scores.append(predicted[:, 1].float().numpy())
            self.positive.append((codes == 1).numpy())

    def values(self) -> dict[str, float]:
        found = {
            "accuracy": self.right_L.sum().item() / self.num_rows,
            "f1_macro": macro_f1(self.right_L, self.said_L, self.true_L),
        }
        if len(self.true_L) == 2 and bool((self.true_L > 0).all()):
            scores, positive = np.concatenate(self.scores), np.concatenate(self.positive)
            found["roc_auc"] = area_under_roc(scores[positive], scores[~positive])
        return found

    def only_class(self) -> int | None:
        """The class that all rows are taken for, though of many some are of others; None where that is not so."""
        said = self.said_L.nonzero().flatten().tolist()
        if len(said) > 1 or self.num_rows < MIN_JUDGED or self.num_rows - int(self.true_L[said[0]]) < MIN_OTHERS:
            return None
        return int(said[0])


class LabelMetrics:
    def __init__(self) -> None:
        self.num_rows = self.num_exact = 0
        self.num_right = 0
        self.right_L = self.said_L = self.true_L = torch.zeros((), dtype=torch.int64)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        said_NL, true_NL = predicted >= 0.5, truth >= 0.5
        agree_NL = said_NL == true_NL
        self.num_rows += len(truth)
        self.num_exact += int(agree_NL.all(1).sum())
        self.num_right += int(agree_NL.sum())
        self.right_L = self.right_L + (said_NL & true_NL).sum(0)
        self.said_L, self.true_L = self.said_L + said_NL.sum(0), self.true_L + true_NL.sum(0)

    def values(self) -> dict[str, float]:
        found = {
            "accuracy": self.num_right / (self.num_rows * len(self.true_L)),
            "exact_match": self.num_exact / self.num_rows,
        }
        if bool((self.said_L + self.true_L).any()):
            found["f1_macro"] = macro_f1(self.right_L, self.said_L, self.true_L)
        return found


def macro_f1(right_L: Tensor, said_L: Tensor, true_L: Tensor) -> float:
    """The mean F1 over the classes that occur or are predicted, of which there must be one."""
    either = said_L + true_L
    occurs = either > 0
    return (2 * right_L[occurs].double() / either[occurs]).mean().item()


def area_under_roc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """How often a positive's score is above a negative's; equal ones count half (Mann & Whitney 1947)."""
    positive.sort()
    negative.sort()
    twice = 0
    for begin in range(0, len(positive), SCORES_AT_ONCE):
        part = positive[begin : begin + SCORES_AT_ONCE]
        twice += sum(int(np.searchsorted(negative, part, side).sum()) for side in ("left", "right"))
    return twice / 2 / len(positive) / len(negative)


METRICS: dict[Task, Callable[[], Metrics]] = {
    "regression": RegressionMetrics,
    "binary": ClassMetrics,
    "multiclass": ClassMetrics,
    "multilabel": LabelMetrics,
}


def measure(task: Task, predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """The task's metrics.

    Args:
        predicted: values `[N, T]` in the target's units, or probabilities `[N, L]`.
        truth: values `[N, T]`, class numbers `[N]`, or 0/1 flags `[N, L]`.
    """
    if len(truth) == 0:
        return {}
    metrics = METRICS[task]()
    with torch.no_grad():
        metrics.add(predicted.cpu(), truth.cpu())
    return metrics.values()
